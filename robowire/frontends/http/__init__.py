"""The HTTP frontend of the simulator service: for curl, browsers, and languages without a client."""

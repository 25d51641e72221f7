"""An HTTP front of the simulator server: for curl, browsers, and languages without a client."""

"""Record the sessions of a server, and replay them as a policy or a simulator."""

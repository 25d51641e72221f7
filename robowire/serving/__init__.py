"""The servers: connections, sessions, batching, metrics, and what each port answers."""

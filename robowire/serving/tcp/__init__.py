"""The TCP frontend: the native wire."""

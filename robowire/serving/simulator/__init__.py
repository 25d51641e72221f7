"""The simulator service: sessions, processes, snapshots."""

"""Frontends: each translates one wire into requests to a service."""

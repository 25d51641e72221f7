"""Policies: a table of names (``policies.registry``) and one room for each kind."""

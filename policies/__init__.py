"""Policies: a table of names (``policies.registry``) and one package for each kind."""

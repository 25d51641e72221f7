"""Simulators: a table of names, and one room for each family."""

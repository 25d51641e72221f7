"""Simulators: a table of names, and one package for each family."""

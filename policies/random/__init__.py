"""Uniform actions from a seed."""

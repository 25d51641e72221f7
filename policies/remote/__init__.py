"""Policies that other servers hold, each reached in the words of its own wire."""

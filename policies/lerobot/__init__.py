"""Policies of the lerobot package, run by lerobot itself with the processors of their folder."""

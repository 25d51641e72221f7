"""What runs in a simulator's own interpreter. Python 3.8, numpy and the standard library only."""

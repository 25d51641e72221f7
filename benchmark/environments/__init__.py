"""Gymnasium environments behind the contract of a simulator, for the families whose tasks they are."""

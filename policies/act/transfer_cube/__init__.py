"""A trained ACT that hands a cube over, for the simulator family ``aloha``, and what trained it."""

"""A page for people: what servers do, live images, a running evaluation. Reads what any client may ask."""

"""Many simulator servers as one: started, watched, replaced, and behind one address."""

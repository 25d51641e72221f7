"""What the rows of ``server.py`` lead to: each command's flags, and what is made of them."""

"""How many layers need full attention, and which."""

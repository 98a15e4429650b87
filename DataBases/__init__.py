"""The databases, and what makes them."""

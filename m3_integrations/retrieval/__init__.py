"""Room 3: asking well. Sees only the protocols."""

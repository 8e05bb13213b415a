"""Room 5: moving vectors. Knows no torch and no framework."""

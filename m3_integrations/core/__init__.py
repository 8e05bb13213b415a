"""Room 1: values and mathematics. Knows no index and no framework."""

"""Room 2: keeping and finding. Never encodes."""

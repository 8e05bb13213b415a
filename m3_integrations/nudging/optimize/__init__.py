"""Choice of the nudge of one mode or of several together."""

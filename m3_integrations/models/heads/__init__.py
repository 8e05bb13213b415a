"""Heads beyond linear ones: term expansion, and the tokens of late interaction."""

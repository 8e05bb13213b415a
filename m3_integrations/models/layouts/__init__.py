"""Layouts of checkpoint folders, one module each."""

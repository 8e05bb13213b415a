"""Verification and repair of index folders."""

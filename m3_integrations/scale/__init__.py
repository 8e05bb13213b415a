"""Encoding and nudging a corpus larger than one machine: in a pool of processes, or on Ray."""

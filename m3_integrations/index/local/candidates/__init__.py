"""Candidate generation: HNSW graph, approximate MaxSim."""

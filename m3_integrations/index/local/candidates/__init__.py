"""Candidate generation: HNSW graph, centroid lists of late interaction, approximate MaxSim."""

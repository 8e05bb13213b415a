"""Differentiable model, scores and losses."""

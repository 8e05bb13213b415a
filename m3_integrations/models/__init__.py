"""Transformer models with dense, sparse and multi-vector heads, and their checkpoints."""

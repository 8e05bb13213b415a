"""Vectors that are hard to keep in bytes."""

from __future__ import annotations

import numpy as np

KINDS = ("plain", "lengths", "dimensions", "near", "alike", "few values")


def drawn(seed, rows, width, kind):
    """Of very different lengths, with dimensions far apart, or so alike that bytes or float32 hardly tell them."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, width))
    if kind == "lengths":
        vectors *= 10.0 ** random.uniform(-30, 3, (rows, 1))
    if kind == "dimensions":
        vectors *= 10.0 ** random.uniform(-20, 2, (1, width))
    if kind in ("near", "alike"):
        vectors = np.repeat(vectors[:1], rows, axis=0) + (1e-2 if kind == "near" else 1e-6) * vectors
    if kind == "few values":
        vectors = np.sign(vectors) * (np.abs(vectors) > 1)
    return vectors.astype(np.float32)

"""Projection of multi-vectors on the principal directions of a corpus."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array

Directions = npt.NDArray[np.float64]


def principal_directions(vectors: Iterable[Array], width: int) -> Directions:
    """Return the directions that approximate vectors best (Eckart and Young 1936).

    They are the eigenvectors of the second moment, largest first. It is not centered, since scores are inner products.

    Args:
        vectors: Arrays of shape (tokens, dim).
        width: Number of directions.

    Returns:
        Orthonormal rows, shape (width, dim).

    Raises:
        ValueError: If there are fewer vectors than `width`.
    """
    moment, tokens = np.zeros((1, 1)), 0
    for part in vectors:
        moment = moment + part.T @ part
        tokens += len(part)
    if tokens < width:
        raise ValueError(f"these texts have {tokens} tokens, too few for {width} directions; pass more texts")
    _, directions = np.linalg.eigh(moment)
    return np.ascontiguousarray(directions.T[::-1][:width], np.float64)


def projected(vectors: Array, directions: Directions) -> Array:
    """Project vectors and normalize them, as a projected head does.

    Args:
        vectors: Shape (tokens, dim).
        directions: Shape (width, dim).

    Returns:
        Unit vectors, shape (tokens, width).
    """
    along = vectors @ directions.T.astype(np.float32)
    return np.asarray(along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12), np.float32)

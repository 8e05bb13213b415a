"""Narrower vectors of late interaction: the directions in which a corpus's token vectors differ most."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array

Directions = npt.NDArray[np.float64]


def principal_directions(vectors: Iterable[Array], width: int) -> Directions:
    """(width, of the vectors): the orthonormal rows whose span these vectors lie nearest to (Eckart and Young 1936).

    They are the eigenvectors of the second moment, from the largest down. It is not centred: scores are inner products,
    to which belongs what all vectors share. vectors: (tokens, of the vectors), array by array. Raises ValueError where
    there are fewer of them than `width`.
    """
    moment, tokens = np.zeros((1, 1)), 0
    for some in vectors:
        moment = moment + some.T @ some
        tokens += len(some)
    if tokens < width:
        raise ValueError(f"these texts have {tokens} tokens, which do not say what {width} directions are; give more")
    _, directions = np.linalg.eigh(moment)
    return np.ascontiguousarray(directions.T[::-1][:width], np.float64)


def projected(vectors: Array, directions: Directions) -> Array:
    """(tokens, width), of length 1: what a head that ends in the projection on these directions gives."""
    along = vectors @ directions.T.astype(np.float32)
    return np.asarray(along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12), np.float32)

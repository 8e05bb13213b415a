"""Top-k selection with deterministic ties: by score, descending, then by id, ascending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array, Ints
from m3_integrations.index.base import Hit


def top_k_with_ties(scores: npt.NDArray[np.floating[Any]], k: int, tolerance: float = 0.0) -> Ints:
    """Select the possible top k of inexact scores.

    Args:
        scores: Shape (n,).
        k: At least 1.
        tolerance: Twice the largest error of a score; 0 for exact scores.

    Returns:
        Positions, ascending; more than k if some tie with the k-th score.
    """
    if k >= len(scores):
        return np.arange(len(scores))
    position = len(scores) - int(k)  # int: a numpy integer could overflow
    kth = np.partition(scores, position)[position]
    return np.flatnonzero(scores >= kth - np.float64(tolerance))


def rank(ids: Sequence[str], scores: Array, k: int) -> list[Hit]:
    """Return the top k as hits, best first.

    Args:
        ids: Passage ids.
        scores: Shape (len(ids),).
        k: Number of hits.
    """
    best = sorted(zip((-scores).tolist(), ids, strict=True))[:k]
    return [Hit(id, -negated) for negated, id in best]

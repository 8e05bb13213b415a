"""The one order of hits: by score, descending, then by id, ascending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array, Ints
from m3_integrations.index.base import Hit


def contenders(scores: npt.NDArray[np.floating[Any]], k: int, slack: float = 0.0) -> Ints:
    """The positions that can be among the best k where each score is off by at most half the slack.

    scores: (n,). Every tie with the k-th is among them, so there may be more than k; in ascending order.
    """
    if k >= len(scores):
        return np.arange(len(scores))
    place = len(scores) - int(k)  # int: a numpy integer could overflow
    kth = np.partition(scores, place)[place]
    return np.flatnonzero(scores >= kth - np.float64(slack))


def rank(ids: Sequence[str], scores: Array, k: int) -> list[Hit]:
    """The best k as hits."""
    best = sorted(zip((-scores).tolist(), ids, strict=True))[:k]
    return [Hit(id, -negated) for negated, id in best]

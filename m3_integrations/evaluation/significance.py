"""Paired bootstrap intervals of mean gains."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0


def bootstrap_interval(gains: NDArray[np.float64], seed: int = SEED) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired gains, (0, 0) for none.

    Args:
        gains: Gain of each query, shape (queries,).
        seed: Seed of the resampling.
    """
    if not len(gains):
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    means = [gains[rng.integers(0, len(gains), len(gains))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

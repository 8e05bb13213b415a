"""Putting the answers of several modes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from m3_integrations.core.encoded import MODES, Mode


def weighted_sum(by_mode: Mapping[Mode, float], weights: Mapping[Mode, float]) -> tuple[float, dict[Mode, float]]:
    """The summed score, and what each mode gave to it; the parts add up to the sum."""
    parts = {mode: weights[mode] * by_mode[mode] for mode in MODES if weights.get(mode)}
    return sum(parts.values()), parts


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], k: int = 60) -> list[tuple[str, float]]:
    """Fuse ranked ids by the sum of 1 / (k + rank), rank from 1 (Cormack et al., SIGIR 2009). Best first, ties by id.

    Raises ValueError for k < 0 and where a ranking names an id twice.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    scores: dict[str, float] = {}
    for ranking in rankings:
        if len(set(ranking)) != len(ranking):
            raise ValueError("a ranking names each id once; this one repeats some")
        for rank, id in enumerate(ranking, start=1):
            scores[id] = scores.get(id, 0.0) + 1 / (k + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))

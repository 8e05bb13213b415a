"""Choosing passages that answer, and that do not say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from m3_integrations.core.encoded import DENSE, Array
from m3_integrations.index.base import Index
from m3_integrations.retrieval.retriever import Match

_NO_VECTORS: Array = np.zeros((0, 0), np.float32)


def maximal_marginal_relevance(
    relevance: Array, passages: Array, k: int, balance: float = 0.5
) -> list[tuple[int, float]]:
    """The rows of k passages in the order chosen, each with what it added (Carbonell and Goldstein, SIGIR 1998).

    Each next passage has the highest `balance · relevance − (1 − balance) · (highest similarity to one chosen before)`;
    ties go to the lower row. The first has nothing before it; from the second on, what is added never rises.
    balance: 1 is relevance alone, 0 variety alone.
    relevance: (passages,); passages: (passages, dim), compared by inner products. Raises ValueError unless
    0 <= balance <= 1 and k >= 1.
    """
    if not 0 <= balance <= 1:
        raise ValueError(f"the balance of relevance and variety is between 0 and 1, got {balance}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    chosen: list[tuple[int, float]] = []
    added = balance * relevance.astype(np.float64)
    overlap = np.full(len(passages), -np.inf)
    for _ in range(min(k, len(passages))):
        best = int(np.argmax(added))
        chosen.append((best, float(added[best])))
        overlap = np.maximum(overlap, passages @ passages[best])
        added = balance * relevance - (1 - balance) * overlap
        added[[row for row, _ in chosen]] = -np.inf
    return chosen


def diversify(index: Index, matches: Sequence[Match], k: int, balance: float = 0.5) -> list[Match]:
    """k of these matches by maximal marginal relevance of their dense vectors, each scored by what it added."""
    vectors = index.vectors([match.passage.id for match in matches], DENSE).dense if matches else _NO_VECTORS
    relevance = np.array([match.score for match in matches], np.float32)
    chosen = maximal_marginal_relevance(relevance, vectors, k, balance)
    return [replace(matches[row], score=added, by_mode={"dense": added}) for row, added in chosen]

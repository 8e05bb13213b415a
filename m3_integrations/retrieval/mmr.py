"""Maximal marginal relevance: relevant passages that differ from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from m3_integrations.core.encoded import DENSE, Array
from m3_integrations.core.types import positive_integer
from m3_integrations.index.base import Index
from m3_integrations.retrieval.retriever import Match

_NO_VECTORS: Array = np.zeros((0, 0), np.float32)


def maximal_marginal_relevance(
    relevance: Array, passages: Array, k: int, lambda_mult: float = 0.5
) -> list[tuple[int, float]]:
    """Select k passages by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Each next passage maximizes lambda_mult * relevance - (1 - lambda_mult) * (highest similarity to a selected one);
    ties go to the lower row.

    Args:
        relevance: Relevance of each passage, shape (passages,).
        passages: Vectors, shape (passages, dim), compared by inner product.
        k: Number of passages, at least 1.
        lambda_mult: 1 for relevance alone, 0 for diversity alone.

    Returns:
        Rows in the order selected, each with its marginal relevance, which never rises from the second on.

    Raises:
        ValueError: If lambda_mult is outside [0, 1] or k is below 1.
    """
    if not 0 <= lambda_mult <= 1:
        raise ValueError(f"lambda_mult must be between 0 and 1, got {lambda_mult}")
    k = positive_integer("k", k)
    chosen: list[tuple[int, float]] = []
    added = lambda_mult * relevance.astype(np.float64)
    overlap = np.full(len(passages), -np.inf)
    for _ in range(min(k, len(passages))):
        best = int(np.argmax(added))
        chosen.append((best, float(added[best])))
        overlap = np.maximum(overlap, passages @ passages[best])
        added = lambda_mult * relevance - (1 - lambda_mult) * overlap
        added[[row for row, _ in chosen]] = -np.inf
    return chosen


def mmr_rerank(index: Index, matches: Sequence[Match], k: int, lambda_mult: float = 0.5) -> list[Match]:
    """Select k matches by maximal marginal relevance of their dense vectors, with that as their score.

    Args:
        index: Index that holds the vectors.
        matches: Matches to select from.
        k: Number of matches.
        lambda_mult: 1 for relevance alone, 0 for diversity alone.
    """
    vectors = index.vectors([match.passage.id for match in matches], DENSE).dense if matches else _NO_VECTORS
    relevance = np.array([match.score for match in matches], np.float32)
    chosen = maximal_marginal_relevance(relevance, vectors, k, lambda_mult)
    return [replace(matches[row], score=added, by_mode={"dense": added}) for row, added in chosen]

"""Synthetic embeddings: passages and queries around a thousand topics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import scipy.sparse

from m3_integrations import Encoded, MultiVectors, Passage
from m3_integrations.core import MODES, Array

DIM, COLUMNS, TOPICS = 384, 250_002, 1000
ENTRIES, QUERY_ENTRIES, QUERY_VECTORS = 120, 12, 12
BATCH = 2000


class Synthetic:
    """Stand-in for the encoder of a retriever whose queries are already encoded."""

    modes = frozenset(MODES)
    weights: ClassVar = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}


class World:
    """Generator of passages and queries around topics, deterministic by seed.

    Args:
        vectors: Multi-vectors per passage.
        seed: Seed of the vectors.
        dim: Dimensions of dense vectors and multi-vectors.
        entries: Sparse entries per passage.
    """

    def __init__(self, vectors: int, seed: int = 0, *, dim: int = DIM, entries: int = ENTRIES) -> None:
        self._rng = np.random.default_rng(seed)
        self._vectors, self._dim, self._entries = vectors, dim, entries
        self._topics = np.random.default_rng(0).standard_normal((TOPICS, dim), np.float32)

    def passages(self, total: int) -> Iterator[tuple[list[Passage], Encoded]]:
        """Yield batches of passages and their embeddings."""
        for start in range(0, total, BATCH):
            count = min(BATCH, total - start)
            yield (
                [Passage(f"p{start + i:08d}", "") for i in range(count)],
                self._encode(count, self._entries, self._vectors),
            )

    def queries(self, count: int) -> Encoded:
        """Make the embeddings of queries."""
        return self._encode(count, QUERY_ENTRIES, QUERY_VECTORS)

    def _encode(self, count: int, entries: int, vectors: int) -> Encoded:
        topics = self._rng.integers(0, TOPICS, count)
        multi_vectors = self._around(np.repeat(topics, vectors))
        return Encoded(
            self._around(topics),
            self._sparse(count, entries),
            MultiVectors(multi_vectors, np.arange(count + 1) * vectors),
        )

    def _around(self, topics: np.ndarray) -> Array:
        vectors = self._topics[topics] + self._rng.standard_normal((len(topics), self._dim), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _sparse(self, count: int, entries: int) -> scipy.sparse.csr_array:
        drawn = (self._rng.zipf(1.1, (count, 4 * entries)) - 1) % COLUMNS
        columns = [list(dict.fromkeys(row))[:entries] for row in drawn.tolist()]  # distinct columns
        offsets = np.cumsum([0, *map(len, columns)])
        weights = self._rng.random(offsets[-1], np.float32) + np.float32(0.01)
        return scipy.sparse.csr_array((weights, np.concatenate(columns), offsets), shape=(count, COLUMNS))

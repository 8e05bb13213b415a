"""Vectors of no text for the benchmarks: passages and questions around a thousand topics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import scipy.sparse

from m3_integrations import Encoded, MultiVectors, Passage
from m3_integrations.core.encoded import MODES, Array

DIM, COLUMNS, TOPICS = 384, 250_002, 1000
ENTRIES, QUERY_ENTRIES, QUERY_VECTORS = 120, 12, 12
BATCH = 2000


class Synthetic:
    """The encoder that a retriever is told of; its questions come encoded."""

    modes = frozenset(MODES)
    weights: ClassVar = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}


class World:
    """Passages around topics, the same for the same seed.

    vectors: of late interaction, a passage. dim: of a dense vector and of those. entries: sparse ones, a passage.
    """

    def __init__(self, vectors: int, seed: int = 0, *, dim: int = DIM, entries: int = ENTRIES) -> None:
        self._random = np.random.default_rng(seed)
        self._vectors, self._dim, self._entries = vectors, dim, entries
        self._topics = np.random.default_rng(0).standard_normal((TOPICS, dim), np.float32)

    def passages(self, total: int) -> Iterator[tuple[list[Passage], Encoded]]:
        for start in range(0, total, BATCH):
            count = min(BATCH, total - start)
            yield (
                [Passage(f"p{start + i:08d}", "") for i in range(count)],
                self._encoded(count, self._entries, self._vectors),
            )

    def queries(self, count: int) -> Encoded:
        return self._encoded(count, QUERY_ENTRIES, QUERY_VECTORS)

    def _encoded(self, count: int, entries: int, vectors: int) -> Encoded:
        topics = self._random.integers(0, TOPICS, count)
        late = self._around(np.repeat(topics, vectors))
        return Encoded(
            self._around(topics), self._sparse(count, entries), MultiVectors(late, np.arange(count + 1) * vectors)
        )

    def _around(self, topics: np.ndarray) -> Array:
        near = self._topics[topics] + self._random.standard_normal((len(topics), self._dim), np.float32)
        return near / np.linalg.norm(near, axis=1, keepdims=True)

    def _sparse(self, count: int, entries: int) -> scipy.sparse.csr_array:
        drawn = (self._random.zipf(1.1, (count, 4 * entries)) - 1) % COLUMNS
        columns = [list(dict.fromkeys(row))[:entries] for row in drawn.tolist()]  # distinct ones
        offsets = np.cumsum([0, *map(len, columns)])
        weights = self._random.random(offsets[-1], np.float32) + np.float32(0.01)
        return scipy.sparse.csr_array((weights, np.concatenate(columns), offsets), shape=(count, COLUMNS))

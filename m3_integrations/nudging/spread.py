"""Spread: a passage that no query answers for follows its nearest neighbours that some query does.

Without it the unqueried gain nothing, and are crowded out by those that moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import scipy.sparse

from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.solve import unit

NEAREST = 32  # beyond these the weights are next to nothing at every temperature that we try
ROWS = 4096  # passages in a block
EXACT = 1 << 31  # products of passages up to which neighbours are searched exactly: seconds


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest pulled passages of those that nothing pulls.

    rows: (m,) ascending; places: (m, nearest) among the pulled; cosines: (m, nearest), falling.
    """

    rows: Ints
    places: Ints
    cosines: Floats

    @classmethod
    def of(cls, passages: Floats, pulled: Ints, nearest: int = NEAREST) -> Neighbours:
        """Search for each passage that is not among the rows `pulled`; block by block.

        passages: (n, dim); pulled: rows, ascending, at least one.
        """
        rows = np.setdiff1d(np.arange(len(passages)), pulled, assume_unique=True)
        nearest = min(nearest, len(pulled))
        places, cosines = np.empty((len(rows), nearest), np.int64), np.empty((len(rows), nearest), np.float32)
        index = _index(unit(np.asarray(passages[pulled], np.float32)), len(rows))
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            cosines[part], places[part] = index.search(unit(np.asarray(passages[rows[part]], np.float32)), nearest)
        return cls(rows, places, cosines)


def _index(passages: Floats, searches: int) -> faiss.Index:
    dim = passages.shape[1]
    index: faiss.Index = faiss.IndexFlatIP(dim)
    if len(passages) * searches > EXACT:
        cells = int(4 * len(passages) ** 0.5)
        index = faiss.IndexIVFFlat(index, dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64
        index.train(passages)
        index.nprobe = max(8, cells // 16)
    index.add(passages)
    return index


@dataclass(frozen=True, eq=False)
class SpreadPulls:
    """The pulls of queries, and for the other passages the softmax-weighted mean of their neighbours' pulls.

    rows: (m,) every passage that moves, ascending. sources: (queried, dim) of length 1; shares: (m, queried) csr.
    """

    rows: Ints
    sources: Floats
    shares: scipy.sparse.csr_array

    @classmethod
    def of(cls, pulled: Ints, pulls: Floats, neighbours: Neighbours, temperature: float) -> SpreadPulls:
        """pulled: (queried,) rows, ascending; pulls: (queried, dim); temperature: of the softmax over cosines, above 0.

        A low temperature follows the nearest neighbour alone, a high one the mean of all.
        """
        weights = _softmax(neighbours.cosines / temperature)
        weights[neighbours.places < 0] = 0
        own = scipy.sparse.eye_array(len(pulled), format="csr", dtype=np.float32)
        m, nearest = neighbours.places.shape
        starts = np.arange(0, m * nearest + 1, max(nearest, 1))
        others = scipy.sparse.csr_array(
            (weights.ravel(), np.maximum(neighbours.places, 0).ravel(), starts), shape=(m, len(pulled))
        )
        rows = np.concatenate([pulled, neighbours.rows])
        order = np.argsort(rows)
        return cls(rows[order], unit(pulls), scipy.sparse.vstack([own, others], format="csr")[order])

    def take(self, which: Ints) -> Floats:
        pulls: Floats = self.shares[which] @ self.sources
        return pulls


def _softmax(logits: Floats) -> Floats:
    """(m, nearest) over the last axis."""
    if not logits.size:
        return logits
    weights: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights

"""Spread: a passage follows the pulls of its neighbours, one that no query answers for most of all.

Without it the unqueried gain nothing, and are crowded out by those that moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import faiss
import numpy as np
import scipy.sparse

from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.solve import unit

NEAREST = 16  # neighbours that count one by one; those further away count as their mean
SPARE = 4  # found beyond those: which of two alike comes last is then no matter of rounding
ROWS = 4096  # passages in a block
EXACT = 1 << 31  # products of passages: some seconds


class Spread(NamedTuple):
    """How pulls spread. temperature: of the softmax over cosines, from the nearest alone to all alike.

    own: how much of its own pull a passage keeps that has one, the rest being its neighbours' mean; 1 is all of it.
    """

    temperature: float
    own: float


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest pulled passages of each passage, itself among them if it is pulled.

    places: (n, nearest) among the pulled, -1 where one was not found; cosines: (n, nearest); far: (n,) the mean cosine
    of all others, of which there are `others` (n,).
    """

    places: Ints
    cosines: Floats
    far: Floats
    others: Ints

    @classmethod
    def of(
        cls, passages: Floats, pulled: Floats, total: int | None = None, nearest: int = NEAREST, exact: int = EXACT
    ) -> Neighbours:
        """Search for each passage, block by block. passages: (n, dim); pulled: (m, dim), at least one.

        total: how many passages there are, where these are a part of them: each part finds what all would find.
        exact: up to so many products of passages the search is exact, beyond it looks into a part of the cells.
        """
        known = unit(np.asarray(pulled, np.float32, "C"))
        index = _index(known, (total or len(passages)) * len(known) > exact)
        whole, nearest = known.sum(axis=0, dtype=np.float64), min(nearest, len(known))
        places, cosines = np.empty((len(passages), nearest), np.int64), np.empty((len(passages), nearest), np.float32)
        every = np.empty(len(passages))
        for start in range(0, len(passages), ROWS):
            part = slice(start, start + ROWS)
            block = unit(np.asarray(passages[part], np.float32, "C"))
            _, found = index.search(block, min(nearest + SPARE, len(known)))
            places[part], cosines[part] = _nearest(block, known, found, nearest)
            every[part] = block @ whole
        near = places >= 0
        others = len(known) - near.sum(axis=1)
        far = (every - np.where(near, cosines, 0).sum(axis=1, dtype=np.float64)) / np.maximum(others, 1)
        return cls(places, cosines, far, others)


def _nearest(block: Floats, known: Floats, found: Ints, nearest: int) -> tuple[Ints, Floats]:
    """The nearest of those found, and their cosines, which a matrix product rounds otherwise from block to block."""
    cosines = np.empty(found.shape, np.float32)
    for place, column in zip(found.T, cosines.T, strict=True):
        column[:] = np.where(place >= 0, np.einsum("nd,nd->n", block, known[place]), -np.inf)
    order = np.lexsort((found, -cosines), axis=1)[:, :nearest]
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def _index(passages: Floats, in_cells: bool) -> faiss.Index:
    dim = passages.shape[1]
    index: faiss.Index = faiss.IndexFlatIP(dim)
    if in_cells:
        cells = int(4 * len(passages) ** 0.5)
        index = faiss.IndexIVFFlat(index, dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64
        index.train(passages)
        index.nprobe = max(8, cells // 16)
    index.add(passages)
    return index


@dataclass(frozen=True, eq=False)
class SpreadPulls:
    """Pulls of every passage: the softmax-weighted mean of the pulls of those around it, and its own where it has one.

    rows: (n,) all of these passages; sources: (pulled + 1, dim) pulls of length 1, then their sum; shares:
    (n, pulled + 1) csr.
    """

    rows: Ints
    sources: Floats
    shares: scipy.sparse.csr_array

    @classmethod
    def of(cls, pulled: Ints, pulls: Floats, neighbours: Neighbours, spread: Spread) -> SpreadPulls:
        """pulled: (m,) rows, ascending, some of them beyond these passages or before 0; pulls: (m, dim)."""
        sources = unit(pulls)
        around = _around(neighbours, len(pulled), spread.temperature)
        keeps = np.zeros(len(neighbours.far), np.float32)
        here = np.flatnonzero((pulled >= 0) & (pulled < len(keeps)))
        keeps[pulled[here]] = spread.own
        own = scipy.sparse.csr_array((keeps[pulled[here]], (pulled[here], here)), shape=around.shape)
        shares = scipy.sparse.csr_array(scipy.sparse.diags_array(1 - keeps) @ around + own)
        shares.eliminate_zeros()
        shares.sort_indices()  # sums are then taken in one order, whichever passages are here
        return cls(np.arange(len(keeps)), np.concatenate([sources, sources.sum(axis=0, keepdims=True)]), shares)

    def take(self, which: Ints) -> Floats:
        pulls: Floats = self.shares[which] @ self.sources
        return pulls


def _around(neighbours: Neighbours, pulled: int, temperature: float) -> scipy.sparse.csr_array:
    """(n, pulled + 1): the softmax over all that are pulled, the far ones at their mean cosine.

    What each of the far weighs is said once, in the last column, which stands for the sum of all; the near are owed the
    difference.
    """
    near, n = neighbours.places >= 0, len(neighbours.far)
    top = neighbours.cosines.max(axis=1, keepdims=True)
    weights = np.where(near, np.exp((neighbours.cosines - top) / temperature), 0)
    far = np.exp((neighbours.far - top[:, 0]) / temperature) * (neighbours.others > 0)
    total = weights.sum(axis=1) + far * neighbours.others
    shares = np.column_stack([np.where(near, weights - far[:, None], 0), far]) / total[:, None]
    columns = np.column_stack([np.maximum(neighbours.places, 0), np.full(n, pulled)])
    starts = np.arange(0, shares.size + 1, shares.shape[1])
    return scipy.sparse.csr_array((shares.ravel().astype(np.float32), columns.ravel(), starts), shape=(n, pulled + 1))

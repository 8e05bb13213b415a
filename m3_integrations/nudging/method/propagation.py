"""Propagation of pulls to the nearest neighbors of pulled passages.

Without it, passages without queries gain nothing and lose ranks to those that moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import faiss
import numpy as np
import scipy.sparse

from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.method.closed_form import unit

NEAREST = 16  # neighbors with their own cosine; those further away share their mean
SPARE = 4  # extra neighbors searched, so that rounding does not decide between equals
ROWS = 4096  # passages in a block
EXACT = 1 << 31  # products of passages: some seconds


class Propagation(NamedTuple):
    """How pulls propagate.

    Attributes:
        temperature: Temperature of the softmax over cosines.
        self_weight: Weight of a pulled passage's own pull, the rest being the mean of its neighbors; 1 is its own
            alone.
    """

    temperature: float
    self_weight: float


@dataclass(frozen=True, eq=False)
class NearestPulled:
    """The nearest pulled passages of each passage, including itself if it is pulled.

    Attributes:
        places: Positions among the pulled passages, shape (n, nearest); -1 if not found.
        cosines: Their cosines, shape (n, nearest).
        far: Mean cosine of all other pulled passages, shape (n,).
        others: Number of these, shape (n,).
    """

    places: Ints
    cosines: Floats
    far: Floats
    others: Ints

    @classmethod
    def of(
        cls, passages: Floats, pulled: Floats, total: int | None = None, nearest: int = NEAREST, exact: int = EXACT
    ) -> NearestPulled:
        """Search the pulled passages nearest to each passage, block by block.

        Args:
            passages: Passages, shape (n, dim).
            pulled: Pulled passages, shape (m, dim), at least one.
            total: Number of passages in all, if these are a part.
            nearest: Number of neighbors.
            exact: Products of passages up to which the search is exact; beyond, an inverted file is used.
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
    """Return the nearest of the found and their cosines, computed so that blocks do not change the rounding."""
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
class PropagatedPulls:
    """Pulls of every passage: the softmax-weighted mean of the pulls around it, with its own if it has one.

    Attributes:
        rows: All of these passages, shape (n,).
        sources: Unit pulls and their sum, shape (pulled + 1, dim).
        shares: Weights, csr of shape (n, pulled + 1).
    """

    rows: Ints
    sources: Floats
    shares: scipy.sparse.csr_array

    @classmethod
    def of(cls, pulled: Ints, pulls: Floats, neighbors: NearestPulled, propagation: Propagation) -> PropagatedPulls:
        """Build propagated pulls; `pulled` (m,) are ascending rows, some outside these passages, `pulls` (m, dim)."""
        return cls.from_shares(pulls, propagated_shares(pulled, neighbors, propagation))

    @classmethod
    def from_shares(cls, pulls: Floats, shares: scipy.sparse.csr_array) -> PropagatedPulls:
        """Build from the pulls of the pulled passages (m, dim) and `propagated_shares`."""
        sources = unit(pulls)
        sources = np.concatenate([sources, sources.sum(axis=0, keepdims=True)])
        return cls(np.arange(shares.shape[0]), sources, shares)

    def take(self, which: Ints) -> Floats:
        pulls: Floats = self.shares[which] @ self.sources
        return pulls


def propagated_shares(pulled: Ints, neighbors: NearestPulled, propagation: Propagation) -> scipy.sparse.csr_array:
    """Return the weight of each pull for each passage, shape (n, pulled + 1), the last column for the sum of all.

    `pulled` are ascending rows, some outside these passages.
    """
    around = _around(neighbors, len(pulled), propagation.temperature)
    keeps = np.zeros(len(neighbors.far), np.float32)
    here = np.flatnonzero((pulled >= 0) & (pulled < len(keeps)))
    keeps[pulled[here]] = propagation.self_weight
    own = scipy.sparse.csr_array((keeps[pulled[here]], (pulled[here], here)), shape=around.shape)
    shares = scipy.sparse.csr_array(scipy.sparse.diags_array(1 - keeps) @ around + own)
    shares.eliminate_zeros()
    shares.sort_indices()  # sums are then taken in one order, whichever passages are here
    return shares


def _around(neighbors: NearestPulled, pulled: int, temperature: float) -> scipy.sparse.csr_array:
    """Return the softmax over all pulled passages, shape (n, pulled + 1), far ones at their mean cosine.

    The last column stands for the sum of all; near ones hold the difference to the weight of a far one.
    """
    near, n = neighbors.places >= 0, len(neighbors.far)
    top = neighbors.cosines.max(axis=1, keepdims=True)
    weights = np.where(near, np.exp((neighbors.cosines - top) / temperature), 0)
    far = np.exp((neighbors.far - top[:, 0]) / temperature) * (neighbors.others > 0)
    total = weights.sum(axis=1) + far * neighbors.others
    shares = np.column_stack([np.where(near, weights - far[:, None], 0), far]) / total[:, None]
    columns = np.column_stack([np.maximum(neighbors.places, 0), np.full(n, pulled)])
    starts = np.arange(0, shares.size + 1, shares.shape[1])
    return scipy.sparse.csr_array((shares.ravel().astype(np.float32), columns.ravel(), starts), shape=(n, pulled + 1))

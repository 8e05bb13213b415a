"""Late interaction by vectors in bytes: roughly, and by how much that may be off.

What the bytes leave out, and what a query that is rounded like them leaves out, bounds how far a score is from the
exact one, so that only those need be scored exactly that may be among the best.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.byte_products import NARROWEST, WIDEST, byte_products, has_byte_products
from m3_integrations.core.encoded import Array, Ints, MultiVectors, in_parts
from m3_integrations.index.byte_vectors import BYTES, Lengths, Limits, lengths
from m3_integrations.index.codes import Coding, floats
from m3_integrations.index.segments import Ragged

_MOST = 127
_VECTORS_AT_ONCE = 1 << 15
_ASKED_AT_ONCE = 256
_SIMILARITIES_AT_ONCE = 1 << 23
_WORTH_LOADING = 1 << 24
_EPSILON = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)


class Rough(NamedTuple):
    """scores: (queries, rows). slack: (queries,) how far each is off at most; infinite where nobody can say."""

    scores: Array
    slack: Lengths


class _Block(NamedTuple):
    """Vectors of some rows. scales: of each vector. starts: where each row begins that has any; filled: which have."""

    numbers: npt.NDArray[np.int8]
    scales: Array
    starts: Ints
    filled: npt.NDArray[np.bool_]


def rough_scores(rows: Ragged, limits: Limits, coding: Coding | None, queries: MultiVectors) -> Rough | None:
    """The late-interaction scores of these rows, of which there is one; None where bytes cannot tell them.

    limits, coding: of all their vectors.
    """
    similarities = len(queries.values) * int(rows.counts.sum())
    # torch is loaded where it saves more than it takes.
    if not NARROWEST <= queries.width <= WIDEST or ("torch" not in sys.modules and similarities < _WORTH_LOADING):
        return None
    if not similarities or not has_byte_products():
        return None
    asked = [_Asked(queries.take(some), limits, coding) for some in in_parts(queries.counts, _ASKED_AT_ONCE)]
    at_once = max(1, min(_VECTORS_AT_ONCE, _SIMILARITIES_AT_ONCE // max(each.count for each in asked)))
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = [
            np.concatenate([each.scores(block) for each in asked])
            for block in map(_gathered, map(rows.some, in_parts(rows.counts, at_once)))
        ]
    scores, slack = np.concatenate(blocks, axis=1), np.concatenate([each.slack for each in asked])
    return Rough(scores, np.where(np.isfinite(scores).all(axis=1) & np.isfinite(slack), slack, np.inf))


class _Asked:
    """Queries in bytes. slack: (queries,) how far their scores are off at most; count: of their vectors."""

    def __init__(self, queries: MultiVectors, limits: Limits, coding: Coding | None) -> None:
        values = queries.values.astype(np.float64)
        centre = np.zeros(queries.width) if coding is None else coding.centre.astype(np.float64)
        largest = np.abs(values).max(axis=1, initial=0)
        self._steps = np.where(largest > 0, largest, 1)[:, None] / _MOST
        levels = np.rint(values / self._steps)
        self._numbers = levels.astype(np.int8)
        self._at_centre = (values @ centre)[:, None]
        self._filled = queries.counts > 0
        self._begins, self._counts = queries.offsets[:-1][self._filled], queries.counts[self._filled]
        self.count = len(values)
        long, lost = lengths(values), lengths(values - self._steps * levels)
        terms = queries.width + int(queries.counts.max()) + 8
        longest = float(lengths(centre[None])[0]) + limits.reach + limits.left_out
        # Every sum, here and where it is exact: within terms · ε/2 · |q| · |p| (Higham 2002, section 3.1). Twice that
        # for the roundings of one number each, of what was decoded, left out, scaled and averaged.
        missed = long * limits.left_out + lost * limits.reach + 2 * terms * (_EPSILON * long * longest + _TINY)
        self.slack = np.zeros(len(queries))
        self.slack[self._filled] = self._means(missed[:, None])[:, 0]

    def scores(self, block: _Block) -> Array:
        """(queries, rows)."""
        scores = np.zeros((len(self.slack), len(block.filled)), np.float32)
        if len(block.starts) and self.count:
            products = byte_products(self._numbers, block.numbers)
            similarities = np.multiply(products, block.scales, dtype=np.float32)
            nearest = np.maximum.reduceat(similarities, block.starts, axis=1) * self._steps
            nearest += self._at_centre
            scores[np.ix_(self._filled, block.filled)] = self._means(nearest)
        return scores

    def _means(self, each: Lengths) -> Lengths:
        """(queries with vectors, rows), of (query vectors, rows)."""
        means: Lengths = np.add.reduceat(each, self._begins, axis=0) / self._counts[:, None]
        return means


def _gathered(rows: Ragged) -> _Block:
    spans = list(rows.joined().spans())
    numbers, scales = (np.concatenate([segment.arrays[name][some] for segment, some in spans]) for name in BYTES)
    counts = rows.counts
    filled = counts > 0
    return _Block(numbers, floats(scales), (np.cumsum(counts) - counts)[filled], filled)

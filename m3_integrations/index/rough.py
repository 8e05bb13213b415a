"""Late interaction by vectors in bytes: roughly, and by how much that may be off.

What the bytes leave out, and what a query that is rounded like them leaves out, bounds how far a score is from the
exact one, so that only those need be scored exactly that may be among the best.
"""

from __future__ import annotations

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
_EPSILON = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)


class Rough(NamedTuple):
    """scores: (queries, rows). slack: (queries,) by how much each score is off at most."""

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
    if not NARROWEST <= queries.width <= WIDEST or not queries.counts.all() or not has_byte_products():
        return None
    some_at_once = in_parts(queries.counts, _ASKED_AT_ONCE)
    asked = [_Asked(queries.take(some) if len(some) < len(queries) else queries, coding) for some in some_at_once]
    parts = in_parts(rows.counts, _VECTORS_AT_ONCE)
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = [
            np.concatenate([each.scores(block) for each in asked]) for block in map(_gathered, map(rows.some, parts))
        ]
        slack = np.concatenate([each.slack(*limits) for each in asked])
    found = Rough(np.concatenate(blocks, axis=1), slack)
    return found if np.isfinite(found.scores).all() and np.isfinite(found.slack).all() else None


class _Asked:
    """Queries, each of which has vectors, in bytes."""

    def __init__(self, queries: MultiVectors, coding: Coding | None) -> None:
        self._centre = np.zeros(queries.width) if coding is None else coding.centre.astype(np.float64)
        self._values = queries.values.astype(np.float64)
        self._counts, self._begins = queries.counts, queries.offsets[:-1]
        largest = np.abs(self._values).max(axis=1, initial=0)
        self._steps = np.where(largest > 0, largest, 1)[:, None] / _MOST
        self._counted = np.rint(self._values / self._steps)
        self._numbers = self._counted.astype(np.int8)

    def scores(self, block: _Block) -> Array:
        """(queries, rows)."""
        scores = np.zeros((len(self._counts), len(block.filled)), np.float32)
        if len(block.starts):
            products = byte_products(self._numbers, block.numbers)
            similarities = np.multiply(products, block.scales, dtype=np.float32)
            nearest = np.maximum.reduceat(similarities, block.starts, axis=1) * self._steps
            nearest += (self._values @ self._centre)[:, None]
            scores[:, block.filled] = np.add.reduceat(nearest, self._begins, axis=0) / self._counts[:, None]
        return scores

    def slack(self, reach: float, left_out: float) -> Lengths:
        """(queries,) how far a score is off at most."""
        long, lost = lengths(self._values), lengths(self._values - self._steps * self._counted)
        terms = self._values.shape[1] + self._counts.max() + 8
        # Every sum, here and where it is exact: within terms · ε/2 · |q| · |p| (Higham 2002, section 3.1).
        longest = float(lengths(self._centre[None])[0]) + reach + left_out
        missed = long * left_out + lost * reach + 2 * terms * (_EPSILON * long * longest + _TINY)
        slack: Lengths = np.add.reduceat(missed, self._begins) / self._counts
        return slack


def _gathered(rows: Ragged) -> _Block:
    spans = list(rows.joined().spans())
    numbers, scales = (np.concatenate([segment.arrays[name][some] for segment, some in spans]) for name in BYTES)
    counts = rows.counts
    filled = counts > 0
    return _Block(numbers, floats(scales), (np.cumsum(counts) - counts)[filled], filled)

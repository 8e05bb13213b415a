"""A copy of dense vectors in bytes, a quarter of their size: it tells quickly which of them may score highest.

Each dimension is kept in 255 even steps of its own. What the copy leaves out, and what a query rounded like it does,
bounds how far their inner product is from the true one, so that nothing is missed; `searching` scores exactly what is
found.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import faiss as typed_faiss
import numpy as np
import numpy.typing as npt

from m3_integrations.core.byte_products import WIDEST as WIDEST  # FAISS counts up to 2**31 too
from m3_integrations.core.encoded import Array
from m3_integrations.index.arrays import Arrays

faiss: Any = typed_faiss  # its own hints lack what SWIG makes

COARSE = {"copy": ("|u1", 2), "steps": ("<f4", 1), "left_out": ("<f8", 1), "reach": ("<f8", 1)}
_MOST = 127
_ZERO = 128  # how FAISS keeps signed bytes
_EVEN = 16  # dimensions, which FAISS multiplies at once
_MORE_THAN_ALL = 2.0**31  # than any inner product of two rows of bytes
_ROWS_AT_ONCE = 4096
_EPSILON = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)

Longs = npt.NDArray[np.int64]
Bounds = npt.NDArray[np.float64]


class Likely(NamedTuple):
    """Rows that may score highest. lowest, highest: (rows,) bounds of their scores. rest: no other scores above."""

    rows: Longs
    lowest: Bounds
    highest: Bounds
    rest: float

    def kth(self, k: int) -> float:
        """What the k-th best of them scores at least; -inf where there are fewer."""
        return float(np.partition(self.lowest, -k)[-k]) if len(self.rows) >= k else -np.inf

    def take(self, some: npt.NDArray[np.bool_]) -> Likely:
        return Likely(self.rows[some], self.lowest[some], self.highest[some], self.rest)

    def join(self, other: Likely) -> Likely:
        lowest, highest = (
            np.concatenate(both) for both in ((self.lowest, other.lowest), (self.highest, other.highest))
        )
        return Likely(
            np.concatenate([self.rows, other.rows]), lowest, highest, float(np.maximum(self.rest, other.rest))
        )


NOBODY = Likely(np.empty(0, np.int64), np.empty(0), np.empty(0), -np.inf)


def coarse_copy(values: Array) -> Arrays:
    """The arrays that `likely` reads, of (rows, width) vectors.

    copy: (rows, width, rounded up) bytes. steps: (width,). left_out: (1,) how long at most is what the copy of a vector
    leaves out. reach: (1,) how long at most is the copy of a vector, counted in steps.
    """
    width = values.shape[1]
    steps = np.maximum(values.max(axis=0, initial=0), -values.min(axis=0, initial=0)) / np.float32(_MOST)
    steps[steps < _TINY] = 1
    copy = np.full((len(values), _even(width)), _ZERO, np.uint8)
    left_out = reach = 0.0
    for start in range(0, len(values), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        counted = np.rint(values[some] / steps).clip(-_MOST, _MOST)
        copy[some, :width] = counted + _ZERO
        left_out = max(left_out, longest_of(values[some] - counted.astype(np.float64) * steps))
        reach = max(reach, longest_of(counted))
    return {"copy": copy, "steps": steps, "left_out": np.array([left_out]), "reach": np.array([reach])}


def is_coarse_copy(arrays: Arrays, rows: int, width: int) -> bool:
    """Whether the arrays can be what `coarse_copy` answers for so many vectors."""
    shapes = [arrays[name].shape for name in COARSE]
    bounds = np.concatenate([arrays[name].ravel() for name in ("steps", "left_out", "reach")])
    return shapes == [(rows, _even(width)), (width,), (1,), (1,)] and bool((bounds >= 0).all())


def likely(arrays: Arrays, query: Array, count: int, least: float) -> Likely:
    """By their copy at most `count` of the rows that score highest with a query, without those surely below `least`.

    query: (width,). `rest` is not a number, or infinite, where the numbers are too large to bound anything.
    """
    copy, steps = arrays["copy"], arrays["steps"].astype(np.float64)
    left_out, reach = float(arrays["left_out"][0]), float(arrays["reach"][0])
    turned = query * steps
    step = float(np.abs(turned).max(initial=0)) / _MOST or 1.0
    counted = np.rint(turned / step)
    length, largest = _length(query.astype(np.float64)), float(steps.max(initial=0))
    missed = length * left_out + _length(turned - step * counted) * reach
    # FAISS's inner product and the one that decides: each within dim · ε/2 · |q| · |p| (Higham 2002, section 3.1).
    rounding = len(query) * _EPSILON * (missed + 2 * length * reach * largest) + 2 * len(query) * _TINY
    slack = missed + rounding
    scores = np.full(min(count, len(copy)), _below((least - slack) / step), np.float32)
    rows = _highest(copy, counted.astype(np.float32), scores)
    found = rows >= 0
    around = step * scores[found].astype(np.float64)
    rest = -np.inf if np.count_nonzero(found) == len(copy) else step * float(scores.min()) + slack
    return Likely(rows[found], around - slack, around + slack, rest)


def _highest(copy: npt.NDArray[np.uint8], query: Array, scores: Array) -> Longs:
    """The rows with inner products above `scores`, a heap of one number, which takes them; -1 where there are no more.

    query: whole numbers of the size of a byte, because some of FAISS's loops take no others; those that compute with
    floats give the same up to 1,040 dimensions, and beyond within the rounding.
    """
    padded = np.zeros(copy.shape[1], np.float32)
    padded[: len(query)] = query
    rows = np.full(len(scores), -1, np.int64)
    quantizer = faiss.ScalarQuantizer(len(padded), faiss.ScalarQuantizer.QT_8bit_direct_signed)
    scanner = quantizer.select_InvertedListScanner(faiss.METRIC_INNER_PRODUCT, None, True, None, False)
    heap = faiss.swig_ptr(scores), faiss.swig_ptr(rows)
    try:
        scanner.set_query(faiss.swig_ptr(padded))
        scanner.set_list(0, 0.0)  # so that it names the rows from 0
        scanner.scan_codes(len(copy), faiss.swig_ptr(copy), None, *heap, len(scores))
    finally:
        scanner.__swig_destroy__(scanner)  # nobody else does: SWIG takes it for the quantizer's
    return rows


def _even(width: int) -> int:
    return width + -width % _EVEN


def longest_of(vectors: npt.NDArray[np.floating[Any]]) -> float:
    """The length of the longest vector. In float64, because float32 cannot square what it can hold."""
    steps = (vectors[start : start + _ROWS_AT_ONCE] for start in range(0, len(vectors), _ROWS_AT_ONCE))
    return max((float(np.linalg.norm(some.astype(np.float64), axis=1).max()) for some in steps), default=0.0)


def _length(vector: npt.NDArray[np.float64]) -> float:
    return math.sqrt(vector @ vector)


def _below(value: float) -> float:
    """A little less, so that it is less in float32 too; cut where it is beyond all inner products of bytes."""
    return min(max(value - abs(value) * 2 * _EPSILON, -_MORE_THAN_ALL), _MORE_THAN_ALL)

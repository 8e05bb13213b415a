"""int8 copy of dense vectors with error bounds (exact prefilter).

The copy takes a quarter of the space. Each dimension is quantized to 255 uniform steps. The quantization errors of
the vectors and of the query bound the difference between their approximate and their true inner product, so that no
candidate is missed; `index.local.search` then scores the candidates exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array, Arrays
from m3_integrations.index.quantization.int8_matmul import MAX_DIM as MAX_DIM  # FAISS counts up to 2**31 too

DENSE_INT8_ARRAYS = {"copy": ("|u1", 2), "steps": ("<f4", 1), "left_out": ("<f8", 1), "reach": ("<f8", 1)}
_MAX_LEVEL = 127
_ZERO = 128  # FAISS's offset of signed bytes
_DIM_MULTIPLE = 16  # FAISS multiplies so many dimensions at once
_MAX_PRODUCT = 2.0**31  # above any inner product of two int8 vectors
_BLOCK_ROWS = 4096
_EPSILON = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)

Longs = npt.NDArray[np.int64]
Bounds = npt.NDArray[np.float64]


class BoundedCandidates(NamedTuple):
    """Candidate rows of the top k, with bounds of their scores.

    Attributes:
        rows: Shape (n,).
        lower: Lower bound of each score, shape (n,).
        upper: Upper bound of each score, shape (n,).
        others_upper: Upper bound of the score of every other row.
    """

    rows: Longs
    lower: Bounds
    upper: Bounds
    others_upper: float

    def kth_lower(self, k: int) -> float:
        """Return a lower bound of the k-th best score; -inf if there are fewer candidates."""
        return float(np.partition(self.lower, -k)[-k]) if len(self.rows) >= k else -np.inf

    def take(self, mask: npt.NDArray[np.bool_]) -> BoundedCandidates:
        """Return the candidates selected by a mask; `others_upper` stays."""
        return BoundedCandidates(self.rows[mask], self.lower[mask], self.upper[mask], self.others_upper)

    def join(self, other: BoundedCandidates) -> BoundedCandidates:
        """Return the candidates of both."""
        rows, lower, upper = (np.concatenate(both) for both in zip(self[:3], other[:3], strict=True))
        return BoundedCandidates(rows, lower, upper, float(np.maximum(self.others_upper, other.others_upper)))


NO_CANDIDATES = BoundedCandidates(np.empty(0, np.int64), np.empty(0), np.empty(0), -np.inf)


def quantize_dense(values: Array) -> Arrays:
    """Quantize vectors to int8, in the arrays read by `find_candidates`.

    Args:
        values: Shape (rows, dim).

    Returns:
        `copy`: Bytes, shape (rows, dim rounded up to a multiple of 16).
        `steps`: Step of each dimension, shape (dim,).
        `left_out`: Largest norm of a quantization error, shape (1,).
        `reach`: Largest norm of a quantized vector in units of the steps, shape (1,).
    """
    dim = values.shape[1]
    steps = np.maximum(values.max(axis=0, initial=0), -values.min(axis=0, initial=0)) / np.float32(_MAX_LEVEL)
    steps[steps < _TINY] = 1
    copy = np.full((len(values), _padded(dim)), _ZERO, np.uint8)
    quantization_error = level_norm = 0.0
    for start in range(0, len(values), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        levels = np.rint(values[block] / steps).clip(-_MAX_LEVEL, _MAX_LEVEL)
        copy[block, :dim] = levels + _ZERO
        quantization_error = max(quantization_error, max_norm(values[block] - levels.astype(np.float64) * steps))
        level_norm = max(level_norm, max_norm(levels))
    return {"copy": copy, "steps": steps, "left_out": np.array([quantization_error]), "reach": np.array([level_norm])}


def is_valid_dense_copy(arrays: Mapping[str, npt.NDArray[Any]], rows: int, dim: int) -> bool:
    """Return whether the arrays can be the output of `quantize_dense` for this shape."""
    shapes = [arrays[name].shape for name in DENSE_INT8_ARRAYS]
    bounds = np.concatenate([arrays[name].ravel() for name in ("steps", "left_out", "reach")])
    return shapes == [(rows, _padded(dim)), (dim,), (1,), (1,)] and bool((bounds >= 0).all())


def find_candidates(
    arrays: Mapping[str, npt.NDArray[Any]], query: Array, count: int, min_score: float
) -> BoundedCandidates:
    """Find the rows with the highest approximate inner products.

    Args:
        arrays: Output of `quantize_dense`.
        query: Shape (dim,).
        count: Largest number of candidates.
        min_score: Rows certainly below this score are skipped.

    Returns:
        At most `count` candidates. `others_upper` is nan or inf if the numbers are too large for bounds.
    """
    copy, steps = arrays["copy"], arrays["steps"].astype(np.float64)
    quantization_error, level_norm = float(arrays["left_out"][0]), float(arrays["reach"][0])
    scaled = query * steps
    step = float(np.abs(scaled).max(initial=0)) / _MAX_LEVEL or 1.0
    levels = np.rint(scaled / step)
    query_norm, max_step = _norm(query.astype(np.float64)), float(steps.max(initial=0))
    quantization = query_norm * quantization_error + _norm(scaled - step * levels) * level_norm
    # FAISS's inner product and the exact one: each within dim · ε/2 · |q| · |p| (Higham 2002, section 3.1).
    dim = len(query)
    rounding = dim * _EPSILON * (quantization + 2 * query_norm * level_norm * max_step) + 2 * dim * _TINY
    error_bound = quantization + rounding
    scores = np.full(min(count, len(copy)), _round_down((min_score - error_bound) / step), np.float32)
    rows = _scan(copy, levels.astype(np.float32), scores)
    found = rows >= 0
    approximate = step * scores[found].astype(np.float64)
    others_upper = -np.inf if np.count_nonzero(found) == len(copy) else step * float(scores.min()) + error_bound
    return BoundedCandidates(rows[found], approximate - error_bound, approximate + error_bound, others_upper)


def load_faiss() -> Any:
    """Import FAISS at its first use, which takes 0.1 s; untyped, because its type hints lack what SWIG generates."""
    import faiss

    return faiss


def _scan(copy: npt.NDArray[np.uint8], query: Array, scores: Array) -> Longs:
    """Return the rows with inner products above `scores`, and write these products to it.

    Missing rows are -1. scores: A heap, of equal numbers at first. query: Integers in the range of int8, because some
    of FAISS's loops accept no others; its floating-point loops give the same result up to 1,040 dimensions, and differ
    by rounding beyond.
    """
    faiss, padded = load_faiss(), np.zeros(copy.shape[1], np.float32)
    padded[: len(query)] = query
    rows = np.full(len(scores), -1, np.int64)
    quantizer = faiss.ScalarQuantizer(len(padded), faiss.ScalarQuantizer.QT_8bit_direct_signed)
    scanner = quantizer.select_InvertedListScanner(faiss.METRIC_INNER_PRODUCT, None, True, None, False)
    heap = faiss.swig_ptr(scores), faiss.swig_ptr(rows)
    try:
        scanner.set_query(faiss.swig_ptr(padded))
        scanner.set_list(0, 0.0)  # so that rows are numbered from 0
        scanner.scan_codes(len(copy), faiss.swig_ptr(copy), None, *heap, len(scores))
    finally:
        scanner.__swig_destroy__(scanner)  # SWIG leaks it: it believes that the quantizer owns it
    return rows


def _padded(dim: int) -> int:
    return dim + -dim % _DIM_MULTIPLE


def max_norm(vectors: npt.NDArray[np.floating[Any]]) -> float:
    """Return the largest norm of the rows; 0 without rows.

    It is computed in float64, since squares overflow in float32.
    """
    blocks = (vectors[start : start + _BLOCK_ROWS] for start in range(0, len(vectors), _BLOCK_ROWS))
    return max((float(np.linalg.norm(block.astype(np.float64), axis=1).max()) for block in blocks), default=0.0)


def _norm(vector: npt.NDArray[np.float64]) -> float:
    return math.sqrt(vector @ vector)


def _round_down(value: float) -> float:
    """Return a float32 below the value, within the range of products of int8 vectors."""
    return min(max(value - abs(value) * 2 * _EPSILON, -_MAX_PRODUCT), _MAX_PRODUCT)

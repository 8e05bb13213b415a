"""Approximate MaxSim over int8 vectors, with error bounds.

The quantization errors of the vectors and of the queries bound the error of a score, so that only rows that may be in
the top k need exact scoring.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array, Ints, MultiVectors
from m3_integrations.core.scoring import in_parts
from m3_integrations.index.local.segments import RaggedRows
from m3_integrations.index.quantization.codecs import Codec, decode_scales
from m3_integrations.index.quantization.int8_matmul import MAX_DIM, MIN_DIM, has_int8_matmul, int8_matmul
from m3_integrations.index.quantization.multi_vector_int8 import CODE_ARRAYS, ErrorBounds, Norms, norms

_MAX_LEVEL = 127
_BLOCK_VECTORS = 1 << 15
_BLOCK_QUERY_VECTORS = 256
_BLOCK_SIMILARITIES = 1 << 23
_MIN_SIMILARITIES_TO_LOAD_TORCH = 1 << 24
_EPSILON = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)


class ApproximateScores(NamedTuple):
    """Scores with bounds of their errors.

    Attributes:
        scores: Shape (queries, rows).
        error_bound: Upper bound on the error of each query's scores, shape (queries,); inf if unknown.
    """

    scores: Array
    error_bound: Norms


class _Block(NamedTuple):
    """Vectors and scales of some rows; starts: first vector of each non-empty row."""

    numbers: npt.NDArray[np.int8]
    scales: Array
    starts: Ints
    is_filled: npt.NDArray[np.bool_]


def approximate_maxsim(
    rows: RaggedRows, bounds: ErrorBounds, codec: Codec | None, queries: MultiVectors
) -> ApproximateScores | None:
    """Score rows by int8 MaxSim.

    Args:
        rows: At least one row.
        bounds: Norm and quantization-error bounds over all vectors of the index.
        codec: Codec of the stored vectors; None if they are float32 with an int8 copy.
        queries: Queries to score.

    Returns:
        Scores and, per query, an upper bound on their error; None if int8 scoring is unavailable or not worth loading
        torch for.
    """
    similarities = len(queries.values) * int(rows.counts.sum())
    is_worth_loading = "torch" in sys.modules or similarities >= _MIN_SIMILARITIES_TO_LOAD_TORCH
    if not similarities or not MIN_DIM <= queries.width <= MAX_DIM or not is_worth_loading or not has_int8_matmul():
        return None
    query_blocks = [
        _QuantizedQueries(queries.take(part), bounds, codec) for part in in_parts(queries.counts, _BLOCK_QUERY_VECTORS)
    ]
    block_vectors = min(_BLOCK_VECTORS, _BLOCK_SIMILARITIES // max(each.count for each in query_blocks))
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = [
            np.concatenate([each.scores(block) for each in query_blocks])
            for block in map(_read_block, map(rows.take, in_parts(rows.counts, max(1, block_vectors))))
        ]
    scores, error_bound = np.concatenate(blocks, axis=1), np.concatenate([each.error_bound for each in query_blocks])
    is_bounded = np.isfinite(scores).all(axis=1) & np.isfinite(error_bound)
    return ApproximateScores(scores, np.where(is_bounded, error_bound, np.inf))


class _QuantizedQueries:
    """Queries in int8, with error bounds; count: number of query vectors."""

    def __init__(self, queries: MultiVectors, bounds: ErrorBounds, codec: Codec | None) -> None:
        values = queries.values.astype(np.float64)
        center = np.zeros(queries.width) if codec is None else codec.center.astype(np.float64)
        largest = np.abs(values).max(axis=1, initial=0)
        self._steps = np.where(largest > 0, largest, 1)[:, None] / _MAX_LEVEL
        levels = np.rint(values / self._steps)
        self._numbers = levels.astype(np.int8)
        self._center_scores = (values @ center)[:, None]
        self._is_filled = queries.counts > 0
        self._begins, self._counts = queries.offsets[:-1][self._is_filled], queries.counts[self._is_filled]
        self.count = len(values)
        query_norms, query_errors = norms(values), norms(values - self._steps * levels)
        terms = queries.width + int(queries.counts.max()) + 8
        max_norm = float(norms(center[None])[0]) + bounds.max_norm + bounds.quantization_error
        # Every sum, here and in exact scoring, is within terms · ε/2 · |q| · |p| (Higham 2002, section 3.1). Twice that
        # covers the rounding of single numbers when decoding, subtracting, scaling and averaging.
        quantization = query_norms * bounds.quantization_error + query_errors * bounds.max_norm
        rounding = 2 * terms * (_EPSILON * query_norms * max_norm + _TINY)
        self.error_bound = np.zeros(len(queries))
        self.error_bound[self._is_filled] = self._means((quantization + rounding)[:, None])[:, 0]

    def scores(self, block: _Block) -> Array:
        """Return the approximate scores of a block, shape (queries, rows)."""
        scores = np.zeros((len(self.error_bound), len(block.is_filled)), np.float32)
        if len(block.starts) and self.count:
            products = int8_matmul(self._numbers, block.numbers)
            similarities = np.multiply(products, block.scales, dtype=np.float32)
            best = np.maximum.reduceat(similarities, block.starts, axis=1) * self._steps
            best += self._center_scores
            scores[np.ix_(self._is_filled, block.is_filled)] = self._means(best)
        return scores

    def _means(self, values: Norms) -> Norms:
        """Average (query vectors, rows) to (non-empty queries, rows)."""
        means: Norms = np.add.reduceat(values, self._begins, axis=0) / self._counts[:, None]
        return means


def _read_block(rows: RaggedRows) -> _Block:
    merged = rows.merge_adjacent()
    merged.verify(*CODE_ARRAYS)
    spans = list(merged.spans())
    numbers, scales = (
        np.concatenate([segment.arrays.unverified(name)[span] for segment, span in spans]) for name in CODE_ARRAYS
    )
    counts = rows.counts
    is_filled = counts > 0
    return _Block(numbers, decode_scales(scales), (np.cumsum(counts) - counts)[is_filled], is_filled)

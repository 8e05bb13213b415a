"""Running best k of unmoved passages per query, found in one pass over blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.nudging.judged import Floats, Ints

ROWS = 4096  # passages in a block
CELLS = 1 << 22  # scores in a block
ROUNDING = 4e-6  # generous rounding error of a float32 product of unit vectors


class RunningTopK(NamedTuple):
    """Best scores and rows of each query, shape (queries, k), best first; -inf and -1 where there are fewer."""

    scores: Floats
    rows: Ints

    @classmethod
    def empty(cls, queries: int, k: int) -> RunningTopK:
        return cls(np.full((queries, k), -np.inf), np.full((queries, k), -1, np.int64))

    def take(self, queries: Ints) -> RunningTopK:
        return RunningTopK(self.scores[queries], self.rows[queries])

    def first(self, k: int) -> RunningTopK:
        """Return the best k of each query."""
        return RunningTopK(self.scores[:, :k], self.rows[:, :k])

    def update(self, blocks: Iterable[tuple[Ints, Floats]], queries: Floats) -> RunningTopK:
        """Update with blocks of row numbers (any,) and vectors (any, dim), each read once.

        Raises:
            NonFiniteVector: If a passage holds NaN or infinity.
        """
        best = RunningTopK(self.scores.copy(), self.rows.copy())
        lengths = np.linalg.norm(queries, axis=1)
        batch = max(1, CELLS // ROWS)
        for rows, block in blocks:
            for start in range(0, len(queries), batch):
                part = slice(start, start + batch)
                _improve(RunningTopK(best.scores[part], best.rows[part]), queries[part], lengths[part], rows, block)
        return best

    def with_scores(self, queries: Ints, rows: Ints, scores: Floats) -> RunningTopK:
        """Update with pairs of query, row and score, each of shape (pairs,)."""
        best = RunningTopK(self.scores.copy(), self.rows.copy())
        _put(best, queries, rows, scores)
        return best

    def join(self, other: RunningTopK) -> RunningTopK:
        """Join with the best of other passages for the same queries."""
        query_rows, places = np.nonzero(other.rows >= 0)
        return self.with_scores(query_rows, other.rows[query_rows, places], other.scores[query_rows, places])


def unmoved_blocks(passages: Floats, moved: Ints) -> Iterator[tuple[Ints, Floats]]:
    """Yield the passages except the rows `moved` (ascending), at most ROWS at a time."""
    for start in range(0, len(passages), ROWS):
        stop = min(start + ROWS, len(passages))
        here = moved[np.searchsorted(moved, start) : np.searchsorted(moved, stop)] - start
        rows = np.delete(np.arange(start, stop), here)
        if len(rows):
            yield rows, passages[rows] if len(here) else passages[start:stop]


def numbered(background: Iterable[Floats], first: int, dim: int) -> Iterator[tuple[Ints, Floats]]:
    """Yield blocks of background passages with their rows, counting from `first`.

    Raises:
        WrongDimension: If a block does not have shape (any, dim).
    """
    for each in background:
        if each.ndim != 2 or each.shape[1] != dim:
            raise WrongDimension(f"background blocks are (any, {dim}), got shape {each.shape}")
        for start in range(0, len(each), ROWS):
            block = each[start : start + ROWS]
            yield np.arange(first + start, first + start + len(block)), block
        first += len(each)


def _improve(best: RunningTopK, queries: Floats, lengths: Floats, rows: Ints, block: Floats) -> None:
    """Update `best` in place with a block; `lengths` are those of the queries."""
    k = best.scores.shape[1]
    margin = ROUNDING * lengths * np.sqrt(np.einsum("pd,pd->p", block, block).max(initial=0))
    scores = queries @ block.T
    _require_finite(scores, rows)
    floor = best.scores[:, -1]
    fresh = np.isneginf(floor)
    if fresh.any() and len(rows) > k:
        floor = np.where(fresh, np.partition(scores, -k, axis=1)[:, -k], floor)
    query_rows, places = np.nonzero(scores >= (floor - margin)[:, None].astype(scores.dtype))
    if not len(query_rows):
        return
    # Scored again in float64, so that equal passages have equal scores in every block.
    _put(best, query_rows, rows[places], pair_products(queries, query_rows, block, places))


def _put(best: RunningTopK, query_rows: Ints, rows: Ints, scores: Floats) -> None:
    """Insert pairs into `best` in place; ties break by row."""
    known, places = np.nonzero(np.isin(np.arange(len(best.rows)), query_rows)[:, None] & (best.rows >= 0))
    every = np.concatenate([known, query_rows])
    score = np.concatenate([best.scores[known, places], scores])
    row = np.concatenate([best.rows[known, places], rows])
    order = np.lexsort((row, -score, every))
    every, score, row = every[order], score[order], row[order]
    place = np.arange(len(every)) - np.searchsorted(every, every)
    keep = place < best.scores.shape[1]
    best.scores[every[keep], place[keep]] = score[keep]
    best.rows[every[keep], place[keep]] = row[keep]


def _require_finite(scores: Floats, rows: Ints) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(scores.sum()):  # one pass, no copy; a NaN anywhere makes it NaN
            return
    bad = ~np.isfinite(scores).all(axis=0)
    if bad.any():
        raise NonFiniteVector(f"passage {rows[np.argmax(bad)]} holds NaN or infinity; re-encode it or leave it out")


def pair_products(queries: Floats, query_rows: Ints, passages: Floats, places: Ints) -> Floats:
    """Return the float64 products of queries[query_rows[i]] and passages[places[i]], shape (pairs,)."""
    products = np.empty(len(query_rows))
    for start in range(0, len(query_rows), ROWS):
        part = slice(start, start + ROWS)
        a, b = queries[query_rows[part]].astype(np.float64), passages[places[part]].astype(np.float64)
        np.einsum("pd,pd->p", a, b, out=products[part])
    return products

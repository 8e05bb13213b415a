"""What does not move enters a sweep through each query's k best alone, and those are found in one pass over blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.nudging.judged import Floats, Ints

ROWS = 4096  # passages in a block
CELLS = 1 << 22  # scores in a block
LOST = 4e-6  # what a float32 product of vectors of length 1 may lose to rounding, amply


class Still(NamedTuple):
    """Each query's best among what does not move, best first: scores (queries, k) float64, rows (queries, k).

    Where there are fewer than k, scores of -inf and rows of -1.
    """

    scores: Floats
    rows: Ints

    @classmethod
    def nothing(cls, queries: int, k: int) -> Still:
        return cls(np.full((queries, k), -np.inf), np.full((queries, k), -1, np.int64))

    def take(self, queries: Ints) -> Still:
        return Still(self.scores[queries], self.rows[queries])

    def first(self, k: int) -> Still:
        """The k best of each."""
        return Still(self.scores[:, :k], self.rows[:, :k])

    def with_(self, blocks: Iterable[tuple[Ints, Floats]], queries: Floats) -> Still:
        """The best of these and those in `blocks`, which are seen once: row numbers (any,) and vectors (any, dim).

        queries: (queries, dim). Raises NonFiniteVector for a passage that is not finite.
        """
        best = Still(self.scores.copy(), self.rows.copy())
        lengths = np.linalg.norm(queries, axis=1)
        batch = max(1, CELLS // ROWS)
        for rows, block in blocks:
            for start in range(0, len(queries), batch):
                part = slice(start, start + batch)
                _improve(Still(best.scores[part], best.rows[part]), queries[part], lengths[part], rows, block)
        return best

    def with_scores(self, queries: Ints, rows: Ints, scores: Floats) -> Still:
        """The best of these and of such pairs: (pairs,) query, row and score."""
        best = Still(self.scores.copy(), self.rows.copy())
        _put(best, queries, rows, scores)
        return best

    def join(self, other: Still) -> Still:
        """The best of both, which are of different passages and the same queries."""
        askers, places = np.nonzero(other.rows >= 0)
        return self.with_scores(askers, other.rows[askers, places], other.scores[askers, places])


def resting(passages: Floats, moved: Ints) -> Iterator[tuple[Ints, Floats]]:
    """The passages but for the rows `moved`, ascending, at most ROWS at a time."""
    for start in range(0, len(passages), ROWS):
        stop = min(start + ROWS, len(passages))
        here = moved[np.searchsorted(moved, start) : np.searchsorted(moved, stop)] - start
        rows = np.delete(np.arange(start, stop), here)
        if len(rows):
            yield rows, passages[rows] if len(here) else passages[start:stop]


def numbered(background: Iterable[Floats], first: int, dim: int) -> Iterator[tuple[Ints, Floats]]:
    """The rows of a background, numbered on from `first`. Raises WrongDimension for a block that is not (any, dim)."""
    for each in background:
        if each.ndim != 2 or each.shape[1] != dim:
            raise WrongDimension(f"background blocks are (any, {dim}), got shape {each.shape}")
        for start in range(0, len(each), ROWS):
            block = each[start : start + ROWS]
            yield np.arange(first + start, first + start + len(block)), block
        first += len(each)


def _improve(best: Still, queries: Floats, lengths: Floats, rows: Ints, block: Floats) -> None:
    """Take into `best`, in place, what this block has to offer to queries of these lengths."""
    k = best.scores.shape[1]
    margin = LOST * lengths * np.sqrt(np.einsum("pd,pd->p", block, block).max(initial=0))
    scores = queries @ block.T
    _require_finite(scores, rows)
    floor = best.scores[:, -1]
    fresh = np.isneginf(floor)
    if fresh.any() and len(rows) > k:
        floor = np.where(fresh, np.partition(scores, -k, axis=1)[:, -k], floor)
    askers, places = np.nonzero(scores >= (floor - margin)[:, None].astype(scores.dtype))
    if not len(askers):
        return
    # Scored again in double precision: equal passages are then equal, wherever they lie.
    _put(best, askers, rows[places], pair_products(queries, askers, block, places))


def _put(best: Still, askers: Ints, rows: Ints, scores: Floats) -> None:
    """Take these pairs into `best`, in place; ties by row."""
    known, places = np.nonzero(np.isin(np.arange(len(best.rows)), askers)[:, None] & (best.rows >= 0))
    every = np.concatenate([known, askers])
    score = np.concatenate([best.scores[known, places], scores])
    row = np.concatenate([best.rows[known, places], rows])
    order = np.lexsort((row, -score, every))
    every, score, row = every[order], score[order], row[order]
    place = np.arange(len(every)) - np.searchsorted(every, every)
    kept = place < best.scores.shape[1]
    best.scores[every[kept], place[kept]] = score[kept]
    best.rows[every[kept], place[kept]] = row[kept]


def _require_finite(scores: Floats, rows: Ints) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(scores.sum()):  # one pass, no copy; a NaN anywhere makes it NaN
            return
    bad = ~np.isfinite(scores).all(axis=0)
    if bad.any():
        raise NonFiniteVector(f"passage {rows[np.argmax(bad)]} holds NaN or infinity; re-encode it or leave it out")


def pair_products(queries: Floats, askers: Ints, passages: Floats, places: Ints) -> Floats:
    """(pairs,) float64: the product of `queries[askers[i]]` with `passages[places[i]]`."""
    products = np.empty(len(askers))
    for start in range(0, len(askers), ROWS):
        part = slice(start, start + ROWS)
        a, b = queries[askers[part]].astype(np.float64), passages[places[part]].astype(np.float64)
        np.einsum("pd,pd->p", a, b, out=products[part])
    return products

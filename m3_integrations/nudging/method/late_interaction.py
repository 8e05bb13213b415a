"""NUDGE for multi-vectors: each query vector pulls the passage vector that it matches, and only those rotate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from m3_integrations.core.encoded import Array, MultiVectors
from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.method.closed_form import direction_to, rotate_along


class MatchedVectors(NamedTuple):
    """Vectors of one passage that queries match: positions (m,), ascending, and pulls (m, dim)."""

    places: Ints
    pulls: Floats


class MaxSimAlignment(NamedTuple):
    """Which vector of a passage each query vector matches: the argmax of MaxSim, the first of equals.

    Attributes:
        query_rows: The query of each vector, shape (vectors,).
        vectors: Query vectors, shape (vectors, dim).
        strengths: Weight of each vector, shape (vectors,).
        places: Position of the matched passage vector, shape (vectors,).
        mean: Mean of all training queries' vectors, shape (dim,).
    """

    query_rows: Ints
    vectors: Array
    strengths: Array
    places: Ints
    mean: Floats

    @classmethod
    def of(cls, passage: Array, queries: Sequence[Array], strengths: Sequence[float], mean: Floats) -> MaxSimAlignment:
        """Align queries (tokens_i, dim), each with its weight, to a passage (tokens, dim) that is not empty."""
        counts = [len(each) for each in queries]
        vectors = np.concatenate([*queries, np.empty((0, passage.shape[1]), np.float32)])
        hard = np.repeat(np.asarray(strengths, np.float32), counts)
        return cls(np.repeat(np.arange(len(counts)), counts), vectors, hard, (vectors @ passage.T).argmax(axis=1), mean)

    def pulls(self, queries: Ints | None = None, center: float = 0.0) -> MatchedVectors:
        """Return the pulls of all queries or of these alone, with `center` times the mean vector subtracted."""
        mine = slice(None) if queries is None else np.isin(self.query_rows, queries)
        order = np.argsort(self.places[mine], kind="stable")
        places, starts = np.unique(self.places[mine][order], return_index=True)
        pulling = self.strengths[mine, None] * (self.vectors[mine] - center * self.mean)
        pulls = np.add.reduceat(pulling[order], starts, axis=0) if len(places) else pulling[:0]
        return MatchedVectors(places, pulls.astype(np.float32))

    def pulls_by_group(self, groups: Sequence[Ints], centers: Sequence[float]) -> tuple[Ints, Floats]:
        """Return the matched positions, ascending (m,), and pulls of shape (centers, groups, m, dim).

        The queries of each group pull alone; a vector that none of them matches has a pull of zeros.
        """
        order = np.argsort(self.places, kind="stable")
        places, starts = np.unique(self.places[order], return_index=True)
        vectors, query_rows, strengths = self.vectors[order], self.query_rows[order], self.strengths[order]
        pulls = np.empty((len(centers), len(groups), len(places), vectors.shape[1]), np.float32)
        for group, queries in enumerate(groups):
            pulling = strengths * np.isin(query_rows, queries)
            sums = np.add.reduceat(pulling[:, None] * vectors, starts, axis=0)
            totals = np.add.reduceat(pulling, starts)[:, None] * self.mean
            for i, center in enumerate(centers):
                pulls[i, group] = sums - np.float32(center) * totals
        return places, pulls


class MovedVectors(NamedTuple):
    """Moved vectors of some passages, ragged: those of `rows[i]` are at offsets[i]:offsets[i + 1].

    Attributes:
        rows: Passages, ascending, shape (passages,).
        offsets: Start of each passage, shape (passages + 1,).
        places: Positions among the passage's vectors, shape (total,).
        vectors: New vectors, shape (total, dim).
    """

    rows: Ints
    offsets: Ints
    places: Ints
    vectors: Array

    @classmethod
    def of(cls, moved: Sequence[tuple[int, Ints, Array]], width: int) -> MovedVectors:
        """Build from one (row, places, vectors) per passage, by ascending row."""
        rows = np.array([row for row, _, _ in moved], np.int64)
        offsets = np.cumsum([0, *(len(places) for _, places, _ in moved)])
        places = np.concatenate([np.empty(0, np.int64), *(each for _, each, _ in moved)])
        vectors = np.concatenate([np.empty((0, width), np.float32), *(each for _, _, each in moved)])
        return cls(rows, offsets, places, vectors)

    def by_row(self) -> dict[int, tuple[Ints, Array]]:
        """Return (places, vectors) by row."""
        spans = [slice(low, high) for low, high in itertools.pairwise(self.offsets.tolist())]
        return {
            row: (self.places[span], self.vectors[span]) for row, span in zip(self.rows.tolist(), spans, strict=True)
        }

    def among(self, rows: Ints) -> MovedVectors:
        """Return the moved vectors of these passages alone."""
        mine = set(rows.tolist())
        parts = [(row, *moved) for row, moved in self.by_row().items() if row in mine]
        return MovedVectors.of(parts, self.vectors.shape[1])

    def put_into(self, passages: MultiVectors, rows: Ints) -> MultiVectors:
        """Return the multi-vectors of the passages `rows` with the moved vectors in place."""
        order = np.argsort(rows)
        starts = passages.offsets[order[np.searchsorted(rows[order], self.rows)]]
        values = np.array(passages.values)
        values[np.repeat(starts, np.diff(self.offsets)) + self.places] = self.vectors
        return MultiVectors(values, passages.offsets)


def rotate_matched(passage: Array, matched: MatchedVectors, gamma: float) -> Array:
    """Rotate the matched vectors towards their pulls by a chord of at most sqrt(gamma), shape (m, dim).

    The rule of NUDGE-N (arXiv 2409.02343) for each vector, an extension of ours.
    """
    before = passage[matched.places]
    return rotate_along(before, direction_to(before, matched.pulls), gamma)

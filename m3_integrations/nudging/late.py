"""NUDGE for late interaction: each vector of a query pulls the passage vector that it matches, and only those turn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from m3_integrations.core.encoded import Array, MultiVectors
from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.solve import bearing, turn_by


class Matched(NamedTuple):
    """The vectors of one passage that queries match, ascending, and what pulls each of them.

    places: (m,) among the passage's vectors; pulls: (m, width).
    """

    places: Ints
    pulls: Floats


class Matching(NamedTuple):
    """Which vector of one passage each vector of its queries matches: the argmax of MaxSim, the first of equals.

    asked: (vectors,) the query of each vector; vectors: (vectors, width); strengths, places: (vectors,).
    mean: (width,) of all training queries' vectors.
    """

    asked: Ints
    vectors: Array
    strengths: Array
    places: Ints
    mean: Floats

    @classmethod
    def of(cls, passage: Array, queries: Sequence[Array], strengths: Sequence[float], mean: Floats) -> Matching:
        """passage: (tokens, width), not empty; queries: (tokens_i, width) each, with how hard it pulls."""
        counts = [len(each) for each in queries]
        vectors = np.concatenate([*queries, np.empty((0, passage.shape[1]), np.float32)])
        hard = np.repeat(np.asarray(strengths, np.float32), counts)
        return cls(np.repeat(np.arange(len(counts)), counts), vectors, hard, (vectors @ passage.T).argmax(axis=1), mean)

    def pulls(self, who: Ints | None = None, centre: float = 0.0) -> Matched:
        """The pulls of all queries, or of these alone; `centre` of the mean vector is taken from each vector first."""
        mine = slice(None) if who is None else np.isin(self.asked, who)
        order = np.argsort(self.places[mine], kind="stable")
        places, starts = np.unique(self.places[mine][order], return_index=True)
        pulling = self.strengths[mine, None] * (self.vectors[mine] - centre * self.mean)
        pulls = np.add.reduceat(pulling[order], starts, axis=0) if len(places) else pulling[:0]
        return Matched(places, pulls.astype(np.float32))


class MovedVectors(NamedTuple):
    """Vectors of some passages that moved, ragged: passage `rows[i]` has them at places[offsets[i]:offsets[i + 1]].

    rows: (passages,) ascending; places: (total,) among the passage's own vectors; vectors: (total, width).
    """

    rows: Ints
    offsets: Ints
    places: Ints
    vectors: Array

    @classmethod
    def of(cls, moved: Sequence[tuple[int, Ints, Array]], width: int) -> MovedVectors:
        """From one (row, places, vectors) a passage, by ascending row."""
        rows = np.array([row for row, _, _ in moved], np.int64)
        offsets = np.cumsum([0, *(len(places) for _, places, _ in moved)])
        places = np.concatenate([np.empty(0, np.int64), *(each for _, each, _ in moved)])
        vectors = np.concatenate([np.empty((0, width), np.float32), *(each for _, _, each in moved)])
        return cls(rows, offsets, places, vectors)

    def by_row(self) -> dict[int, tuple[Ints, Array]]:
        """Row -> (places, vectors)."""
        spans = [slice(low, high) for low, high in itertools.pairwise(self.offsets.tolist())]
        return {
            row: (self.places[span], self.vectors[span]) for row, span in zip(self.rows.tolist(), spans, strict=True)
        }

    def among(self, rows: Ints) -> MovedVectors:
        """Those of these passages alone."""
        mine = set(rows.tolist())
        parts = [(row, *moved) for row, moved in self.by_row().items() if row in mine]
        return MovedVectors.of(parts, self.vectors.shape[1])

    def put_into(self, passages: MultiVectors, rows: Ints) -> MultiVectors:
        """The multi-vectors of the passages `rows`, which hold all of ours, with the moved ones in place."""
        order = np.argsort(rows)
        starts = passages.offsets[order[np.searchsorted(rows[order], self.rows)]]
        values = np.array(passages.values)
        values[np.repeat(starts, np.diff(self.offsets)) + self.places] = self.vectors
        return MultiVectors(values, passages.offsets)


def turned(passage: Array, matched: Matched, gamma: float) -> Array:
    """(m, width): the matched vectors turned towards their pulls by a chord of at most √gamma; the rest stay.

    The rule of NUDGE-N (arXiv 2409.02343), vector by vector: an extension of ours.
    """
    before = passage[matched.places]
    return turn_by(before, bearing(before, matched.pulls), gamma)

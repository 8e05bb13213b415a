"""NUDGE for late interaction: each vector of a query pulls the passage vector that it matches, and only those turn."""

from __future__ import annotations

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
        places, at = np.unique(self.places[mine], return_inverse=True)
        pulls = np.zeros((len(places), self.vectors.shape[1]))
        np.add.at(pulls, at, self.strengths[mine, None] * (self.vectors[mine] - centre * self.mean))
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
    def of(cls, rows: Sequence[int], places: Sequence[Ints], vectors: Sequence[Array], width: int) -> MovedVectors:
        offsets = np.cumsum([0, *(len(each) for each in places)])
        nowhere, nothing = np.empty(0, np.int64), np.empty((0, width), np.float32)
        return cls(
            np.asarray(rows, np.int64), offsets, np.concatenate([nowhere, *places]), np.concatenate([nothing, *vectors])
        )

    def put_into(self, passages: MultiVectors, rows: Ints) -> MultiVectors:
        """The multi-vectors of the passages `rows`, ascending and holding all of ours, with the moved ones in place."""
        starts = passages.offsets[np.searchsorted(rows, self.rows)]
        values = np.array(passages.values)
        values[np.repeat(starts, np.diff(self.offsets)) + self.places] = self.vectors
        return MultiVectors(values, passages.offsets)


def turned(passage: Array, matched: Matched, gamma: float) -> Array:
    """(m, width): the matched vectors turned towards their pulls by a chord of at most √gamma; the rest stay.

    The rule of NUDGE-N (arXiv 2409.02343), vector by vector: an extension of ours.
    """
    before = passage[matched.places]
    return turn_by(before, bearing(before, matched.pulls), gamma)

"""What a search proposes after a nudge: what a report ranks, so that its figures are those of the index."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from m3_integrations.core.encoded import Mode
from m3_integrations.nudging.corpus import Corpus
from m3_integrations.nudging.hybrid import Moved, Race, dense_move, sparse_move
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.ladders import Pairs, late_ladders
from m3_integrations.nudging.late import MovedVectors
from m3_integrations.nudging.panels import Panels
from m3_integrations.nudging.plans import Plan
from m3_integrations.nudging.rank_metric import RankMetric

JUDGES = 64  # whose scores of all passages are in memory at once


def proposed(corpus: Corpus, panels: Panels, race: Race, moved: Mapping[Mode, Moved]) -> Pairs:
    """What the search of `race` proposes to each judge, the passages moved so by all but the panel's silent queries."""
    n = len(corpus)
    count = min(max(race.candidates, RankMetric.of(race.metric).k), n)
    keys = [np.empty(0, np.int64)]
    for panel in range(len(panels.silent)):
        seats, pullers = panels.seated(panel), panels.pullers(panel)
        for mode in race.propose:
            if len(seats) and mode in corpus.modes:
                scores = _Scores(corpus, pullers, mode, moved.get(mode))
                keys += [
                    scores.best(panels.judges, part, count) for part in np.array_split(seats, -(-len(seats) // JUDGES))
                ]
    every = np.unique(np.concatenate(keys))
    return Pairs(every // n, every % n)


class _Scores:
    """Scores of all passages in one mode, those that moved where they are then; None: none did."""

    def __init__(self, corpus: Corpus, pullers: Judged, mode: Mode, moved: Moved | None) -> None:
        self.corpus, self.pullers, self.mode, self.moved = corpus, pullers, mode, moved
        self.again: Moved | None = None
        if moved is not None and mode == "dense":
            plan = Plan(moved.method, moved.spread, moved.centre)
            self.again = dense_move(corpus, pullers, plan, moved.gamma)
        elif moved is not None and mode == "sparse":
            self.again = sparse_move(corpus, pullers, moved.gamma, moved.centre)

    def best(self, judges: Judged, which: Ints, count: int) -> Ints:
        """judge * n + row of the best of each of these judges; a sparse score of 0 is none."""
        n, scores = len(self.corpus), self._of(judges.take(which))
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(scores, best, axis=1) > (0.0 if self.mode == "sparse" else -np.inf)
        keys: Ints = (which[:, None] * n + best)[found]
        return keys

    def _of(self, judges: Judged) -> Floats:
        """(judges, n)."""
        if self.mode == "multi_vector":
            return self._late(judges)
        if self.mode == "dense":
            scores = np.asarray(judges.queries @ self.corpus.dense.T)
        else:
            scores = np.asarray((judges.in_modes.sparse @ self.corpus.sparse.T).toarray())
        if self.again is not None:
            scores[:, self.again.rows] = _products(judges, self.again)
        return scores

    def _late(self, judges: Judged) -> Floats:
        n, nobody = len(self.corpus), [np.empty(0, np.int64)]
        every = Pairs(np.repeat(np.arange(len(judges)), n), np.tile(np.arange(n), len(judges)))
        gamma, centre = (self.moved.gamma, self.moved.centre) if self.moved else (0.0, 0.0)
        panels = Panels(self.pullers, judges, np.zeros(len(judges), np.int64), nobody)
        (ladder,) = late_ladders(self.corpus, panels, every, np.array([0.0, gamma]), [centre])
        return ladder.at(gamma).reshape(len(judges), n)


def _products(judges: Judged, moved: Moved) -> Floats:
    """(judges, moved): the scores of what moved, dense or sparse."""
    assert not isinstance(moved.values, MovedVectors)
    if isinstance(moved.values, np.ndarray):
        return np.asarray(judges.queries @ moved.values.T)
    return np.asarray((judges.in_modes.sparse @ moved.values.T).toarray())

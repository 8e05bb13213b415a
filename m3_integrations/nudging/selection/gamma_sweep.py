"""Exact sweeps over gamma: a ranking metric is a step function of gamma.

Two passages change order where their score curves cross (method/trajectories.py). The trajectory is cut into stretches;
passages that cannot be among a query's best k on a stretch are left out of it, and unmoved passages enter through their
best k alone (running_top_k.py). Work grows with the passages that can change the metric, memory with those that move.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.pulls import Pulls
from m3_integrations.nudging.method.trajectories import Trajectory
from m3_integrations.nudging.selection.crossings import (
    MIN_WIDTH,
    TIE,
    CrossingShortlist,
    MovedBlocks,
    Relevant,
    RelevantRanks,
    TopKCandidates,
    find_relevant,
    running_best,
)
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.running_top_k import RunningTopK


@dataclass(frozen=True, eq=False)
class Sweep:
    """A metric as a step function of gamma, query by query.

    Attributes:
        start: Metric of each query at gamma 0, shape (queries,).
        weights: Weight of each query, shape (queries,).
        gammas: Gammas at which a metric changes, ascending.
        query_rows: The query of each change.
        changes: The change itself.
        end: Gamma beyond which nothing moves.
    """

    start: Floats
    weights: Floats
    gammas: Floats
    query_rows: Ints
    changes: Floats
    end: float

    @property
    def before(self) -> float:
        return float(self.start @ self._shares)

    @property
    def _shares(self) -> Floats:
        return np.asarray(self.weights / max(self.weights.sum(), np.finfo(np.float64).tiny))

    def at(self, gamma: float) -> Floats:
        """Return the metric of each query, shape (queries,), at a gamma that is 0 or no crossing."""
        passed = np.searchsorted(self.gammas, gamma) if gamma > 0 else 0
        changes = np.bincount(self.query_rows[:passed], self.changes[:passed], minlength=len(self.start))
        return np.asarray(self.start + changes)

    def level(self, gamma: float) -> float:
        """Return the mean metric at a gamma that is 0 or no crossing."""
        return float(self.at(gamma) @ self._shares)

    def only(self, queries: Ints) -> Sweep:
        """Return the sweep of these queries alone."""
        place = np.full(len(self.start), -1)
        place[queries] = np.arange(len(queries))
        query_rows = place[self.query_rows]
        keep = query_rows >= 0
        return Sweep(
            self.start[queries],
            self.weights[queries],
            self.gammas[keep],
            query_rows[keep],
            self.changes[keep],
            self.end,
        )

    def curve(self) -> tuple[Floats, Floats]:
        """Return the edges of the gamma intervals, shape (s + 1,), and the metric inside each, shape (s,)."""
        levels = self.before + np.concatenate([[0.0], np.cumsum(self.changes * self._shares[self.query_rows])])
        edges = np.concatenate([[0.0], self.gammas, [max([self.end, *self.gammas[-1:]])]])
        wide = np.diff(edges) > MIN_WIDTH * np.maximum(1, edges[:-1])
        return np.append(edges[:-1][wide], edges[-1]), levels[wide]

    def best(self, least: float = 0.0, most: float = np.inf) -> tuple[float, float]:
        """Return the middle of the first best gamma interval and its metric; gamma 0 if none is better.

        Args:
            least: Smallest gamma to consider.
            most: Largest gamma to consider.
        """
        edges, levels = self.curve()
        inside = (edges[1:] > least) & (edges[:-1] < most)
        levels = levels[inside]
        edges = np.clip(np.append(edges[:-1][inside], edges[1:][inside][-1:]), least, most)
        if not len(levels) or levels.max() <= self.before + TIE:
            return 0.0, self.before
        first = int(np.argmax(levels >= levels.max() - TIE))
        low, high = edges[first], edges[first + 1]
        # An interval without an end has its middle on the scale gamma / (1 + gamma), where infinity is 1.
        middle = (low + high) / 2 if np.isfinite(high) else 1 + 2 * low
        return float(middle), float(levels[first])


def sweep(
    passages: Floats, pulls: Pulls, judged: Judged, metric: RankMetric, trajectory: Trajectory, unmoved: RunningTopK
) -> Sweep:
    """Sweep a metric over gamma.

    Args:
        passages: Passages, shape (n, dim).
        pulls: Pulls of the passages that move.
        judged: Evaluation queries, each with an answer.
        metric: Ranking metric.
        trajectory: How passages move with gamma.
        unmoved: Best k of the passages that `pulls` does not move, for these queries.
    """
    movers = MovedBlocks(passages, pulls, trajectory)
    relevant = find_relevant(judged, movers, unmoved)
    shortlist = CrossingShortlist(judged.queries, trajectory, movers.end, unmoved, relevant)
    for block in movers.blocks():
        shortlist.add_block(block)
    return _in_steps(RelevantRanks(relevant, shortlist), relevant, judged, metric, trajectory, movers.end)


def sweep_among(
    found: Sequence[TopKCandidates], relevant: Relevant, judged: Judged, metric: RankMetric, trajectory: Trajectory
) -> Sweep:
    """Sweep if all passages move, from the candidates of each part; rows of `relevant` count all passages."""
    end = trajectory.end(np.array([each.arrival for each in found]))
    shortlist = CrossingShortlist(judged.queries, trajectory, end, RunningTopK.empty(len(judged), metric.k), relevant)
    for each in found:
        shortlist.add_candidates(each)
    return _in_steps(RelevantRanks(relevant, shortlist), relevant, judged, metric, trajectory, end)


def _in_steps(
    ranks: RelevantRanks, relevant: Relevant, judged: Judged, metric: RankMetric, trajectory: Trajectory, end: float
) -> Sweep:
    pairs, t, rank = _timeline(ranks)
    gains = metric.gains_by_rank(judged)[relevant.pair]
    start = gains[np.arange(len(gains)), np.minimum(ranks.start, metric.k + 1)]
    timeline = _Timeline(pairs, t, gains[pairs, np.minimum(rank, metric.k + 1)])
    combine = _sums if metric.is_additive else _bests
    start, query_rows, t, changes = combine(start, timeline, relevant.query_row, len(judged))
    order = np.flatnonzero(changes)
    order = order[np.argsort(t[order], kind="stable")]
    gammas = trajectory.gamma(t[order])
    return Sweep(
        start, judged.weights, gammas, query_rows[order], changes[order], float(trajectory.gamma(np.asarray(end)))
    )


class _Timeline(NamedTuple):
    """Gains of relevant passages along the trajectory: from t on, `pair` gains `value`; sorted by pair and t."""

    pair: Ints
    t: Floats
    value: Floats


def _timeline(ranks: RelevantRanks) -> tuple[Ints, Floats, Ints]:
    """Return (relevant, t, rank from there on), sorted by relevant and t."""
    stretches, n = ranks.base.shape
    fixed = np.tile(np.arange(n), stretches), np.repeat(ranks.grid[:-1], n), np.zeros(stretches * n, np.int64)
    pairs, t, change = map(np.concatenate, zip(fixed, *ranks.events, strict=True))
    known = np.concatenate([ranks.base.ravel(), np.full(len(pairs) - stretches * n, -1)])
    order = np.lexsort((known < 0, t, pairs))
    pairs, t, change, known = pairs[order], t[order], change[order], known[order]
    total = np.cumsum(change)
    since = np.maximum.accumulate(np.where(known >= 0, np.arange(len(known)), 0))
    return pairs, t, known[since] + total - total[since]


def _sums(start: Floats, timeline: _Timeline, query_rows: Ints, n: int) -> tuple[Floats, Ints, Floats, Floats]:
    """Return start (n,) and steps by query for metrics that add up the gains of relevant passages."""
    first = np.diff(timeline.pair, prepend=-1) > 0
    changes = np.diff(timeline.value, prepend=0.0)
    changes[first] = timeline.value[first] - start[timeline.pair[first]]
    total = np.bincount(query_rows, start, minlength=n).astype(np.float64)
    return total, query_rows[timeline.pair], timeline.t, changes


def _bests(start: Floats, timeline: _Timeline, query_rows: Ints, n: int) -> tuple[Floats, Ints, Floats, Floats]:
    """Return start (n,) and steps by query for metrics that take the best gain of the relevant passages."""
    most = np.zeros(n)
    np.maximum.at(most, query_rows, start)
    query_row = query_rows[timeline.pair]
    order = np.lexsort((timeline.t, query_row))
    query_row, t = query_row[order], timeline.t[order]
    values = np.empty(len(order))
    edges = np.searchsorted(query_row, np.arange(n + 1))
    for low, high in itertools.pairwise(edges):
        values[low:high] = running_best(timeline.pair[order[low:high]], timeline.value[order[low:high]])
    first = np.diff(query_row, prepend=-1) > 0
    changes = np.diff(values, prepend=0.0)
    changes[first] = values[first] - most[query_row[first]]
    return most, query_row, t, changes

"""Ranks of relevant passages along gamma: where competitors overtake them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.pulls import KnownPulls, Pulls
from m3_integrations.nudging.method.trajectories import TOLERANCE, ScoreCurves, Trajectory
from m3_integrations.nudging.selection.running_top_k import RunningTopK, pair_products

Bools = npt.NDArray[np.bool_]
TIE = 1e-12  # float64 scores closer than this tie, and the lower row ranks first
MIN_WIDTH = 1e-6  # narrower gamma intervals vanish when moved vectors are rounded to float32
STRETCHES = 16  # of a trajectory; the less curves move on a stretch, the shorter its list
ROWS = 2048  # moved passages in a block
CACHED_ROWS = 4 * ROWS  # moved passages whose blocks are cached
CELLS = 1 << 19  # scores in a block
CACHED_CELLS = 1 << 16  # scores that are bounded together, which then stay in the cache
PAIRS = 1 << 17  # pairs of curves in a block
MAX_COMPETITORS = 1 << 20  # found before those that no longer matter are dropped


class TopKCandidates(NamedTuple):
    """Passages of a part of the corpus, all of which moves, that may affect the metric.

    Attributes:
        query_rows: The query of each candidate.
        rows: Its row among all passages.
        curves: Its score curve.
        arrival: The t at which the last passage of the whole part arrives.
    """

    query_rows: Ints
    rows: Ints
    curves: ScoreCurves
    arrival: float


def relevant_of(passages: Floats, pulls: Pulls, judged: Judged, trajectory: Trajectory) -> Relevant:
    """Return the relevant passages of the evaluation queries if all passages move."""
    rows = np.unique(judged.rows)
    movers = MovedBlocks(passages, KnownPulls(rows, pulls.take(np.searchsorted(pulls.rows, rows))), trajectory)
    return find_relevant(judged, movers, RunningTopK.empty(len(judged), 1))


def top_k_candidates(
    passages: Floats, first: int, pulls: Pulls, queries: Floats, relevant: Relevant, k: int, trajectory: Trajectory
) -> TopKCandidates:
    """Return the candidates of a part of the passages, whose first row among all is `first`."""
    movers = MovedBlocks(passages, pulls, trajectory)
    # The arrival times of other parts are unknown here, so the whole trajectory is examined.
    end = trajectory.end(np.full(1, math.pi))
    shortlist = CrossingShortlist(queries, trajectory, end, RunningTopK.empty(len(queries), k), relevant)
    # A passage that cannot matter in this part still raises the threshold of the others.
    shortlist.most[:] = np.inf
    for block in movers.blocks():
        shortlist.add_block(block)
    competitors = shortlist.competitors()
    query_rows = competitors.stretch_query % max(len(queries), 1)
    _, once = np.unique(query_rows * len(passages) + competitors.row, return_index=True)
    curves = competitors.curves.take(once)
    return TopKCandidates(query_rows[once], first + competitors.row[once], curves, float(movers.arrival.max(initial=0)))


def parts(n: int) -> list[Ints]:
    """Split 0 to n - 1 into blocks of at most ROWS."""
    return [np.arange(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]


class _PassageBlock(NamedTuple):
    """Moving passages in float64: rows (m,), passages and directions (m, dim), arrival times (m,)."""

    rows: Ints
    passages: Floats
    tangent: Floats
    arrival: Floats


class MovedBlocks:
    """The passages that move, in blocks; few blocks are cached, more are computed again when needed."""

    def __init__(self, passages: Floats, pulls: Pulls, trajectory: Trajectory) -> None:
        self.passages, self.pulls, self.trajectory, self.rows = passages, pulls, trajectory, pulls.rows
        self.cached = [self.take(which) for which in parts(len(self.rows))] if len(self.rows) <= CACHED_ROWS else []
        self.arrival = np.zeros(len(self.rows))
        for which, block in zip(parts(len(self.rows)), self.blocks(), strict=True):
            self.arrival[which] = block.arrival
        self.end = trajectory.end(self.arrival)

    def blocks(self) -> Iterable[_PassageBlock]:
        return self.cached or (self.take(which) for which in parts(len(self.rows)))

    def take(self, which: Ints) -> _PassageBlock:
        rows = self.rows[which]
        passages = self.passages[rows].astype(np.float64)
        return _PassageBlock(
            rows, passages, *self.trajectory.direction(passages, self.pulls.take(which).astype(np.float64))
        )

    def find(self, rows: Ints) -> tuple[Ints, Bools]:
        """Return the positions of these rows among those that move, and whether they are there."""
        place = np.minimum(np.searchsorted(self.rows, rows), max(len(self.rows) - 1, 0))
        return place, self.rows[place] == rows if len(self.rows) else np.zeros(len(rows), bool)


class Relevant(NamedTuple):
    """Relevant passages that may count: the judged pair, query, row and score curve of each."""

    pair: Ints
    query_row: Ints
    row: Ints
    curves: ScoreCurves


def find_relevant(judged: Judged, movers: MovedBlocks, unmoved: RunningTopK) -> Relevant:
    """Return relevant passages that move, or are among the best unmoved; others never reach the best k."""
    place, moves = movers.find(judged.rows)
    moving = np.flatnonzero(moves)
    curves = _curves(judged, moving, movers, place[moving])
    staying, spot = np.nonzero(~moves[:, None] & (unmoved.rows[judged.query_ids] == judged.rows[:, None]))
    levels = unmoved.scores[judged.query_ids[staying], spot]
    pair = np.concatenate([moving, staying])
    both = (curves.a, levels), (curves.b, 0 * levels), (curves.end, 0 * levels)
    return Relevant(pair, judged.query_ids[pair], judged.rows[pair], ScoreCurves(*map(np.concatenate, both)))


def _curves(judged: Judged, pairs: Ints, movers: MovedBlocks, places: Ints) -> ScoreCurves:
    curves = ScoreCurves(np.empty(len(pairs)), np.empty(len(pairs)), movers.arrival[places])
    for start in range(0, len(pairs), ROWS):
        part = slice(start, start + ROWS)
        block = movers.take(places[part])
        every, query_rows = np.arange(len(block.rows)), judged.query_ids[pairs[part]]
        curves.a[part] = pair_products(judged.queries, query_rows, block.passages, every)
        curves.b[part] = pair_products(judged.queries, query_rows, block.tangent, every)
    return curves


class _Competitors(NamedTuple):
    """Passages that may rank before a relevant one; stretch_query is stretch * queries + query."""

    stretch_query: Ints
    row: Ints
    curves: ScoreCurves

    @classmethod
    def join(cls, parts: Sequence[_Competitors]) -> _Competitors:
        keys, rows, curves = zip(*parts, strict=True)
        return cls(
            np.concatenate(keys), np.concatenate(rows), ScoreCurves(*map(np.concatenate, zip(*curves, strict=True)))
        )

    def take(self, which: Ints) -> _Competitors:
        return _Competitors(self.stretch_query[which], self.row[which], self.curves.take(which))


class CrossingShortlist:
    """Passages that may be among each query's best k, by stretch, where a relevant passage may be too.

    `floor`, shape (stretches, queries, k), holds scores that k passages have throughout a stretch; a passage that stays
    below cannot matter.
    """

    def __init__(
        self, queries: Floats, trajectory: Trajectory, end: float, unmoved: RunningTopK, relevant: Relevant
    ) -> None:
        self.queries = queries.astype(np.float64)
        self.trajectory, self.unmoved = trajectory, unmoved
        self.grid = np.linspace(0, end, STRETCHES + 1)
        # A curve is bounded by the length of the query, as passages and directions have length about 1.
        self.curvature = 1.01 * trajectory.curvature_bound(end / STRETCHES) * np.linalg.norm(self.queries, axis=1)
        self.floor = self._unmoved_floor()
        self.least, self.most = np.full((2, STRETCHES, len(queries)), [[[np.inf]], [[-np.inf]]])
        for s, low, high in self._spans(relevant.curves, self.curvature[relevant.query_row]):
            np.minimum.at(self.least[s], relevant.query_row, low)
            np.maximum.at(self.most[s], relevant.query_row, high)
        self.found = list(self._unmoved_competitors())
        self.capacity = MAX_COMPETITORS

    def _unmoved_floor(self) -> Floats:
        floor = np.empty((STRETCHES, *self.unmoved.scores.shape))
        for s, low, _ in self._spans(self._unmoved_curves(), np.zeros(())):
            floor[s] = np.where(self.unmoved.rows >= 0, low, -np.inf)
        return floor

    def _unmoved_curves(self) -> ScoreCurves:
        levels = np.where(self.unmoved.rows >= 0, self.unmoved.scores, 0)
        return ScoreCurves(levels, 0 * levels, 0 * levels)

    def _spans(self, curves: ScoreCurves, curvature: Floats) -> Iterator[tuple[int, Floats, Floats]]:
        """Yield for each stretch a lower and an upper bound of each curve."""
        here = self.trajectory.score(self.grid[0], curves)
        for s, t in enumerate(self.grid[1:]):
            there = self.trajectory.score(t, curves)
            yield s, np.minimum(here, there) - curvature, np.maximum(here, there) + curvature
            here = there

    def threshold(self, s: int, part: slice) -> Floats:
        """Return the score that matters on a stretch, inf if no relevant passage can reach the best k."""
        floor = self.floor[s, part].min(axis=-1)
        matters = self.most[s, part] >= floor - TIE
        return np.where(matters, np.maximum(floor, self.least[s, part]) - TIE, np.inf)

    def add_block(self, block: _PassageBlock) -> None:
        batch = max(1, CELLS // len(block.rows))
        for start in range(0, len(self.queries), batch):
            part = slice(start, start + batch)
            a, b = (self.queries[part] @ each.T for each in (block.passages, block.tangent))
            few = max(1, CACHED_CELLS // len(block.rows))
            for low in range(0, len(a), few):
                some = slice(low, min(low + few, len(a)))
                here = slice(start + some.start, start + some.stop)
                self._add_scores(here, ScoreCurves(a[some], b[some], block.arrival), block.rows)

    def add_candidates(self, found: TopKCandidates) -> None:
        """Add candidates that are known already."""
        empty = RunningTopK.empty(len(self.queries), self.floor.shape[2])
        for s, low, high in self._spans(found.curves, self.curvature[found.query_rows]):
            self._raise_floor(s, slice(None), empty.with_scores(found.query_rows, found.rows, low).scores)
            which = np.flatnonzero(high >= self.threshold(s, slice(None))[found.query_rows])
            stretch_query = s * len(self.queries) + found.query_rows[which]
            self._append(_Competitors(stretch_query, found.rows[which], found.curves.take(which)))

    def _add_scores(self, part: slice, curves: ScoreCurves, rows: Ints) -> None:
        for s, low, high in self._spans(curves, self.curvature[part, None]):
            self._raise_floor(s, part, low)
            found = np.flatnonzero(high >= self.threshold(s, part)[:, None])
            if len(found):
                query_rows, places = np.divmod(found, len(rows))
                chosen = ScoreCurves(curves.a[query_rows, places], curves.b[query_rows, places], curves.end[places])
                self._append(_Competitors(s * len(self.queries) + part.start + query_rows, rows[places], chosen))

    def _append(self, competitors: _Competitors) -> None:
        self.found.append(competitors)
        self.capacity -= len(competitors.row)
        if self.capacity < 0:
            self.found = [self._relevant_competitors()]
            self.capacity = max(MAX_COMPETITORS, len(self.found[0].row))

    def _raise_floor(self, s: int, part: slice, low: Floats) -> None:
        floor = self.floor[s, part]
        k, highest = floor.shape[1], low.max(axis=1)
        if k == 1:
            np.maximum(floor[:, 0], highest, out=floor[:, 0])
            return
        risen = highest > floor.min(axis=1)
        if risen.any():
            both = np.concatenate([floor[risen], low[risen]], axis=1)
            floor[risen] = np.partition(both, -k, axis=1)[:, -k:]

    def _relevant_competitors(self) -> _Competitors:
        """Return the competitors that still matter; thresholds rise from block to block."""
        every = _Competitors.join(self.found)
        stretch, query_row = np.divmod(every.stretch_query, len(self.queries))
        ends = [self.trajectory.score(self.grid[stretch + i], every.curves) for i in (0, 1)]
        thresholds = np.stack([self.threshold(s, slice(None)) for s in range(STRETCHES)])
        return every.take(
            np.flatnonzero(np.maximum(*ends) + self.curvature[query_row] >= thresholds[stretch, query_row])
        )

    def competitors(self) -> _Competitors:
        """Return all competitors that matter, sorted by stretch and query."""
        competitors = self._relevant_competitors()
        return competitors.take(np.argsort(competitors.stretch_query, kind="stable"))

    def _unmoved_competitors(self) -> Iterator[_Competitors]:
        query_rows, places = np.nonzero(self.unmoved.rows >= 0)
        curves = ScoreCurves(*(part[query_rows, places] for part in self._unmoved_curves()))
        for s in range(STRETCHES):
            yield _Competitors(s * len(self.queries) + query_rows, self.unmoved.rows[query_rows, places], curves)


class RelevantRanks:
    """The rank of each relevant passage along the trajectory, at most k + 1.

    Attributes:
        start: Rank at gamma 0, shape (relevant,).
        base: Rank just inside each stretch, shape (stretches, relevant).
        events: Where ranks change, and by how much.
    """

    def __init__(self, relevant: Relevant, shortlist: CrossingShortlist) -> None:
        self.relevant, self.competitors = relevant, shortlist.competitors()
        self.grid, self.trajectory = shortlist.grid, shortlist.trajectory
        queries, k = len(shortlist.queries), shortlist.unmoved.scores.shape[1]
        self.start = np.full(len(relevant.row), k + 1)
        self.base = np.full((STRETCHES, len(relevant.row)), k + 1)
        self.events: list[tuple[Ints, Floats, Ints]] = []
        for s in range(STRETCHES):
            keys = s * queries + relevant.query_row
            first, last = (np.searchsorted(self.competitors.stretch_query, keys, side) for side in ("left", "right"))
            for part in _runs(last - first):
                self._count(s, part, first[part], last[part])

    def _count(self, s: int, relevant: Ints, first: Ints, last: Ints) -> None:
        counts = last - first
        mine = np.repeat(np.arange(len(relevant)), counts)
        theirs = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        other = self.competitors.row[theirs] != self.relevant.row[relevant[mine]]
        mine, theirs = mine[other], theirs[other]
        pair_order = _PairwiseOrder(
            self.competitors.curves.take(theirs),
            self.relevant.curves.take(relevant[mine]),
            self.competitors.row[theirs] < self.relevant.row[relevant[mine]],
            self.trajectory,
        )
        if s == 0:
            self.start[relevant] = 1 + np.bincount(mine[pair_order.ahead(self.grid[0])], minlength=len(relevant))
        ahead, changes = pair_order.timeline(self.grid[s], self.grid[s + 1])
        self.base[s, relevant] = 1 + np.bincount(mine[ahead], minlength=len(relevant))
        self.events += [(relevant[mine[which]], t, change) for which, t, change in changes]


class _PairwiseOrder(NamedTuple):
    """Competitors x against relevant passages y, pair by pair; `lower` says that x wins a tie."""

    x: ScoreCurves
    y: ScoreCurves
    lower: Bools
    trajectory: Trajectory

    def ahead(self, t: Floats) -> Bools:
        """Return whether x ranks before y at t."""
        lead = self.trajectory.score(t, self.x) - self.trajectory.score(t, self.y)
        return np.asarray((lead > TIE) | ((lead >= -TIE) & self.lower))

    def timeline(self, low: float, high: float) -> tuple[Bools, list[tuple[Ints, Floats, Ints]]]:
        """Return whether x is ahead just after `low`, and (which, t, +1 or -1) where that changes before `high`."""
        crossings = np.stack(self.trajectory.crossings(self.x, self.y))
        crossings[~((crossings > low + TOLERANCE) & (crossings < high))] = high
        edges = [np.full(len(self.lower), low), *np.sort(crossings, axis=0), np.full(len(self.lower), high)]
        first = ahead = self.ahead((edges[0] + edges[1]) / 2)
        changes = []
        for left, right in itertools.pairwise(edges[1:]):
            # Between two crossings the order in the middle holds throughout.
            now = np.where(right - left > TOLERANCE, self.ahead((left + right) / 2), ahead)
            which = np.flatnonzero(now != ahead)
            changes.append((which, left[which], np.where(now[which], 1, -1)))
            ahead = now
        return first, changes


def _runs(sizes: Ints) -> list[Ints]:
    """Split into runs of neighboring sizes that add up to about PAIRS, without those of size 0."""
    some = np.flatnonzero(sizes)
    run = np.cumsum(sizes[some]) // PAIRS
    return [] if not len(some) else np.split(some, np.flatnonzero(np.diff(run)) + 1)


def running_best(pairs: Ints, values: Floats) -> Floats:
    """Return the best of the latest values of all pairs at each step, shape (steps,)."""
    best = np.zeros(len(values))
    for pair in np.unique(pairs):
        here = np.where(pairs == pair, np.arange(len(pairs)), -1)
        last = np.maximum.accumulate(here)
        np.maximum(best, np.where(last >= 0, values[last], 0), out=best)
    return best

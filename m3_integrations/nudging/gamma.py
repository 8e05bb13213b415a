"""The exact gamma: a ranking metric is piecewise constant in gamma, and each of its steps is a crossing in closed form.

Two passages change places where their score curves cross (ways.py). The way is cut into stretches; what cannot come
among a query's k best on a stretch is left out of it, and what does not move enters through its k best alone
(still.py). So the work grows with what can change the metric, and memory with what moves and one block of the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.still import Still, pair_products
from m3_integrations.nudging.ways import SLACK, Curves, Way

Bools = npt.NDArray[np.bool_]

TIE = 1e-12  # scores are float64 here: nearer than this is rounding, and the lower row goes first
NARROW = 1e-6  # a narrower interval of gamma does not outlast the rounding of moved vectors to float32
STRETCHES = 16  # of the way; shortlists are short where curves hardly move on a stretch
ROWS = 2048  # moved passages in a block
KEPT = 4 * ROWS  # moved passages whose blocks are kept
CELLS = 1 << 19  # scores in a block
PAIRS = 1 << 17  # pairs of curves in a block
CROWD = 1 << 20  # rivals found before those are dropped who no longer matter


class Pulls(Protocol):
    """The passages that move and what pulls them, taken part by part: not all need be there at once."""

    @property
    def rows(self) -> Ints:
        """(m,) the passages that move, ascending."""
        ...

    def take(self, which: Ints) -> Floats:
        """(len(which), dim): the pulls of `rows[which]`."""
        ...


@dataclass(frozen=True, eq=False)
class KnownPulls:
    """Pulls that are there. rows: (m,) ascending; vectors: (m, dim)."""

    rows: Ints
    vectors: Floats

    def take(self, which: Ints) -> Floats:
        return self.vectors[which]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A metric at every gamma, query by query, as steps.

    start: (queries,) the metric of each at gamma 0; weights: (queries,). At `gammas`, ascending, the metric of the
    query `askers` changes by `changes`. Beyond `end` nothing moves.
    """

    start: Floats
    weights: Floats
    gammas: Floats
    askers: Ints
    changes: Floats
    end: float

    @property
    def before(self) -> float:
        return float(self.start @ self._shares)

    @property
    def _shares(self) -> Floats:
        return np.asarray(self.weights / max(self.weights.sum(), np.finfo(np.float64).tiny))

    def at(self, gamma: float) -> Floats:
        """(queries,): the metric of each query at gamma, which is 0 or no crossing."""
        passed = np.searchsorted(self.gammas, gamma) if gamma > 0 else 0
        changes = np.bincount(self.askers[:passed], self.changes[:passed], minlength=len(self.start))
        return np.asarray(self.start + changes)

    def level(self, gamma: float) -> float:
        """The metric at gamma, which is 0 or no crossing."""
        return float(self.at(gamma) @ self._shares)

    def only(self, queries: Ints) -> Sweep:
        """The sweep of these queries alone."""
        place = np.full(len(self.start), -1)
        place[queries] = np.arange(len(queries))
        askers = place[self.askers]
        kept = askers >= 0
        return Sweep(
            self.start[queries], self.weights[queries], self.gammas[kept], askers[kept], self.changes[kept], self.end
        )

    def curve(self) -> tuple[Floats, Floats]:
        """The edges (s + 1,) of the intervals of gamma, and the metric (s,) inside each."""
        levels = self.before + np.concatenate([[0.0], np.cumsum(self.changes * self._shares[self.askers])])
        edges = np.concatenate([[0.0], self.gammas, [max([self.end, *self.gammas[-1:]])]])
        wide = np.diff(edges) > NARROW * np.maximum(1, edges[:-1])
        return np.append(edges[:-1][wide], edges[-1]), levels[wide]

    def best(self) -> tuple[float, float]:
        """The middle of the first best interval of gamma, and the metric there; 0 where none beats it."""
        edges, levels = self.curve()
        if not len(levels) or levels.max() <= self.before + TIE:
            return 0.0, self.before
        first = int(np.argmax(levels >= levels.max() - TIE))
        low, high = edges[first], edges[first + 1]
        # An interval without an end has its middle on the scale gamma / (1 + gamma), where infinity is 1.
        middle = (low + high) / 2 if np.isfinite(high) else 1 + 2 * low
        return float(middle), float(levels[first])


def sweep(passages: Floats, pulls: Pulls, judged: Judged, metric: RankMetric, way: Way, still: Still) -> Sweep:
    """The metric at every gamma, on judged queries each of which has an answer.

    still: the best of all that `pulls` does not move, for these queries and the k of the metric.
    """
    movers = _Movers(passages, pulls, way)
    relevant = _relevant(judged, movers, still)
    shortlist = _Shortlist(judged.queries, way, movers.end, still, relevant)
    for block in movers.blocks():
        shortlist.consider(block)
    return _in_steps(_Ranks(relevant, shortlist), relevant, judged, metric, way, movers.end)


class Contenders(NamedTuple):
    """What a part of the passages, all of which move, has to say of the metric.

    askers, rows, curves: (any,) who may come among the k best of a query, and before a relevant passage; reach: where
    the last of the whole part arrives.
    """

    askers: Ints
    rows: Ints
    curves: Curves
    reach: float


def relevant_of(passages: Floats, pulls: Pulls, judged: Judged, way: Way) -> Relevant:
    """What answers the judged queries, where all passages move. pulls: of these passages."""
    rows = np.unique(judged.rows)
    movers = _Movers(passages, KnownPulls(rows, pulls.take(np.searchsorted(pulls.rows, rows))), way)
    return _relevant(judged, movers, Still.nothing(len(judged), 1))


def contenders(
    passages: Floats, first: int, pulls: Pulls, queries: Floats, relevant: Relevant, k: int, way: Way
) -> Contenders:
    """Those of a part of the passages, which begins at the row `first` of all. pulls: of the passages in the part."""
    movers = _Movers(passages, pulls, way)
    # How far the other parts go is not known here: the way is looked at to its very end.
    end = way.end(np.full(1, math.pi))
    shortlist = _Shortlist(queries, way, end, Still.nothing(len(queries), k), relevant)
    # Who is out of it by what is known here cannot be left out: it keeps others out in the eyes of all.
    shortlist.most[:] = np.inf
    for block in movers.blocks():
        shortlist.consider(block)
    rivals = shortlist.rivals()
    askers = rivals.stretch_asker % max(len(queries), 1)
    _, once = np.unique(askers * len(passages) + rivals.row, return_index=True)
    curves = rivals.curves.take(once)
    return Contenders(askers[once], first + rivals.row[once], curves, float(movers.reach.max(initial=0)))


def sweep_among(found: Sequence[Contenders], relevant: Relevant, judged: Judged, metric: RankMetric, way: Way) -> Sweep:
    """`sweep`, where all passages move, from what each part of them has to say. relevant: by row of all."""
    end = way.end(np.array([each.reach for each in found]))
    shortlist = _Shortlist(judged.queries, way, end, Still.nothing(len(judged), metric.k), relevant)
    for each in found:
        shortlist.admit(each)
    return _in_steps(_Ranks(relevant, shortlist), relevant, judged, metric, way, end)


def parts(n: int) -> list[Ints]:
    """0 to n - 1, at most ROWS at a time."""
    return [np.arange(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]


class _Block(NamedTuple):
    """Some of the passages that move, in double precision: rows (m,), passages and directions (m, dim), reach (m,)."""

    rows: Ints
    passages: Floats
    sideways: Floats
    reach: Floats


class _Movers:
    """The passages that move, block by block; a few blocks are kept, more are worked out again when they are needed."""

    def __init__(self, passages: Floats, pulls: Pulls, way: Way) -> None:
        self.passages, self.pulls, self.way, self.rows = passages, pulls, way, pulls.rows
        self.kept = [self.take(which) for which in parts(len(self.rows))] if len(self.rows) <= KEPT else []
        self.reach = np.zeros(len(self.rows))
        for which, block in zip(parts(len(self.rows)), self.blocks(), strict=True):
            self.reach[which] = block.reach
        self.end = way.end(self.reach)

    def blocks(self) -> Iterable[_Block]:
        return self.kept or (self.take(which) for which in parts(len(self.rows)))

    def take(self, which: Ints) -> _Block:
        rows = self.rows[which]
        passages = self.passages[rows].astype(np.float64)
        return _Block(rows, passages, *self.way.bearing(passages, self.pulls.take(which).astype(np.float64)))

    def find(self, rows: Ints) -> tuple[Ints, Bools]:
        """Where these rows are among those that move, and whether they are."""
        place = np.minimum(np.searchsorted(self.rows, rows), max(len(self.rows) - 1, 0))
        return place, self.rows[place] == rows if len(self.rows) else np.zeros(len(rows), bool)


class Relevant(NamedTuple):
    """The relevant passages that may count, an element each: its place among the judged pairs, query, row, curve."""

    pair: Ints
    asker: Ints
    row: Ints
    curves: Curves


def _relevant(judged: Judged, movers: _Movers, still: Still) -> Relevant:
    """What moves, and what stays among the best that stay: another never comes among the k best."""
    place, moves = movers.find(judged.rows)
    moving = np.flatnonzero(moves)
    curves = _curves(judged, moving, movers, place[moving])
    staying, spot = np.nonzero(~moves[:, None] & (still.rows[judged.askers] == judged.rows[:, None]))
    levels = still.scores[judged.askers[staying], spot]
    pair = np.concatenate([moving, staying])
    both = (curves.a, levels), (curves.b, 0 * levels), (curves.reach, 0 * levels)
    return Relevant(pair, judged.askers[pair], judged.rows[pair], Curves(*map(np.concatenate, both)))


def _curves(judged: Judged, pairs: Ints, movers: _Movers, places: Ints) -> Curves:
    curves = Curves(np.empty(len(pairs)), np.empty(len(pairs)), movers.reach[places])
    for start in range(0, len(pairs), ROWS):
        part = slice(start, start + ROWS)
        block = movers.take(places[part])
        every, askers = np.arange(len(block.rows)), judged.askers[pairs[part]]
        curves.a[part] = pair_products(judged.queries, askers, block.passages, every)
        curves.b[part] = pair_products(judged.queries, askers, block.sideways, every)
    return curves


class _Rivals(NamedTuple):
    """Who may come before a relevant passage, an element each. stretch_asker: stretch * queries + query."""

    stretch_asker: Ints
    row: Ints
    curves: Curves

    @classmethod
    def join(cls, parts: Sequence[_Rivals]) -> _Rivals:
        keys, rows, curves = zip(*parts, strict=True)
        return cls(np.concatenate(keys), np.concatenate(rows), Curves(*map(np.concatenate, zip(*curves, strict=True))))

    def take(self, which: Ints) -> _Rivals:
        return _Rivals(self.stretch_asker[which], self.row[which], self.curves.take(which))


class _Shortlist:
    """Who may come among each query's k best, stretch by stretch of the way, where a relevant passage may too.

    floor: (stretches, queries, k) scores that k passages have all along a stretch: who stays below is out of it.
    """

    def __init__(self, queries: Floats, way: Way, end: float, still: Still, relevant: Relevant) -> None:
        self.queries = queries.astype(np.float64)
        self.way, self.still = way, still
        self.grid = np.linspace(0, end, STRETCHES + 1)
        # A curve's size is at most the query's length, passages and directions having length 1 or little more.
        self.bend = 1.01 * way.bend(end / STRETCHES) * np.linalg.norm(self.queries, axis=1)
        self.floor = self._still_floor()
        self.least, self.most = np.full((2, STRETCHES, len(queries)), [[[np.inf]], [[-np.inf]]])
        for s, low, high in self._spans(relevant.curves, self.bend[relevant.asker]):
            np.minimum.at(self.least[s], relevant.asker, low)
            np.maximum.at(self.most[s], relevant.asker, high)
        self.found = list(self._still_rivals())
        self.room = CROWD

    def _still_floor(self) -> Floats:
        floor = np.empty((STRETCHES, *self.still.scores.shape))
        for s, low, _ in self._spans(self._still_curves(), np.zeros(())):
            floor[s] = np.where(self.still.rows >= 0, low, -np.inf)
        return floor

    def _still_curves(self) -> Curves:
        levels = np.where(self.still.rows >= 0, self.still.scores, 0)
        return Curves(levels, 0 * levels, 0 * levels)

    def _spans(self, curves: Curves, bend: Floats) -> Iterator[tuple[int, Floats, Floats]]:
        """Stretch by stretch, what each curve does not go below and does not go above."""
        here = self.way.score(self.grid[0], curves)
        for s, t in enumerate(self.grid[1:]):
            there = self.way.score(t, curves)
            yield s, np.minimum(here, there) - bend, np.maximum(here, there) + bend
            here = there

    def threshold(self, s: int, part: slice) -> Floats:
        """What a passage must reach on a stretch to matter; infinity where no relevant one can come among the best."""
        floor = self.floor[s, part].min(axis=-1)
        matters = self.most[s, part] >= floor - TIE
        return np.where(matters, np.maximum(floor, self.least[s, part]) - TIE, np.inf)

    def consider(self, block: _Block) -> None:
        batch = max(1, CELLS // len(block.rows))
        for start in range(0, len(self.queries), batch):
            part = slice(start, start + batch)
            a, b = (self.queries[part] @ each.T for each in (block.passages, block.sideways))
            self._consider(part, Curves(a, b, block.reach), block.rows)

    def admit(self, found: Contenders) -> None:
        """Consider pairs that are known already."""
        nobody = Still.nothing(len(self.queries), self.floor.shape[2])
        for s, low, high in self._spans(found.curves, self.bend[found.askers]):
            self._raise_floor(s, slice(None), nobody.with_scores(found.askers, found.rows, low).scores)
            which = np.flatnonzero(high >= self.threshold(s, slice(None))[found.askers])
            stretch_asker = s * len(self.queries) + found.askers[which]
            self._found(_Rivals(stretch_asker, found.rows[which], found.curves.take(which)))

    def _consider(self, part: slice, curves: Curves, rows: Ints) -> None:
        for s, low, high in self._spans(curves, self.bend[part, None]):
            self._raise_floor(s, part, low)
            askers, places = np.nonzero(high >= self.threshold(s, part)[:, None])
            if len(askers):
                chosen = Curves(curves.a[askers, places], curves.b[askers, places], curves.reach[places])
                self._found(_Rivals(s * len(self.queries) + part.start + askers, rows[places], chosen))

    def _found(self, rivals: _Rivals) -> None:
        self.found.append(rivals)
        self.room -= len(rivals.row)
        if self.room < 0:
            self.found = [self._who_still_matter()]
            self.room = max(CROWD, len(self.found[0].row))

    def _raise_floor(self, s: int, part: slice, low: Floats) -> None:
        floor = self.floor[s, part]
        k = floor.shape[1]
        risen = low.max(axis=1) > floor.min(axis=1)
        if risen.any():
            both = np.concatenate([floor[risen], low[risen]], axis=1)
            floor[risen] = np.partition(both, -k, axis=1)[:, -k:]

    def _who_still_matter(self) -> _Rivals:
        """Those found so far, but for who is out of it by now: thresholds rise from block to block."""
        every = _Rivals.join(self.found)
        stretch, asker = np.divmod(every.stretch_asker, len(self.queries))
        ends = [self.way.score(self.grid[stretch + i], every.curves) for i in (0, 1)]
        thresholds = np.stack([self.threshold(s, slice(None)) for s in range(STRETCHES)])
        return every.take(np.flatnonzero(np.maximum(*ends) + self.bend[asker] >= thresholds[stretch, asker]))

    def rivals(self) -> _Rivals:
        """Everyone who matters, moving or not, in the order of stretch and query."""
        rivals = self._who_still_matter()
        return rivals.take(np.argsort(rivals.stretch_asker, kind="stable"))

    def _still_rivals(self) -> Iterator[_Rivals]:
        askers, places = np.nonzero(self.still.rows >= 0)
        curves = Curves(*(part[askers, places] for part in self._still_curves()))
        for s in range(STRETCHES):
            yield _Rivals(s * len(self.queries) + askers, self.still.rows[askers, places], curves)


class _Ranks:
    """The rank of each relevant passage along the way: k and anything beyond it in one, where it cannot matter.

    start: (relevant,) the rank at gamma 0; base: (stretches, relevant) the rank just inside each stretch; events: where
    a relevant passage's rank changes, and by how much.
    """

    def __init__(self, relevant: Relevant, shortlist: _Shortlist) -> None:
        self.relevant, self.rivals = relevant, shortlist.rivals()
        self.grid, self.way = shortlist.grid, shortlist.way
        queries, k = len(shortlist.queries), shortlist.still.scores.shape[1]
        self.start = np.full(len(relevant.row), k + 1)
        self.base = np.full((STRETCHES, len(relevant.row)), k + 1)
        self.events: list[tuple[Ints, Floats, Ints]] = []
        for s in range(STRETCHES):
            keys = s * queries + relevant.asker
            first, last = (np.searchsorted(self.rivals.stretch_asker, keys, side) for side in ("left", "right"))
            for part in _runs(last - first):
                self._count(s, part, first[part], last[part])

    def _count(self, s: int, relevant: Ints, first: Ints, last: Ints) -> None:
        counts = last - first
        mine = np.repeat(np.arange(len(relevant)), counts)
        theirs = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        other = self.rivals.row[theirs] != self.relevant.row[relevant[mine]]
        mine, theirs = mine[other], theirs[other]
        duel = _Duel(
            self.rivals.curves.take(theirs),
            self.relevant.curves.take(relevant[mine]),
            self.rivals.row[theirs] < self.relevant.row[relevant[mine]],
            self.way,
        )
        if s == 0:
            self.start[relevant] = 1 + np.bincount(mine[duel.ahead(self.grid[0])], minlength=len(relevant))
        ahead, changes = duel.course(self.grid[s], self.grid[s + 1])
        self.base[s, relevant] = 1 + np.bincount(mine[ahead], minlength=len(relevant))
        self.events += [(relevant[mine[which]], t, change) for which, t, change in changes]


class _Duel(NamedTuple):
    """Rivals x against relevant passages y, pair by pair; `lower`: x has the lower row, and goes first in a tie."""

    x: Curves
    y: Curves
    lower: Bools
    way: Way

    def ahead(self, t: Floats) -> Bools:
        """Whether x comes before y at t."""
        lead = self.way.score(t, self.x) - self.way.score(t, self.y)
        return np.asarray((lead > TIE) | ((lead >= -TIE) & self.lower))

    def course(self, low: float, high: float) -> tuple[Bools, list[tuple[Ints, Floats, Ints]]]:
        """Whether x is ahead just after `low`, and then (which, t, +1 or -1) where that changes before `high`."""
        crossings = np.stack(self.way.crossings(self.x, self.y))
        crossings[~((crossings > low + SLACK) & (crossings < high))] = high
        edges = [np.full(len(self.lower), low), *np.sort(crossings, axis=0), np.full(len(self.lower), high)]
        first = ahead = self.ahead((edges[0] + edges[1]) / 2)
        changes = []
        for left, right in itertools.pairwise(edges[1:]):
            # Between two crossings, who is ahead in the middle is ahead throughout.
            now = np.where(right - left > SLACK, self.ahead((left + right) / 2), ahead)
            which = np.flatnonzero(now != ahead)
            changes.append((which, left[which], np.where(now[which], 1, -1)))
            ahead = now
        return first, changes


def _runs(sizes: Ints) -> list[Ints]:
    """Runs of neighbours whose sizes sum to about PAIRS, those of size 0 left out."""
    some = np.flatnonzero(sizes)
    run = np.cumsum(sizes[some]) // PAIRS
    return [] if not len(some) else np.split(some, np.flatnonzero(np.diff(run)) + 1)


def _in_steps(ranks: _Ranks, relevant: Relevant, judged: Judged, metric: RankMetric, way: Way, end: float) -> Sweep:
    pairs, t, rank = _timeline(ranks)
    offers = metric.offers(judged)[relevant.pair]
    start = offers[np.arange(len(offers)), np.minimum(ranks.start, metric.k + 1)]
    course = _Course(pairs, t, offers[pairs, np.minimum(rank, metric.k + 1)])
    combine = _sums if metric.adds_up else _bests
    start, askers, t, changes = combine(start, course, relevant.asker, len(judged))
    order = np.flatnonzero(changes)
    order = order[np.argsort(t[order], kind="stable")]
    gammas = way.gamma(t[order])
    return Sweep(start, judged.weights, gammas, askers[order], changes[order], float(way.gamma(np.asarray(end))))


class _Course(NamedTuple):
    """What relevant passages offer along the way: from t on, `pair` offers `value`. In the order of pair and t."""

    pair: Ints
    t: Floats
    value: Floats


def _timeline(ranks: _Ranks) -> tuple[Ints, Floats, Ints]:
    """(relevant, t, rank from there on), in the order of relevant and t."""
    stretches, n = ranks.base.shape
    fixed = np.tile(np.arange(n), stretches), np.repeat(ranks.grid[:-1], n), np.zeros(stretches * n, np.int64)
    pairs, t, change = map(np.concatenate, zip(fixed, *ranks.events, strict=True))
    known = np.concatenate([ranks.base.ravel(), np.full(len(pairs) - stretches * n, -1)])
    order = np.lexsort((known < 0, t, pairs))
    pairs, t, change, known = pairs[order], t[order], change[order], known[order]
    total = np.cumsum(change)
    since = np.maximum.accumulate(np.where(known >= 0, np.arange(len(known)), 0))
    return pairs, t, known[since] + total - total[since]


def _sums(start: Floats, course: _Course, askers: Ints, n: int) -> tuple[Floats, Ints, Floats, Floats]:
    """By query, where each is the sum of what its relevant passages offer: start (n,), then steps."""
    first = np.diff(course.pair, prepend=-1) > 0
    changes = np.diff(course.value, prepend=0.0)
    changes[first] = course.value[first] - start[course.pair[first]]
    total = np.bincount(askers, start, minlength=n).astype(np.float64)
    return total, askers[course.pair], course.t, changes


def _bests(start: Floats, course: _Course, askers: Ints, n: int) -> tuple[Floats, Ints, Floats, Floats]:
    """By query, where each is the best of what its relevant passages offer: start (n,), then steps."""
    most = np.zeros(n)
    np.maximum.at(most, askers, start)
    asker = askers[course.pair]
    order = np.lexsort((course.t, asker))
    asker, t = asker[order], course.t[order]
    values = np.empty(len(order))
    edges = np.searchsorted(asker, np.arange(n + 1))
    for low, high in itertools.pairwise(edges):
        values[low:high] = _running_best(course.pair[order[low:high]], course.value[order[low:high]])
    first = np.diff(asker, prepend=-1) > 0
    changes = np.diff(values, prepend=0.0)
    changes[first] = values[first] - most[asker[first]]
    return most, asker, t, changes


def _running_best(pairs: Ints, values: Floats) -> Floats:
    """(steps,): the best of the latest values of all pairs, step by step."""
    best = np.zeros(len(values))
    for pair in np.unique(pairs):
        here = np.where(pairs == pair, np.arange(len(pairs)), -1)
        last = np.maximum.accumulate(here)
        np.maximum(best, np.where(last >= 0, values[last], 0), out=best)
    return best

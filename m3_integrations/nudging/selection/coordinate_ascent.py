"""Joint choice of step sizes and mode weights by coordinate ascent on the fused ranking metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array, Mode
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.selection.cross_validation import SPLITS, Evidence, splits
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.score_grids import Pairs, ScoreGrid

FACTORS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0)  # of a mode's initial weight
ROUNDS = 4
BETTER = 5e-4  # minimum gain of a step
CACHED_METRICS = 1 << 23  # cached metrics, over all queries and configurations
CACHED_SCORES = 1 << 25  # cached scores, over all candidates and strengths


class Strength(NamedTuple):
    """How a mode is nudged: the score grid of its variant, and the step size."""

    grid: int
    gamma: float


UNMOVED = Strength(0, 0.0)


@dataclass(frozen=True)
class Configuration:
    """A step size and a weight for each mode."""

    strengths: tuple[tuple[Mode, Strength], ...]
    weights: tuple[tuple[Mode, float], ...]

    @classmethod
    def unmoved(cls, weights: Mapping[Mode, float]) -> Configuration:
        return cls(tuple((mode, UNMOVED) for mode in weights), tuple(weights.items()))

    def with_strength(self, mode: Mode, strength: Strength) -> Configuration:
        return replace(self, strengths=tuple((each, strength if each == mode else s) for each, s in self.strengths))

    def with_weight(self, mode: Mode, weight: float) -> Configuration:
        return replace(self, weights=tuple((each, weight if each == mode else w) for each, w in self.weights))


@dataclass(frozen=True)
class Selected:
    """A configuration with the evidence for its gain, the mean over several splits."""

    configuration: Configuration
    evidence: Evidence

    @property
    def gain(self) -> float:
        return self.evidence.gain

    @property
    def error(self) -> float:
        return self.evidence.error

    @property
    def is_significant(self) -> bool:
        return self.evidence.is_significant


class FusedObjective:
    """The metric of a fused ranking, over evaluation queries, their candidates and each mode's score grids.

    With a control, the same queries with answers of others, configurations are compared by the metric less that of the
    control: what popular passages gain with any query does not count.
    """

    def __init__(
        self,
        eval_queries: Judged,
        pairs: Pairs,
        grids: Mapping[Mode, Sequence[ScoreGrid]],
        metric: RankMetric,
        control: Judged | None = None,
    ) -> None:
        self.eval_queries, self.pairs, self.grids, self.control = eval_queries, pairs, grids, control
        self._candidates = _CandidateMatrix(pairs, len(eval_queries))
        self._ranking, *self._controls = [
            _Ranking(each, pairs, self._candidates.place, metric)
            for each in (eval_queries, control)
            if each is not None
        ]
        self._matrices: dict[tuple[Mode, Strength], Array] = {}
        self._fused, self._part = np.empty((2, *self._candidates.shape), np.float32)
        self._specific: dict[Configuration, Floats] = {}

    def metrics(self, configuration: Configuration) -> Floats:
        """Return the metric of each query in a configuration, shape (queries,)."""
        return self._ranking.metrics(self._fuse(configuration)) if self._controls else self.specific(configuration)

    def specific(self, configuration: Configuration) -> Floats:
        """Return the metric of each query less that of the control, shape (queries,)."""
        known = self._specific.get(configuration)
        if known is None:
            if (1 + len(self._specific)) * len(self.eval_queries) > CACHED_METRICS:
                self._specific.clear()
            fused = self._fuse(configuration)
            known = self._ranking.metrics(fused)
            for control in self._controls:
                known -= control.metrics(fused)
            self._specific[configuration] = known
        return known

    def scores(self, configuration: Configuration) -> Floats:
        """Return the fused scores of the pairs, shape (pairs,)."""
        fused: Floats = self._fuse(configuration)[self._candidates.place, self.pairs.query_rows]
        return fused

    def _fuse(self, configuration: Configuration) -> Array:
        """Return the fused scores as a matrix, which the next call overwrites."""
        strengths = dict(configuration.strengths)
        target = self._fused
        for mode, weight in configuration.weights:
            if weight:
                np.multiply(self._matrix(mode, strengths[mode]), weight, out=target)
                if target is self._part:
                    self._fused += target
                target = self._part
        if target is self._fused:
            self._fused[:] = 0
        return self._fused

    def _matrix(self, mode: Mode, strength: Strength) -> Array:
        strength = strength if strength.gamma else UNMOVED
        known = self._matrices.get((mode, strength))
        if known is None:
            if (1 + len(self._matrices)) * self._fused.size > CACHED_SCORES:
                self._matrices.clear()
            known = self._candidates.fill(self.grids[mode][strength.grid].at(strength.gamma))
            self._matrices[mode, strength] = known
        return known

    def mean(self, configuration: Configuration, subset: Ints) -> float:
        """Return the weighted mean metric of these queries."""
        weights = self.eval_queries.weights[subset]
        return float(self.metrics(configuration)[subset] @ weights / weights.sum())

    def _level(self, configuration: Configuration, subset: Ints) -> float:
        weights = self.eval_queries.weights[subset]
        return float(self.specific(configuration)[subset] @ weights / weights.sum())

    def choose(
        self, start: Configuration, *, tune_weights: bool, on_fraction: Callable[[float], object] | None = None
    ) -> Selected:
        """Choose the best configuration by coordinate ascent.

        Args:
            start: Where the ascent begins.
            tune_weights: Whether to choose the weights too.
            on_fraction: Called with the fraction of the work that is done.
        """
        n = len(self.eval_queries)
        gains, parts = np.zeros(n), [*splits(n)]
        for number, (part, rest) in enumerate(parts):
            if on_fraction is not None:
                on_fraction(number / len(parts))
            chosen = self._coordinate_ascent(start, rest, tune_weights)
            gains[part] += (self.specific(chosen) - self.specific(start))[part] / SPLITS
        unmoved = None if self.control is None else self.specific(start)
        evidence = Evidence.of(gains, self.eval_queries.weights, unmoved)
        return Selected(self._coordinate_ascent(start, np.arange(n), tune_weights), evidence)

    def best_grids(self, mode: Mode, count: int) -> list[int]:
        """Return the grids of a mode, alone, with the best levels, ascending."""
        alone, all_queries = Configuration.unmoved({mode: 1.0}), np.arange(len(self.eval_queries))
        levels = [
            max(
                self._level(alone.with_strength(mode, Strength(i, gamma)), all_queries)
                for gamma in each.gammas.tolist()
            )
            for i, each in enumerate(self.grids[mode])
        ]
        return sorted(np.argsort(-np.array(levels), kind="stable")[:count].tolist())

    def _coordinate_ascent(self, start: Configuration, subset: Ints, tune_weights: bool) -> Configuration:
        """Ascend on these queries, starting from each mode's best step size alone; variants stay fixed."""
        here = start
        for mode, _ in start.weights:
            here = here.with_strength(mode, self._best_alone(mode, subset))
        grids = {mode: strength.grid for mode, strength in here.strengths}
        level = self._level(here, subset)
        for _ in range(ROUNDS):
            before = level
            for coordinate in self._coordinates(start, grids, tune_weights):
                steps = coordinate(here)
                levels = [self._level(step, subset) for step in steps]
                if max(levels) > level + BETTER:
                    here, level = steps[int(np.argmax(levels))], max(levels)
            if level <= before + BETTER:
                break
        return here

    def _best_alone(self, mode: Mode, subset: Ints) -> Strength:
        alone = Configuration.unmoved({mode: 1.0})
        strengths = [UNMOVED, *self._strengths(mode)]
        levels = [self._level(alone.with_strength(mode, strength), subset) for strength in strengths]
        return strengths[int(np.argmax(levels))]

    def _strengths(self, mode: Mode) -> list[Strength]:
        return [Strength(i, gamma) for i, each in enumerate(self.grids[mode]) for gamma in each.gammas.tolist()]

    def _coordinates(
        self, start: Configuration, grids: Mapping[Mode, int], tune_weights: bool
    ) -> Iterator[Callable[[Configuration], list[Configuration]]]:
        """Yield for each coordinate a function from a configuration to its alternatives."""
        if tune_weights and len(start.weights) > 1:
            for mode, weight in start.weights:
                yield partial(_with_each, Configuration.with_weight, mode, [weight * factor for factor in FACTORS])
        for mode, _ in start.strengths:
            strengths = [each for each in self._strengths(mode) if each.grid == grids[mode]]
            yield partial(_with_each, Configuration.with_strength, mode, strengths)


def _with_each(
    change: Callable[[Configuration, Mode, Any], Configuration], mode: Mode, values: Sequence[Any], here: Configuration
) -> list[Configuration]:
    return [change(here, mode, value) for value in values]


class _CandidateMatrix:
    """Scores of pairs as a matrix: a column for each query, its candidates by ascending row, padded with -inf."""

    def __init__(self, pairs: Pairs, queries: int) -> None:
        starts = np.searchsorted(pairs.query_rows, np.arange(queries + 1))
        self.place = np.arange(len(pairs.rows)) - starts[pairs.query_rows]
        self.shape = int(np.diff(starts).max(initial=0)), queries
        self._cells = self.place * queries + pairs.query_rows

    def fill(self, scores: Floats) -> Array:
        matrix = np.full(self.shape, -np.inf, np.float32)
        matrix.ravel()[self._cells] = scores
        return matrix


class _Ranking:
    """Ranks of relevant passages among the candidates of their query."""

    def __init__(self, eval_queries: Judged, pairs: Pairs, place: Ints, metric: RankMetric) -> None:
        self.metric, self.queries = metric, len(eval_queries)
        width = 1 + max(int(eval_queries.rows.max(initial=0)), int(pairs.rows.max(initial=0)))
        keys = pairs.query_rows * width + pairs.rows
        wanted = eval_queries.query_ids * width + eval_queries.rows
        at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        found = np.flatnonzero(keys[at] == wanted) if len(keys) else np.empty(0, np.int64)
        self._query_rows, self._places = eval_queries.query_ids[found], place[at[found]]
        self._gains_by_rank = metric.gains_by_rank(eval_queries)[found]
        number = np.arange(len(found)) - np.searchsorted(self._query_rows, self._query_rows)
        # Relevant passages in groups with at most one of each query.
        self._groups = [np.flatnonzero(number == i) for i in range(int(number.max(initial=-1)) + 1)]

    def metrics(self, scores: Array) -> Floats:
        """Return the metric of each query for a matrix of scores; ties break by row."""
        ranks = np.empty(len(self._places), np.int64)
        for group in self._groups:
            ranks[group] = 1 + self._count_ahead(scores, group)
        gains = self._gains_by_rank[np.arange(len(ranks)), np.minimum(ranks, self.metric.k + 1)]
        if self.metric.is_additive:
            return np.asarray(np.bincount(self._query_rows, gains, minlength=self.queries), np.float64)
        metrics = np.zeros(self.queries)
        np.maximum.at(metrics, self._query_rows, gains)
        return metrics

    def _count_ahead(self, scores: Array, group: Ints) -> Ints:
        columns, places = self._query_rows[group], self._places[group]
        own = scores[places, columns]
        if 2 * len(columns) < self.queries:
            scores, columns = scores[:, columns], np.arange(len(columns))
        level = np.full(scores.shape[1], np.inf, np.float32)
        level[columns] = own
        ahead = _count_rows(scores > level)[columns]
        equal = scores == level
        if np.count_nonzero(equal) > len(columns):
            tied, lower = equal[:, columns], np.arange(len(scores))[:, None] < places
            ahead += _count_rows(tied & lower)
        return ahead


def _count_rows(cells: npt.NDArray[np.bool_]) -> Ints:
    """Return the number of true cells of each column."""
    counts = np.zeros(cells.shape[1], np.int64)
    for start in range(0, len(cells), 255):  # sums of bytes are fast, and this many do not overflow
        counts += np.add.reduce(cells[start : start + 255].view(np.uint8), axis=0, dtype=np.uint8)
    return counts

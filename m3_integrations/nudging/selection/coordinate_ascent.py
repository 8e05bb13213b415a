"""Joint choice of step sizes and mode weights by coordinate ascent on the fused ranking metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from m3_integrations.core.encoded import Mode
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.selection.cross_validation import SPLITS, Evidence, splits
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.score_grids import Pairs, ScoreGrid

FACTORS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0)  # of a mode's initial weight
ROUNDS = 4
BETTER = 5e-4  # minimum gain of a step
CACHED_METRICS = 1 << 24  # cached metrics, over all queries and configurations


class Strength(NamedTuple):
    """How a mode is nudged: the score grid of its variant, and the step size."""

    grid: int
    gamma: float


REST = Strength(0, 0.0)


@dataclass(frozen=True)
class Configuration:
    """A step size and a weight for each mode."""

    strengths: tuple[tuple[Mode, Strength], ...]
    weights: tuple[tuple[Mode, float], ...]

    @classmethod
    def at_rest(cls, weights: Mapping[Mode, float]) -> Configuration:
        return cls(tuple((mode, REST) for mode in weights), tuple(weights.items()))

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
        self._rankings = [_Ranking(each, pairs, metric) for each in (eval_queries, control) if each is not None]
        self._scores: dict[tuple[Mode, Strength], Floats] = {}
        self._metrics: dict[Configuration, tuple[Floats, Floats]] = {}

    def metrics(self, configuration: Configuration) -> Floats:
        """Return the metric of each query in a configuration, shape (queries,)."""
        return self._measure(configuration)[0]

    def specific(self, configuration: Configuration) -> Floats:
        """Return the metric of each query less that of the control, shape (queries,)."""
        return self._measure(configuration)[1]

    def _measure(self, configuration: Configuration) -> tuple[Floats, Floats]:
        known = self._metrics.get(configuration)
        if known is None:
            if 2 * (1 + len(self._metrics)) * len(self.eval_queries) > CACHED_METRICS:
                self._metrics.clear()
            scores = self.scores(configuration)
            metrics, *controls = [ranking.metrics(scores) for ranking in self._rankings]
            known = self._metrics[configuration] = metrics, metrics - controls[0] if controls else metrics
        return known

    def scores(self, configuration: Configuration) -> Floats:
        """Return the fused scores of the pairs, shape (pairs,)."""
        strengths = dict(configuration.strengths)
        fused = np.zeros(len(self.pairs.query_rows))
        for mode, weight in configuration.weights:
            if weight:
                fused += weight * self._at(mode, strengths[mode])
        return fused

    def _at(self, mode: Mode, strength: Strength) -> Floats:
        strength = strength if strength.gamma else REST
        if (mode, strength) not in self._scores:
            self._scores[mode, strength] = self.grids[mode][strength.grid].at(strength.gamma)
        return self._scores[mode, strength]

    def mean(self, configuration: Configuration, who: Ints) -> float:
        """Return the weighted mean metric of these queries."""
        weights = self.eval_queries.weights[who]
        return float(self.metrics(configuration)[who] @ weights / weights.sum())

    def _level(self, configuration: Configuration, who: Ints) -> float:
        weights = self.eval_queries.weights[who]
        return float(self.specific(configuration)[who] @ weights / weights.sum())

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
        at_rest = None if self.control is None else self.specific(start)
        evidence = Evidence.of(gains, self.eval_queries.weights, at_rest)
        return Selected(self._coordinate_ascent(start, np.arange(n), tune_weights), evidence)

    def best_grids(self, mode: Mode, count: int) -> list[int]:
        """Return the grids of a mode, alone, with the best levels, ascending."""
        alone, everyone = Configuration.at_rest({mode: 1.0}), np.arange(len(self.eval_queries))
        levels = [
            max(self._level(alone.with_strength(mode, Strength(i, gamma)), everyone) for gamma in each.gammas.tolist())
            for i, each in enumerate(self.grids[mode])
        ]
        return sorted(np.argsort(-np.array(levels), kind="stable")[:count].tolist())

    def _coordinate_ascent(self, start: Configuration, who: Ints, tune_weights: bool) -> Configuration:
        """Ascend on these queries, starting from each mode's best step size alone; variants stay fixed."""
        here = start
        for mode, _ in start.weights:
            here = here.with_strength(mode, self._best_alone(mode, who))
        grids = {mode: strength.grid for mode, strength in here.strengths}
        level = self._level(here, who)
        for _ in range(ROUNDS):
            before = level
            for coordinate in self._coordinates(start, grids, tune_weights):
                steps = coordinate(here)
                levels = [self._level(step, who) for step in steps]
                if max(levels) > level + BETTER:
                    here, level = steps[int(np.argmax(levels))], max(levels)
            if level <= before + BETTER:
                break
        return here

    def _best_alone(self, mode: Mode, who: Ints) -> Strength:
        alone = Configuration.at_rest({mode: 1.0})
        strengths = [REST, *self._strengths(mode)]
        levels = [self._level(alone.with_strength(mode, strength), who) for strength in strengths]
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


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Ranks of relevant passages among the candidates of their query."""

    eval_queries: Judged
    pairs: Pairs
    metric: RankMetric

    @cached_property
    def find_relevant(self) -> tuple[Ints, Ints]:
        """Judged pairs whose passage is a candidate, and its position among the pairs."""
        width = 1 + max(int(self.eval_queries.rows.max(initial=0)), int(self.pairs.rows.max(initial=0)))
        keys = self.pairs.query_rows * width + self.pairs.rows
        wanted = self.eval_queries.query_ids * width + self.eval_queries.rows
        place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        found = np.flatnonzero(keys[place] == wanted) if len(keys) else np.empty(0, np.int64)
        return found, place[found]

    @cached_property
    def _comparisons(self) -> tuple[Ints, Ints]:
        """For each relevant candidate, its number against every candidate of its query."""
        _, places = self.find_relevant
        query_rows = self.pairs.query_rows[places]
        first, last = (np.searchsorted(self.pairs.query_rows, query_rows, side) for side in ("left", "right"))
        counts = last - first
        mine = np.repeat(np.arange(len(places)), counts)
        theirs = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        return mine, theirs

    def metrics(self, scores: Floats) -> Floats:
        """Return the metric of each query for scores of shape (pairs,); ties break by row."""
        (found, places), (mine, theirs) = self.find_relevant, self._comparisons
        own, other = scores[places][mine], scores[theirs]
        ahead = (other > own) | ((other == own) & (theirs < places[mine]))
        ranks = 1 + np.bincount(mine[ahead], minlength=len(places))
        gains = self._gains_by_rank[found, np.minimum(ranks, self.metric.k + 1)]
        query_rows = self.eval_queries.query_ids[found]
        if self.metric.is_additive:
            return np.asarray(np.bincount(query_rows, gains, minlength=len(self.eval_queries)), np.float64)
        metrics = np.zeros(len(self.eval_queries))
        np.maximum.at(metrics, query_rows, gains)
        return metrics

    @cached_property
    def _gains_by_rank(self) -> Floats:
        return self.metric.gains_by_rank(self.eval_queries)

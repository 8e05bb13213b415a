"""Choosing the strength of each mode's nudge, and the weights of the modes, together, by the ranking that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from m3_integrations.core.encoded import Mode
from m3_integrations.nudging.choose import SPLITS, mean_and_error, splits, stands_out
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.ladders import Ladder, Pairs
from m3_integrations.nudging.rank_metric import RankMetric

FACTORS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0)  # of the weight that a mode begins with
ROUNDS = 4
BETTER = 5e-4  # what a change must gain to be worth it
KEPT = 1 << 24  # metrics, of all judges at all settings, that are remembered


class Strength(NamedTuple):
    """How a mode is nudged: by which of its ladders, and how far up it."""

    ladder: int
    gamma: float


REST = Strength(0, 0.0)


@dataclass(frozen=True)
class Setting:
    """How each mode is nudged, and how much it weighs."""

    strengths: tuple[tuple[Mode, Strength], ...]
    weights: tuple[tuple[Mode, float], ...]

    @classmethod
    def resting(cls, weights: Mapping[Mode, float]) -> Setting:
        return cls(tuple((mode, REST) for mode in weights), tuple(weights.items()))

    def with_strength(self, mode: Mode, strength: Strength) -> Setting:
        return replace(self, strengths=tuple((each, strength if each == mode else s) for each, s in self.strengths))

    def with_weight(self, mode: Mode, weight: float) -> Setting:
        return replace(self, weights=tuple((each, weight if each == mode else w) for each, w in self.weights))


@dataclass(frozen=True)
class Chosen:
    """A setting, and its gain cross-validated: each fold of the judges judges the choice that is made without it.

    The mean over several ways to make the folds.
    """

    setting: Setting
    gain: float
    error: float

    @property
    def convinces(self) -> bool:
        return stands_out(self.gain, self.error)


class Board:
    """Judges, the passages that they rank, and each mode's scores of them at every strength."""

    def __init__(
        self, judges: Judged, pairs: Pairs, ladders: Mapping[Mode, Sequence[Ladder]], metric: RankMetric
    ) -> None:
        self.judges, self.pairs, self.ladders = judges, pairs, ladders
        self._ranking = _Ranking(judges, pairs, metric)
        self._scores: dict[tuple[Mode, Strength], Floats] = {}
        self._metrics: dict[Setting, Floats] = {}

    def metrics(self, setting: Setting) -> Floats:
        """(judges,): the metric of each at this setting."""
        known = self._metrics.get(setting)
        if known is None:
            if (1 + len(self._metrics)) * len(self.judges) > KEPT:
                self._metrics.clear()
            known = self._metrics[setting] = self._ranking.metrics(self.scores(setting))
        return known

    def scores(self, setting: Setting) -> Floats:
        """(pairs,): the fused scores."""
        strengths = dict(setting.strengths)
        fused = np.zeros(len(self.pairs.askers))
        for mode, weight in setting.weights:
            if weight:
                fused += weight * self._at(mode, strengths[mode])
        return fused

    def _at(self, mode: Mode, strength: Strength) -> Floats:
        strength = strength if strength.gamma else REST
        if (mode, strength) not in self._scores:
            self._scores[mode, strength] = self.ladders[mode][strength.ladder].at(strength.gamma)
        return self._scores[mode, strength]

    def mean(self, setting: Setting, who: Ints) -> float:
        """The metric of these judges, by weight."""
        weights = self.judges.weights[who]
        return float(self.metrics(setting)[who] @ weights / weights.sum())

    def choose(self, start: Setting, *, weigh: bool) -> Chosen:
        """The best setting, found from `start` one coordinate at a time; `weigh`: whether weights are chosen too."""
        n = len(self.judges)
        gains = np.zeros(n)
        for held, rest in splits(n):
            gains[held] += (self.metrics(self._climb(start, rest, weigh)) - self.metrics(start))[held] / SPLITS
        gain, error = mean_and_error(gains, self.judges.weights)
        return Chosen(self._climb(start, np.arange(n), weigh), gain, error)

    def _climb(self, start: Setting, who: Ints, weigh: bool) -> Setting:
        """Coordinate ascent on these judges, from where each mode ranks best alone; each mode keeps to its ladder."""
        here = start
        for mode, _ in start.weights:
            here = here.with_strength(mode, self._best_alone(mode, who))
        ladders = {mode: strength.ladder for mode, strength in here.strengths}
        level = self.mean(here, who)
        for _ in range(ROUNDS):
            before = level
            for coordinate in self._coordinates(start, ladders, weigh):
                steps = coordinate(here)
                levels = [self.mean(step, who) for step in steps]
                if max(levels) > level + BETTER:
                    here, level = steps[int(np.argmax(levels))], max(levels)
            if level <= before + BETTER:
                break
        return here

    def _best_alone(self, mode: Mode, who: Ints) -> Strength:
        alone = Setting.resting({mode: 1.0})
        strengths = [REST, *self._strengths(mode)]
        levels = [self.mean(alone.with_strength(mode, strength), who) for strength in strengths]
        return strengths[int(np.argmax(levels))]

    def _strengths(self, mode: Mode) -> list[Strength]:
        return [Strength(i, gamma) for i, each in enumerate(self.ladders[mode]) for gamma in each.gammas.tolist()]

    def _coordinates(
        self, start: Setting, ladders: Mapping[Mode, int], weigh: bool
    ) -> Iterator[Callable[[Setting], list[Setting]]]:
        """One after another: from a setting to those that differ from it in this alone."""
        if weigh and len(start.weights) > 1:
            for mode, weight in start.weights:
                yield partial(_with_each, Setting.with_weight, mode, [weight * factor for factor in FACTORS])
        for mode, _ in start.strengths:
            strengths = [each for each in self._strengths(mode) if each.ladder == ladders[mode]]
            yield partial(_with_each, Setting.with_strength, mode, strengths)


def _with_each(
    change: Callable[[Setting, Mode, Any], Setting], mode: Mode, values: Sequence[Any], here: Setting
) -> list[Setting]:
    return [change(here, mode, value) for value in values]


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Ranks of relevant passages among those that their judge ranks."""

    judges: Judged
    pairs: Pairs
    metric: RankMetric

    @cached_property
    def _relevant(self) -> tuple[Ints, Ints]:
        """The judged pairs whose passage is ranked, and where it stands among the pairs."""
        width = 1 + max(int(self.judges.rows.max(initial=0)), int(self.pairs.rows.max(initial=0)))
        keys = self.pairs.askers * width + self.pairs.rows
        wanted = self.judges.askers * width + self.judges.rows
        place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        found = np.flatnonzero(keys[place] == wanted) if len(keys) else np.empty(0, np.int64)
        return found, place[found]

    @cached_property
    def _duels(self) -> tuple[Ints, Ints]:
        """For each relevant passage that is ranked, in turn: itself (its number), against everyone in its ranking."""
        _, places = self._relevant
        askers = self.pairs.askers[places]
        first, last = (np.searchsorted(self.pairs.askers, askers, side) for side in ("left", "right"))
        counts = last - first
        mine = np.repeat(np.arange(len(places)), counts)
        theirs = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        return mine, theirs

    def metrics(self, scores: Floats) -> Floats:
        """(judges,). scores: (pairs,); ties by row."""
        (found, places), (mine, theirs) = self._relevant, self._duels
        me, other = scores[places][mine], scores[theirs]
        ahead = (other > me) | ((other == me) & (theirs < places[mine]))
        ranks = 1 + np.bincount(mine[ahead], minlength=len(places))
        offers = self._offers[found, np.minimum(ranks, self.metric.k + 1)]
        askers = self.judges.askers[found]
        if self.metric.adds_up:
            return np.asarray(np.bincount(askers, offers, minlength=len(self.judges)), np.float64)
        metrics = np.zeros(len(self.judges))
        np.maximum.at(metrics, askers, offers)
        return metrics

    @cached_property
    def _offers(self) -> Floats:
        return self.metric.offers(self.judges)

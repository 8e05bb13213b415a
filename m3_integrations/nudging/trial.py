"""A nudge on trial: what it does to questions that had no part in it, or that are unlike those that had."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.nudging.choose import SEED
from m3_integrations.nudging.corpus import Corpus
from m3_integrations.nudging.fused import Board, Setting, Strength
from m3_integrations.nudging.hybrid import Moved, Race, shortlist
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.ladders import Curved, Ladder, Pairs, dense_ladders, late_ladders, sparse_curves
from m3_integrations.nudging.panels import Panels, means_of
from m3_integrations.nudging.plans import WAYS, Plan
from m3_integrations.nudging.proposing import proposed
from m3_integrations.nudging.rank_metric import RankMetric

SHOWN = 3  # passages of a ranking that are kept
RESAMPLES = 2000
CLUSTERS = 8


@dataclass(frozen=True, eq=False)
class Trial:
    """The metric of each judge before and after, and the best passages of each by row: (judges, up to SHOWN)."""

    before: Floats
    after: Floats
    best_before: Sequence[Ints]
    best_after: Sequence[Ints]

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean gain, by a paired bootstrap over the judges."""
        return bootstrap(self.after - self.before)


def bootstrap(gains: Floats) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of the mean of gains that are drawn with replacement. (0, 0) for none."""
    if not len(gains):
        return 0.0, 0.0
    rng = np.random.default_rng(SEED)
    means = [gains[rng.integers(0, len(gains), len(gains))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def put_on_trial(
    corpus: Corpus, panels: Panels, race: Race, moved: Mapping[Mode, Moved], weights: Mapping[Mode, float]
) -> Trial:
    """What these moves, each panel's own queries silent, and these weights make of the search of `race`."""
    lists = proposed(corpus, panels, race, {}), proposed(corpus, panels, race, moved)
    n = len(corpus)
    keys = [pairs.askers * n + pairs.rows for pairs in lists]
    every = np.union1d(*keys)
    pairs = Pairs(every // n, every % n)
    # One ladder for both lists: late interaction takes all the time.
    ladders = {
        mode: _ladder(corpus, panels, pairs, mode, moved.get(mode), None)
        for mode in MODES
        if race.weights.get(mode) or weights.get(mode)
    }
    resting = Setting.resting({mode: race.weights.get(mode, 0.0) for mode in ladders})
    nudged = _nudged({mode: weights.get(mode, 0.0) for mode in ladders}, moved)
    before, after = (
        _ranked(panels.judges, pairs, np.searchsorted(every, key), ladders, setting, race.metric)
        for key, setting in zip(keys, (resting, nudged), strict=True)
    )
    return Trial(before[0], after[0], before[1], after[1])


def _ranked(
    judges: Judged, pairs: Pairs, listed: Ints, ladders: Mapping[Mode, Ladder], setting: Setting, metric: str
) -> tuple[Floats, list[Ints]]:
    """The metric of each judge, and its best passages, among the pairs that are listed."""
    mine = Pairs(pairs.askers[listed], pairs.rows[listed])
    board = Board(
        judges, mine, {mode: [_Part(ladder, listed)] for mode, ladder in ladders.items()}, RankMetric.of(metric)
    )
    return board.metrics(setting), _best(mine, board.scores(setting), len(judges))


class _Part:
    """Some pairs of a ladder."""

    def __init__(self, ladder: Ladder, which: Ints) -> None:
        self.ladder, self.which = ladder, which

    @property
    def gammas(self) -> Floats:
        return self.ladder.gammas

    def at(self, gamma: float) -> Floats:
        return self.ladder.at(gamma)[self.which]


def levels_over(
    corpus: Corpus,
    panels: Panels,
    race: Race,
    moved: Mapping[Mode, Moved],
    weights: Mapping[Mode, float],
    gammas: Mapping[Mode, Floats],
    metrics: Collection[str],
) -> dict[Mode, dict[str, Floats]]:
    """By mode and metric, the mean over the judges at each of the mode's `gammas`, all other modes as they moved."""
    pairs = shortlist(corpus, panels, race)
    ladders: dict[Mode, Sequence[Ladder]] = {
        mode: [_ladder(corpus, panels, pairs, mode, moved.get(mode), gammas.get(mode))]
        for mode in MODES
        if weights.get(mode)
    }
    after, everyone = _nudged({mode: weights[mode] for mode in ladders}, moved), np.arange(len(panels.judges))
    found: dict[Mode, dict[str, Floats]] = {mode: {} for mode in gammas if mode in ladders}
    for metric in metrics:
        board = Board(panels.judges, pairs, ladders, RankMetric.of(metric))
        for mode, levels in found.items():
            settings = [after.with_strength(mode, Strength(0, gamma)) for gamma in gammas[mode].tolist()]
            levels[metric] = np.array([board.mean(setting, everyone) for setting in settings])
    return found


def _nudged(weights: Mapping[Mode, float], moved: Mapping[Mode, Moved]) -> Setting:
    setting = Setting.resting(weights)
    for mode, each in moved.items():
        setting = setting.with_strength(mode, Strength(0, each.gamma))
    return setting


def _ladder(
    corpus: Corpus, panels: Panels, pairs: Pairs, mode: Mode, moved: Moved | None, gammas: Floats | None
) -> Ladder:
    """gammas: ascending from 0, the one that it moved by among them; None: that one alone."""
    if gammas is None:
        gammas = np.array([0.0, moved.gamma]) if moved else np.zeros(1)
    if mode == "sparse":
        centre = moved.centre if moved else 0.0
        return Curved(sparse_curves(corpus, panels, pairs, [centre])[0], WAYS["m"], gammas)
    if mode == "multi_vector":
        return late_ladders(corpus, panels, pairs, gammas, [moved.centre if moved else 0.0])[0]
    plan = Plan(moved.method, moved.spread, moved.centre) if moved else Plan("m", None, 0.0)
    return Curved(dense_ladders(corpus.dense, panels, pairs, [plan])[0], plan.way, gammas)


def _best(pairs: Pairs, scores: Floats, judges: int) -> list[Ints]:
    order = np.lexsort((pairs.rows, -scores, pairs.askers))
    edges = np.searchsorted(pairs.askers, np.arange(judges + 1))
    return [pairs.rows[order[low : min(low + SHOWN, high)]] for low, high in itertools.pairwise(edges)]


def clusters_of(train: Judged) -> Ints:
    """(train,): queries by what they are about, in up to CLUSTERS groups of like vectors; one where there are none."""
    groups = min(CLUSTERS, len(train) // 4)
    if groups < 2 or not {"dense", "multi_vector"} & train.in_modes.modes:
        return np.zeros(len(train), np.int64)
    vectors = np.asarray(train.queries if train.queries.shape[1] else means_of(train), np.float32)
    kmeans = faiss.Kmeans(vectors.shape[1], groups, seed=SEED + 1, niter=20, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray(vectors))
    _, nearest = kmeans.index.search(np.ascontiguousarray(vectors), 1)
    return np.unique(nearest[:, 0], return_inverse=True)[1].astype(np.int64)

"""Replay of searches before and after a nudge, so that a report's figures are those of the index."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.nudging.corpus import Corpus
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.late_interaction import MovedVectors
from m3_integrations.nudging.method.variants import TRAJECTORIES, Variant
from m3_integrations.nudging.optimize.hybrid import ModeUpdate, NudgeConfig, dense_move, shortlist, sparse_move
from m3_integrations.nudging.selection.coordinate_ascent import Configuration, FusedObjective, Strength
from m3_integrations.nudging.selection.cross_validation import SEED
from m3_integrations.nudging.selection.folds import CrossFitFolds, means_of
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.score_grids import (
    AnalyticScores,
    Pairs,
    ScoreGrid,
    dense_curves,
    multi_vector_grids,
    sparse_curves,
)

QUERIES_AT_ONCE = 64  # whose scores of all passages are in memory together
BEST_SHOWN = 10  # passages per ranking
CLUSTERS = 8


def candidate_pairs(
    corpus: Corpus, folds: CrossFitFolds, config: NudgeConfig, moved: Mapping[Mode, ModeUpdate]
) -> Pairs:
    """Return the candidates of each evaluation query, with passages moved by all but the query's held-out fold."""
    n = len(corpus)
    count = min(max(config.candidates, RankMetric.of(config.metric).k), n)
    keys = [np.empty(0, np.int64)]
    for fold in range(len(folds.held_out)):
        evaluated, train = folds.eval_in(fold), folds.train_queries_for(fold)
        for mode in config.propose:
            if len(evaluated) and mode in corpus.modes:
                scores = _NudgedScores(corpus, train, mode, moved.get(mode))
                parts = np.array_split(evaluated, -(-len(evaluated) // QUERIES_AT_ONCE))
                keys += [scores.best(folds.eval_queries, part, count) for part in parts]
    every = np.unique(np.concatenate(keys))
    return Pairs(every // n, every % n)


class _NudgedScores:
    """Scores of all passages in one mode, moved by the training queries of a fold."""

    def __init__(self, corpus: Corpus, train: Judged, mode: Mode, moved: ModeUpdate | None) -> None:
        self.corpus, self.train, self.mode, self.moved = corpus, train, mode, moved
        self.update: ModeUpdate | None = None
        if moved is not None and mode == "dense":
            self.update = dense_move(corpus, train, Variant(moved.method, moved.propagation, moved.center), moved.gamma)
        elif moved is not None and mode == "sparse":
            self.update = sparse_move(corpus, train, moved.gamma, moved.center)

    def best(self, queries: Judged, rows: Ints, count: int) -> Ints:
        """Return query * n + passage for the best passages of these queries; sparse scores must be above 0."""
        n, scores = len(self.corpus), self._scores(queries.take(rows))
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(scores, best, axis=1) > (0.0 if self.mode == "sparse" else -np.inf)
        keys: Ints = (rows[:, None] * n + best)[found]
        return keys

    def _scores(self, queries: Judged) -> Floats:
        """Return scores of shape (queries, n)."""
        if self.mode == "multi_vector":
            return self._multi_vector_scores(queries)
        if self.mode == "dense":
            scores = np.asarray(queries.queries @ self.corpus.dense.T)
        else:
            scores = np.asarray((queries.in_modes.sparse @ self.corpus.sparse.T).toarray())
        if self.update is not None:
            scores[:, self.update.rows] = _moved_scores(queries, self.update)
        return scores

    def _multi_vector_scores(self, queries: Judged) -> Floats:
        n, nothing = len(self.corpus), [np.empty(0, np.int64)]
        every = Pairs(np.repeat(np.arange(len(queries)), n), np.tile(np.arange(n), len(queries)))
        gamma, center = (self.moved.gamma, self.moved.center) if self.moved else (0.0, 0.0)
        folds = CrossFitFolds(self.train, queries, np.zeros(len(queries), np.int64), nothing)
        (grid,) = multi_vector_grids(self.corpus, folds, every, np.array([0.0, gamma]), [center])
        return grid.at(gamma).reshape(len(queries), n)


def _moved_scores(queries: Judged, update: ModeUpdate) -> Floats:
    """Return dense or sparse scores of the moved passages, shape (queries, moved)."""
    assert not isinstance(update.values, MovedVectors)
    if isinstance(update.values, np.ndarray):
        return np.asarray(queries.queries @ update.values.T)
    return np.asarray((queries.in_modes.sparse @ update.values.T).toarray())


@dataclass(frozen=True, eq=False)
class Replay:
    """The metric of each evaluation query before and after, and the rows of its best passages."""

    before: Floats
    after: Floats
    best_before: Sequence[Ints]
    best_after: Sequence[Ints]


def replay(
    corpus: Corpus,
    folds: CrossFitFolds,
    config: NudgeConfig,
    moved: Mapping[Mode, ModeUpdate],
    weights: Mapping[Mode, float],
) -> Replay:
    """Search before and after the moves, each evaluation query without the pulls of its held-out fold."""
    lists = candidate_pairs(corpus, folds, config, {}), candidate_pairs(corpus, folds, config, moved)
    n = len(corpus)
    keys = [pairs.query_rows * n + pairs.rows for pairs in lists]
    every = np.union1d(*keys)
    pairs = Pairs(every // n, every % n)
    # One grid for both lists: late interaction dominates the time.
    grids = {
        mode: _grid(corpus, folds, pairs, mode, moved.get(mode), None)
        for mode in MODES
        if config.weights.get(mode) or weights.get(mode)
    }
    original = Configuration.unmoved({mode: config.weights.get(mode, 0.0) for mode in grids})
    nudged = _nudged({mode: weights.get(mode, 0.0) for mode in grids}, moved)
    before, after = (
        _ranked(folds.eval_queries, pairs, np.searchsorted(every, key), grids, configuration, config.metric)
        for key, configuration in zip(keys, (original, nudged), strict=True)
    )
    return Replay(before[0], after[0], before[1], after[1])


def _ranked(
    queries: Judged,
    pairs: Pairs,
    listed: Ints,
    grids: Mapping[Mode, ScoreGrid],
    configuration: Configuration,
    metric: str,
) -> tuple[Floats, list[Ints]]:
    """Return the metric of each query and its best passages among the listed pairs."""
    candidates = Pairs(pairs.query_rows[listed], pairs.rows[listed])
    subsets = {mode: [_GridSubset(grid, listed)] for mode, grid in grids.items()}
    objective = FusedObjective(queries, candidates, subsets, RankMetric.of(metric))
    return objective.metrics(configuration), _best(candidates, objective.scores(configuration), len(queries))


class _GridSubset:
    """Some pairs of a score grid."""

    def __init__(self, grid: ScoreGrid, rows: Ints) -> None:
        self.grid, self.rows = grid, rows

    @property
    def gammas(self) -> Floats:
        return self.grid.gammas

    def at(self, gamma: float) -> Floats:
        return self.grid.at(gamma)[self.rows]


def metric_curves(
    corpus: Corpus,
    folds: CrossFitFolds,
    config: NudgeConfig,
    moved: Mapping[Mode, ModeUpdate],
    weights: Mapping[Mode, float],
    gammas: Mapping[Mode, Floats],
    metrics: Collection[str],
) -> dict[Mode, dict[str, Floats]]:
    """Return mean metrics at each gamma of a mode, with all other modes as they moved, by mode and metric."""
    pairs = shortlist(corpus, folds, config)
    grids: dict[Mode, Sequence[ScoreGrid]] = {
        mode: [_grid(corpus, folds, pairs, mode, moved.get(mode), gammas.get(mode))]
        for mode in MODES
        if weights.get(mode)
    }
    nudged, all_queries = _nudged({mode: weights[mode] for mode in grids}, moved), np.arange(len(folds.eval_queries))
    curves: dict[Mode, dict[str, Floats]] = {mode: {} for mode in gammas if mode in grids}
    for metric in metrics:
        objective = FusedObjective(folds.eval_queries, pairs, grids, RankMetric.of(metric))
        for mode, levels in curves.items():
            steps = [nudged.with_strength(mode, Strength(0, gamma)) for gamma in gammas[mode].tolist()]
            levels[metric] = np.array([objective.mean(each, all_queries) for each in steps])
    return curves


def _nudged(weights: Mapping[Mode, float], moved: Mapping[Mode, ModeUpdate]) -> Configuration:
    configuration = Configuration.unmoved(weights)
    for mode, update in moved.items():
        configuration = configuration.with_strength(mode, Strength(0, update.gamma))
    return configuration


def _grid(
    corpus: Corpus, folds: CrossFitFolds, pairs: Pairs, mode: Mode, moved: ModeUpdate | None, gammas: Floats | None
) -> ScoreGrid:
    """Build the score grid of one mode; `gammas` ascend from 0 and include the chosen one, None for that alone."""
    if gammas is None:
        gammas = np.array([0.0, moved.gamma]) if moved else np.zeros(1)
    center = moved.center if moved else 0.0
    if mode == "sparse":
        return AnalyticScores(sparse_curves(corpus, folds, pairs, [center])[0], TRAJECTORIES["nudge-m"], gammas)
    if mode == "multi_vector":
        return multi_vector_grids(corpus, folds, pairs, gammas, [center])[0]
    variant = Variant(moved.method, moved.propagation, center) if moved else Variant("nudge-m", None, 0.0)
    return AnalyticScores(dense_curves(corpus.dense, folds, pairs, [variant])[0], variant.trajectory, gammas)


def _best(pairs: Pairs, scores: Floats, queries: int) -> list[Ints]:
    order = np.lexsort((pairs.rows, -scores, pairs.query_rows))
    edges = np.searchsorted(pairs.query_rows, np.arange(queries + 1))
    return [pairs.rows[order[low : min(low + BEST_SHOWN, high)]] for low, high in itertools.pairwise(edges)]


def cluster_queries(train: Judged) -> Ints:
    """Cluster queries by topic into up to CLUSTERS groups (k-means), shape (train,); all 0 if there are too few."""
    groups = min(CLUSTERS, len(train) // 4)
    if groups < 2 or not {"dense", "multi_vector"} & train.in_modes.modes:
        return np.zeros(len(train), np.int64)
    vectors = np.asarray(train.queries if train.queries.shape[1] else means_of(train), np.float32)
    kmeans = faiss.Kmeans(vectors.shape[1], groups, seed=SEED + 1, niter=20, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray(vectors))
    _, nearest = kmeans.index.search(np.ascontiguousarray(vectors), 1)
    return np.unique(nearest[:, 0], return_inverse=True)[1].astype(np.int64)

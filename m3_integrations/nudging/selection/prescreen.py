"""Prescreen of variants on short candidate lists, before the exact sweep of the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3_integrations.nudging.judged import Floats
from m3_integrations.nudging.method.trajectories import ScoreCurves
from m3_integrations.nudging.method.variants import Variant
from m3_integrations.nudging.selection.coordinate_ascent import Configuration, FusedObjective, Selected
from m3_integrations.nudging.selection.folds import CrossFitFolds, answers_of_similar_queries
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.running_top_k import RunningTopK
from m3_integrations.nudging.selection.score_grids import AnalyticScores, Pairs, dense_curves

SHORT = 50  # candidates of a query, in addition to the answers of similar queries


def prescreen_variants(
    passages: Floats,
    folds: CrossFitFolds,
    best: RunningTopK,
    variants: Sequence[Variant],
    metric: RankMetric,
    total: int | None = None,
) -> tuple[Variant, Selected]:
    """Choose a variant by its metric on short lists.

    Args:
        passages: Passages, shape (n, dim).
        folds: Evaluation queries and held-out pulls.
        best: Best unmoved scores of each query, with rows beyond n for passages that are not among these.
        variants: Variants to compare.
        metric: Ranking metric.
        total: Number of passages in all, if these are a part.

    Returns:
        The variant, and the configuration with its cross-validated gain.
    """
    n = len(passages)
    every = _pairs(folds, best, n)
    unmoved = every.rows >= n
    traced = dense_curves(passages, folds, Pairs(every.query_rows[~unmoved], every.rows[~unmoved]), variants, total)
    levels = _levels(best, every, unmoved)
    grids = [
        AnalyticScores(_among(curves, unmoved, levels), variant.trajectory, variant.gammas)
        for curves, variant in zip(traced, variants, strict=True)
    ]
    chosen = FusedObjective(folds.eval_queries, every, {"dense": grids}, metric).choose(
        Configuration.at_rest({"dense": 1.0}), tune_weights=False
    )
    ((_, strength),) = chosen.configuration.strengths
    return variants[strength.grid], chosen


def _pairs(folds: CrossFitFolds, best: RunningTopK, n: int) -> Pairs:
    width = 1 + max(n, int(best.rows.max(initial=0)))
    query_rows, places = np.nonzero(best.rows >= 0)
    keys = [query_rows * width + best.rows[query_rows, places]]
    keys += [answers_of_similar_queries(folds, fold, width) for fold in range(len(folds.held_out))]
    every = np.unique(np.concatenate(keys))
    return Pairs(every // width, every % width)


def _levels(best: RunningTopK, every: Pairs, unmoved: np.ndarray) -> Floats:
    """Return the scores of the pairs that do not move."""
    places = (best.rows[every.query_rows[unmoved]] == every.rows[unmoved, None]).argmax(axis=1)
    return np.asarray(best.scores[every.query_rows[unmoved], places])


def _among(curves: ScoreCurves, unmoved: np.ndarray, levels: Floats) -> ScoreCurves:
    """Combine the curves of pairs that move with the constant scores of those that do not."""
    every = ScoreCurves(*np.zeros((3, len(unmoved))))
    for target, source in zip(every, curves, strict=True):
        target[~unmoved] = source
    every.a[unmoved] = levels
    return every

"""Prescreen of variants on short candidate lists, before the exact sweep of the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.pulls import PullField
from m3_integrations.nudging.method.trajectories import ScoreCurves
from m3_integrations.nudging.method.variants import Variant
from m3_integrations.nudging.selection.coordinate_ascent import Configuration, FusedObjective, Selected
from m3_integrations.nudging.selection.folds import CrossFitFolds, answers_of_similar_queries, control_answers
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.running_top_k import RunningTopK
from m3_integrations.nudging.selection.score_grids import AnalyticScores, Pairs, dense_curves, pull_fields

SAMPLE = 256  # evaluation queries that screen variants
PROMISING = 5  # variants that all evaluation queries compare
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
    control, n = control_answers(folds), len(passages)
    every = _pairs(folds, best, n, control)
    unmoved = every.rows >= n
    moving = Pairs(every.query_rows[~unmoved], every.rows[~unmoved])
    levels = _levels(best, every, unmoved)
    fields = pull_fields(passages, folds, total)
    variants = promising_variants(passages, folds, moving, variants, metric, fields)
    traced = dense_curves(passages, folds, moving, variants, fields=fields)
    grids = [
        AnalyticScores(_among(curves, unmoved, levels), variant.trajectory, variant.gammas)
        for curves, variant in zip(traced, variants, strict=True)
    ]
    chosen = FusedObjective(folds.eval_queries, every, {"dense": grids}, metric, control).choose(
        Configuration.unmoved({"dense": 1.0}), tune_weights=False
    )
    ((_, strength),) = chosen.configuration.strengths
    return variants[strength.grid], chosen


def promising_variants(
    passages: Floats,
    folds: CrossFitFolds,
    pairs: Pairs,
    variants: Sequence[Variant],
    metric: RankMetric,
    fields: Sequence[PullField],
) -> Sequence[Variant]:
    """Return the variants that are best on a sample of the evaluation queries, PROMISING at most."""
    if len(variants) <= PROMISING or len(folds.eval_queries) <= SAMPLE:
        return variants
    some, few, _ = sample(folds, pairs)
    traced = dense_curves(passages, some, few, variants, fields=fields)
    grids = [
        AnalyticScores(curves, variant.trajectory, variant.gammas)
        for curves, variant in zip(traced, variants, strict=True)
    ]
    objective = FusedObjective(some.eval_queries, few, {"dense": grids}, metric, control_answers(some))
    return [variants[i] for i in objective.best_grids("dense", PROMISING)]


class Sample(NamedTuple):
    """Some of the evaluation queries, their pairs, and the positions of these among all pairs."""

    folds: CrossFitFolds
    pairs: Pairs
    positions: Ints


def sample(folds: CrossFitFolds, pairs: Pairs) -> Sample:
    """Return SAMPLE of the evaluation queries at equal distances, which are in no order of the log, and their pairs."""
    rows = np.unique(np.linspace(0, len(folds.eval_queries) - 1, SAMPLE).astype(np.int64))
    inside = np.flatnonzero(np.isin(pairs.query_rows, rows))
    few = Pairs(np.searchsorted(rows, pairs.query_rows[inside]), pairs.rows[inside])
    return Sample(folds.of_queries(rows), few, inside)


def _pairs(folds: CrossFitFolds, best: RunningTopK, n: int, control: Judged) -> Pairs:
    width = 1 + max(n, int(best.rows.max(initial=0)))
    query_rows, places = np.nonzero(best.rows >= 0)
    keys = [query_rows * width + best.rows[query_rows, places], control.query_ids * width + control.rows]
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

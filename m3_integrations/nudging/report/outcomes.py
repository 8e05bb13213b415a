"""Outcomes of a nudge: distances moved, per-question effects, curves, coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from m3_integrations.core.encoded import Mode
from m3_integrations.core.types import Query
from m3_integrations.data.splits import normalize_question
from m3_integrations.nudging.corpus import IndexCorpus
from m3_integrations.nudging.judged import Ints, Judged
from m3_integrations.nudging.method.late_interaction import MovedVectors
from m3_integrations.nudging.method.variants import Variant
from m3_integrations.nudging.optimize.dense import Curve
from m3_integrations.nudging.optimize.hybrid import ModeUpdate, NudgeConfig
from m3_integrations.nudging.report.replay import cluster_queries, metric_curves, replay
from m3_integrations.nudging.report.values import FEW_POPULAR, Coverage, Evaluation, Move, Outcome, in_steps
from m3_integrations.nudging.selection.folds import CrossFitFolds
from m3_integrations.nudging.selection.gamma_sweep import sweep
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.running_top_k import RunningTopK, unmoved_blocks
from m3_integrations.nudging.selection.score_grids import blocks, dense_pulls

METRICS = ("ndcg@10", "recall@10", "mrr@10")  # whose curves a report shows


class EvaluatedQueries(NamedTuple):
    """Questions of one role as arrays; `unknown` counts their answers that the index does not hold."""

    queries: Sequence[Query]
    judged: Judged
    unknown: int

    def answered(self) -> Ints:
        """Return the rows of questions with an answer and a weight."""
        return np.flatnonzero((self.judged.counts > 0) & (self.judged.weights > 0))


class FittedNudge(NamedTuple):
    """A nudge and the questions it was fitted with, whose rows are those of the corpus at that time."""

    train: EvaluatedQueries
    validation: EvaluatedQueries
    test: EvaluatedQueries | None
    pulling: Judged
    config: NudgeConfig
    moved: Mapping[Mode, ModeUpdate]
    weights: Mapping[Mode, float]
    curves: Mapping[Mode, Curve]


def evaluate(corpus: IndexCorpus, fitted: FittedNudge) -> Evaluation:
    """Replay the searches of all questions before and after a nudge."""
    return Evaluation(
        validation=outcome_of(corpus, fitted, fitted.validation),
        test=outcome_of(corpus, fitted, fitted.test) if fitted.test else None,
        held_out_topics=held_out_topics(corpus, fitted),
        other_curves=other_curves(corpus, fitted),
    )


def displacement(corpus: IndexCorpus, mode: Mode, update: ModeUpdate) -> Move:
    """Measure how far each passage moved in one mode."""
    if mode == "dense":
        lengths = np.linalg.norm(corpus.dense[update.rows] - update.values, axis=1)
    elif mode == "sparse":
        difference = update.values - corpus.sparse[update.rows]
        lengths = np.sqrt(np.asarray(difference.multiply(difference).sum(axis=1), np.float64)).ravel()
    else:
        lengths = np.array(_multi_vector_lengths(corpus, update))
    return Move(update.method, update.gamma, update.propagation, update.center, lengths)


def _multi_vector_lengths(corpus: IndexCorpus, update: ModeUpdate) -> list[float]:
    assert isinstance(update.values, MovedVectors)
    by_row, lengths = update.values.by_row(), []
    for block in blocks(update.rows):
        for row, passage in zip(block.tolist(), corpus.multi_vector(block), strict=True):
            positions, vectors = by_row[row]
            lengths.append(float(np.linalg.norm(vectors - passage[positions], axis=1).mean()))
    return lengths


def outcome_of(corpus: IndexCorpus, fitted: FittedNudge, queries: EvaluatedQueries) -> Outcome | None:
    """Compute the outcome of some questions; None if none of them has an answer."""
    rows = queries.answered()
    if not len(rows):
        return None
    folds = _single_fold(fitted.pulling, queries.judged.take(rows))
    return _outcome(corpus, folds, [queries.queries[row] for row in rows.tolist()], fitted)


def _single_fold(train: Judged, evaluated: Judged) -> CrossFitFolds:
    return CrossFitFolds(train, evaluated, np.zeros(len(evaluated), np.int64), [np.empty(0, np.int64)])


def held_out_topics(corpus: IndexCorpus, fitted: FittedNudge) -> Outcome | None:
    """Compute the outcome of each cluster of training questions after a nudge by all other clusters."""
    judged = fitted.train.judged
    judged = judged.with_answers(np.isin(judged.rows, fitted.pulling.rows))
    rows = np.flatnonzero((judged.counts > 0) & (judged.weights > 0))
    rows = rows[np.argsort(judged.identities[rows], kind="stable")]  # the order of the log never matters
    train = judged.take(rows)
    clusters = cluster_queries(train)
    if not fitted.moved or clusters.max(initial=0) < 1:
        return None
    folds, evaluated = CrossFitFolds.by_group(train, clusters)
    queries = [fitted.train.queries[row] for row in rows[evaluated].tolist()]
    return _outcome(corpus, folds, queries, fitted, clusters[evaluated])


def _outcome(
    corpus: IndexCorpus,
    folds: CrossFitFolds,
    queries: Sequence[Query],
    fitted: FittedNudge,
    clusters: Ints | None = None,
) -> Outcome:
    replayed = replay(corpus, folds, fitted.config, fitted.moved, fitted.weights)
    before, after = (
        [[corpus.ids[row] for row in rows] for rows in each] for each in (replayed.best_before, replayed.best_after)
    )
    taught = {
        id: query.text for query in sorted(fitted.train.queries, key=_text, reverse=True) for id in query.relevant
    }
    return Outcome(queries, replayed.before, replayed.after, before, after, clusters, taught)


def _text(query: Query) -> str:
    return query.text


def other_curves(corpus: IndexCorpus, fitted: FittedNudge) -> dict[Mode, dict[str, Curve]]:
    """Compute the curves of METRICS that were not maximized, by mode that moved.

    They are exact where the curves of the maximized metric are, and sampled at the same gammas otherwise.
    """
    metrics = [metric for metric in METRICS if metric != fitted.config.metric]
    train, evaluated, moved = fitted.pulling, fitted.validation.judged.answered(), fitted.moved
    if not moved:
        return {}
    if all(in_steps(curve) for curve in fitted.curves.values()):
        return {"dense": {metric: _exact_curve(corpus, train, evaluated, moved["dense"], metric) for metric in metrics}}
    folds = _single_fold(train, evaluated) if len(evaluated) else CrossFitFolds.k_fold(train, evaluated)
    gammas = {mode: fitted.curves[mode].edges for mode in moved}
    found = metric_curves(corpus, folds, fitted.config, moved, fitted.weights, gammas, metrics)
    return {
        mode: {metric: Curve(gammas[mode], levels) for metric, levels in each.items()} for mode, each in found.items()
    }


def _exact_curve(corpus: IndexCorpus, train: Judged, evaluated: Judged, update: ModeUpdate, name: str) -> Curve:
    """Compute a metric of the dense vectors alone at every gamma, as a step function."""
    variant, metric = Variant(update.method, update.propagation, update.center), RankMetric.of(name)
    pulls = dense_pulls(corpus.dense, train, variant)
    unmoved = RunningTopK.empty(len(evaluated), metric.k)
    unmoved = unmoved.update(unmoved_blocks(corpus.dense, pulls.rows), evaluated.queries)
    return Curve(*sweep(corpus.dense, pulls, evaluated, metric, variant.trajectory, unmoved).curve())


def coverage_of(
    corpus: IndexCorpus, train: EvaluatedQueries, pulling: Judged, others: Sequence[EvaluatedQueries]
) -> Coverage:
    """Count what the training questions cover, those with answers that pull, and how they overlap with the others."""
    texts = {normalize_question(query.text) for query in train.queries}
    return Coverage(
        passages=len(corpus),
        answered=len(np.unique(train.judged.rows)),
        queries=len(train.queries),
        unanswered=len(train.queries) - len(train.judged.answered()),
        unknown=train.unknown + sum(each.unknown for each in others),
        repeated=sum(normalize_question(query.text) in texts for each in others for query in each.queries),
        concentration=_concentration(train.judged),
        indiscriminate=len(np.setdiff1d(train.judged.answered().rows, pulling.rows)),
    )


def _concentration(train: Judged) -> float:
    """Return the fraction of the answered training queries that name one of the most-named passages."""
    if not len(train.rows):
        return 0.0
    popular = np.argsort(-np.bincount(train.rows), kind="stable")[:FEW_POPULAR]
    naming = np.unique(train.query_ids[np.isin(train.rows, popular)])
    return len(naming) / max(len(train.answered()), 1)


def no_answers_message(train: EvaluatedQueries, corpus: IndexCorpus) -> str:
    """Explain why no training question has an answer in the index."""
    if not train.queries:
        return "there are no training questions; pass some, each with the passages that answer it"
    named = next((id for query in train.queries for id in query.relevant), None)
    if named is None:
        return f"none of the {len(train.queries)} training questions has an answer; fill in Query.relevant"
    known = f"holds passages such as {corpus.ids[0]!r}" if corpus.ids else "is empty"
    return (
        f"none of the {len(train.queries)} training questions has an answer in the index; they name passages "
        f"such as {named!r}, and the index {known}"
    )

"""Rendering account of a nudge: how far passages moved, and what became of each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from m3_integrations.core.encoded import Mode
from m3_integrations.core.texts import Query
from m3_integrations.nudging.corpus import IndexCorpus
from m3_integrations.nudging.dense import Curve
from m3_integrations.nudging.gamma import sweep
from m3_integrations.nudging.hybrid import Moved, Race
from m3_integrations.nudging.judged import Ints, Judged
from m3_integrations.nudging.ladders import blocks, dense_pulls
from m3_integrations.nudging.late import MovedVectors
from m3_integrations.nudging.panels import Panels
from m3_integrations.nudging.plans import Plan
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.report import Coverage, Move, Outcome, in_steps
from m3_integrations.nudging.splits import normalised
from m3_integrations.nudging.still import Still, resting
from m3_integrations.nudging.trial import clusters_of, levels_over, put_on_trial

METRICS = ("ndcg@10", "recall@10", "mrr@10")  # whose curves a report has


class Judging(NamedTuple):
    """Questions of one role as arrays; unknown: how many of their answers the index does not hold."""

    queries: Sequence[Query]
    judged: Judged
    unknown: int


def measured(corpus: IndexCorpus, mode: Mode, moved: Moved) -> Move:
    """How far each passage moved."""
    if mode == "dense":
        lengths = np.linalg.norm(corpus.dense[moved.rows] - moved.values, axis=1)
    elif mode == "sparse":
        apart = moved.values - corpus.sparse[moved.rows]
        lengths = np.sqrt(np.asarray(apart.multiply(apart).sum(axis=1), np.float64)).ravel()
    else:
        lengths = np.array(_late_lengths(corpus, moved))
    return Move(moved.method, moved.gamma, moved.spread, moved.centre, lengths)


def _late_lengths(corpus: IndexCorpus, moved: Moved) -> list[float]:
    assert isinstance(moved.values, MovedVectors)
    by_row, lengths = moved.values.by_row(), []
    for block in blocks(moved.rows):
        for row, passage in zip(block.tolist(), corpus.multi_vector(block), strict=True):
            places, vectors = by_row[row]
            lengths.append(float(np.linalg.norm(vectors - passage[places], axis=1).mean()))
    return lengths


def outcome_of(
    corpus: IndexCorpus,
    train: Judging,
    asked: Judging,
    race: Race,
    moved: Mapping[Mode, Moved],
    weights: Mapping[Mode, float],
) -> Outcome | None:
    """What became of these questions; None where none of them has an answer."""
    some = np.flatnonzero((asked.judged.counts > 0) & (asked.judged.weights > 0))
    if not len(some):
        return None
    panels = _everyone_pulls(train.judged, asked.judged.take(some))
    return _outcome(corpus, panels, [asked.queries[i] for i in some.tolist()], race, moved, weights)


def _everyone_pulls(train: Judged, judges: Judged) -> Panels:
    return Panels(train.answered(), judges, np.zeros(len(judges), np.int64), [np.empty(0, np.int64)])


def shifted_outcome(
    corpus: IndexCorpus, train: Judging, race: Race, moved: Mapping[Mode, Moved], weights: Mapping[Mode, float]
) -> Outcome | None:
    """What becomes of training questions of one cluster when all other clusters alone have pulled."""
    some = np.flatnonzero((train.judged.counts > 0) & (train.judged.weights > 0))
    groups = clusters_of(train.judged.take(some))
    if not moved or groups.max(initial=0) < 1:
        return None
    panels, seated = Panels.apart(train.judged.take(some), groups)
    queries = [train.queries[i] for i in some[seated].tolist()]
    return _outcome(corpus, panels, queries, race, moved, weights, groups[seated])


def _outcome(
    corpus: IndexCorpus,
    panels: Panels,
    queries: Sequence[Query],
    race: Race,
    moved: Mapping[Mode, Moved],
    weights: Mapping[Mode, float],
    clusters: Ints | None = None,
) -> Outcome:
    trial = put_on_trial(corpus, panels, race, moved, weights)
    was, now = ([[corpus.ids[row] for row in rows] for rows in each] for each in (trial.best_before, trial.best_after))
    return Outcome(queries, trial.before, trial.after, was, now, clusters)


def other_curves(
    corpus: IndexCorpus,
    train: Judged,
    validation: Judged,
    race: Race,
    moved: Mapping[Mode, Moved],
    weights: Mapping[Mode, float],
    chosen_by: Mapping[Mode, Curve],
) -> dict[Mode, dict[str, Curve]]:
    """By mode that moved, the metrics of METRICS over gamma that nothing was chosen by, on those who chose.

    chosen_by: the curves of the metric that was; the others are exact where these are, and at the same gammas where
    these are points.
    """
    metrics = [metric for metric in METRICS if metric != race.metric]
    judges = validation.answered()
    if not moved:
        return {}
    if all(in_steps(curve) for curve in chosen_by.values()):
        return {"dense": {metric: _exact_curve(corpus, train, judges, moved["dense"], metric) for metric in metrics}}
    panels = _everyone_pulls(train, judges) if len(judges) else Panels.crossed(train.answered(), judges)
    gammas = {mode: chosen_by[mode].edges for mode in moved}
    found = levels_over(corpus, panels, race, moved, weights, gammas, metrics)
    return {
        mode: {metric: Curve(gammas[mode], levels) for metric, levels in each.items()} for mode, each in found.items()
    }


def _exact_curve(corpus: IndexCorpus, train: Judged, judges: Judged, moved: Moved, metric: str) -> Curve:
    """The metric of the dense vectors alone at every gamma, as steps."""
    plan, wanted = Plan(moved.method, moved.spread, moved.centre), RankMetric.of(metric)
    pulls = dense_pulls(corpus.dense, train.answered(), plan)
    still = Still.nothing(len(judges), wanted.k).with_(resting(corpus.dense, pulls.rows), judges.queries)
    return Curve(*sweep(corpus.dense, pulls, judges, wanted, plan.way, still).curve())


def coverage_of(corpus: IndexCorpus, train: Judging, others: Sequence[Judging]) -> Coverage:
    texts = {normalised(query.text) for query in train.queries}
    return Coverage(
        passages=len(corpus),
        answered=len(np.unique(train.judged.rows)),
        queries=len(train.queries),
        silent=len(train.queries) - len(train.judged.answered()),
        unknown=train.unknown + sum(each.unknown for each in others),
        repeated=sum(normalised(query.text) in texts for each in others for query in each.queries),
    )


def no_answers(train: Judging, corpus: IndexCorpus) -> str:
    """What to say where no training question has an answer in the index."""
    if not train.queries:
        return "there is no training question; give some, each with the passages that answer it"
    named = next((id for query in train.queries for id in query.relevant), None)
    if named is None:
        return f"none of the {len(train.queries)} training questions says what answers it; fill in Query.relevant"
    here = corpus.ids[0] if corpus.ids else "none: it is empty"
    return (
        f"none of the {len(train.queries)} training questions has an answer that the index holds; they name passages "
        f"such as {named!r}, the index holds such as {here!r}"
    )

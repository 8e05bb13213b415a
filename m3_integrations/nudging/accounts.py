"""Rendering account of a nudge: how far passages moved, and what became of each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from m3_integrations.core.encoded import Mode
from m3_integrations.core.texts import Query
from m3_integrations.nudging.corpus import IndexCorpus
from m3_integrations.nudging.hybrid import Moved, Race
from m3_integrations.nudging.judged import Judged
from m3_integrations.nudging.late import MovedVectors
from m3_integrations.nudging.panels import Panels
from m3_integrations.nudging.report import Coverage, Move, Outcome
from m3_integrations.nudging.splits import normalised
from m3_integrations.nudging.trial import clusters_of, put_on_trial


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
    lengths = []
    for row, (places, vectors) in moved.values.by_row().items():
        before = corpus.multi_vector(np.array([row]))[0][places]
        lengths.append(float(np.linalg.norm(vectors - before, axis=1).mean()))
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
    nobody = [np.empty(0, np.int64)]
    panels = Panels(train.judged.answered(), asked.judged.take(some), np.zeros(len(some), np.int64), nobody)
    return _outcome(corpus, panels, [asked.queries[i] for i in some.tolist()], race, moved, weights)


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
    return _outcome(corpus, panels, queries, race, moved, weights)


def _outcome(
    corpus: IndexCorpus,
    panels: Panels,
    queries: Sequence[Query],
    race: Race,
    moved: Mapping[Mode, Moved],
    weights: Mapping[Mode, float],
) -> Outcome:
    trial = put_on_trial(corpus, panels, race, moved, weights)
    best = [[[corpus.ids[row] for row in rows] for rows in each] for each in (trial.best_before, trial.best_after)]
    return Outcome(queries, trial.before, trial.after, *best)


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

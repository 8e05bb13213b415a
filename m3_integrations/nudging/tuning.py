"""Mode weights and the number of candidates of a search plan, chosen by cross-validation on judged queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.encoded import MODES, Encoded, Fusion, Mode
from m3_integrations.core.errors import MissingMode
from m3_integrations.core.scoring import reciprocal_ranks
from m3_integrations.core.types import Query, SearchPlan
from m3_integrations.encoders.base import Encoder, has_content
from m3_integrations.index.base import Index
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.ledger import Ledger, TunedPlan
from m3_integrations.nudging.nudger import open_ledger
from m3_integrations.nudging.selection.coordinate_ascent import (
    BETTER,
    FACTORS,
    ROUNDS,
    Configuration,
    FusedObjective,
)
from m3_integrations.nudging.selection.cross_validation import SPLITS, is_significant, mean_and_error, splits
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.score_grids import Pairs
from m3_integrations.retrieval.retriever import Retriever

CANDIDATE_FACTORS = (0.5, 1.0, 2.0)  # of the plan's number of candidates
QUERIES_AT_ONCE = 64


@dataclass(frozen=True, repr=False)
class PlanTuning(FieldsDisplay):
    """A search plan chosen on judged queries, and its gain.

    Attributes:
        plan: The chosen plan; the previous one if it gains nothing significant.
        previous: Plan of the index before; None if it had none.
        metric: Name of the metric.
        queries: Number of queries with an answer in the index.
        before: Mean metric of the previous plan.
        after: Mean metric of the best plan found, on the queries that chose it.
        gain: Cross-validated gain of such a choice, which is lower than `after - before` if that is by chance.
        error: Standard error of the gain.
    """

    plan: SearchPlan
    previous: SearchPlan | None
    metric: str
    queries: int
    before: float
    after: float
    gain: float
    error: float

    @property
    def is_changed(self) -> bool:
        """Whether the gain is significant, so that the plan changes."""
        return is_significant(self.gain, self.error)


def choose_plan(encoder: Encoder, index: Index, queries: Sequence[Query], *, metric: str = "ndcg@10") -> PlanTuning:
    """Choose mode weights and the number of candidates by cross-validation; see `tune`.

    Args:
        encoder: The encoder of the index.
        index: The index; it does not change.
        queries: Queries with relevant passages.
        metric: Metric to improve.

    Returns:
        The plan, with its cross-validated gain.
    """
    rank_metric = RankMetric.of(metric)
    present = _PresentPlan.of(encoder, index)
    judged, ids = _judge(encoder, index, queries)
    candidates = _Candidates.generate(index, judged, ids, present, rank_metric.k)
    search = _PlanSearch(candidates.objectives(judged, rank_metric, present.plan.fusion), present)
    start, all_queries = search.start, np.arange(len(judged))
    gains = np.zeros(len(judged))
    for part, rest in splits(len(judged)):
        gains[part] += (search.metrics(search.ascend(rest)) - search.metrics(start))[part] / SPLITS
    gain, error = mean_and_error(gains, judged.weights)
    best = search.ascend(all_queries)
    chosen = is_significant(gain, error)
    return PlanTuning(
        plan=present.with_choice(best) if chosen else index.plan or SearchPlan(),
        previous=index.plan,
        metric=metric,
        queries=len(judged),
        before=search.mean(start, all_queries),
        after=search.mean(best, all_queries),
        gain=gain,
        error=error,
    )


def tune(
    encoder: Encoder,
    index: Index,
    queries: Sequence[Query],
    *,
    metric: str = "ndcg@10",
    ledger: str | Path | None = None,
) -> PlanTuning:
    """Choose mode weights and the number of candidates, and store them as the plan of the index.

    Nothing changes without a significant gain (95 %, one-sided) in cross-validation, the rule of NUDGE. `revert_tuning`
    restores the previous plan.

    Args:
        encoder: Encoder of the index.
        index: Index.
        queries: Judged queries; other ones than those that the index was nudged with.
        metric: Ranking metric to maximize, such as "ndcg@10".
        ledger: File that records the previous plan; see `Nudger`.

    Returns:
        The plan and its gain.

    Raises:
        ValueError: If no query has an answer in the index, or the metric is unknown.
    """
    tuning = choose_plan(encoder, index, queries, metric=metric)
    if tuning.is_changed:
        with _opened_ledger(index, encoder, ledger) as record:
            record.tuned_plan = TunedPlan(tuning.previous, tuning.plan)
            index.plan = tuning.plan
    return tuning


def revert_tuning(encoder: Encoder, index: Index, *, ledger: str | Path | None = None) -> SearchPlan | None:
    """Restore the plan from before `tune`.

    Args:
        encoder: Encoder of the index.
        index: Index.
        ledger: File that records the previous plan.

    Returns:
        The restored plan; None if the index had none.

    Raises:
        ValueError: If the plan was not tuned, or was changed since.
    """
    with _opened_ledger(index, encoder, ledger) as record:
        tuned = record.tuned_plan
        if tuned is None:
            raise ValueError("the plan of the index was never tuned; there is nothing to revert")
        if index.plan != tuned.plan:
            raise ValueError(
                "the plan of the index was changed after it was tuned, by a nudge or by hand; undo that first"
            )
        index.plan = tuned.previous
        record.tuned_plan = None
    return tuned.previous


@contextmanager
def _opened_ledger(index: Index, encoder: Encoder, path: str | Path | None) -> Iterator[Ledger]:
    ledger = open_ledger(index, encoder, path)
    if ledger.path is None:  # shared by everything that uses the index
        yield ledger
    else:
        with closing(ledger):
            yield ledger


@dataclass(frozen=True)
class _PlanChoice:
    """A number of candidates and the weights."""

    candidates: int
    weights: Configuration


@dataclass(frozen=True)
class _PresentPlan:
    """The plan of an index as it takes effect."""

    plan: SearchPlan
    propose: tuple[Mode, ...]
    weights: Mapping[Mode, float]

    @classmethod
    def of(cls, encoder: Encoder, index: Index) -> _PresentPlan:
        """Read the plan of an index.

        Raises:
            MissingMode: If encoder and index have no mode of the plan.
        """
        retriever = Retriever(encoder, index)
        if not index.modes:
            raise MissingMode("the index holds no passages; add some before its plan is tuned")
        weights = {mode: retriever.weights[mode] for mode in MODES if mode in retriever.weights}
        plan = replace(retriever.plan, sparse_score=retriever.sparse_score if "sparse" in weights else None)
        propose = tuple(mode for mode in plan.propose if mode in encoder.modes & index.modes)
        return cls(plan, propose, weights)

    def with_choice(self, choice: _PlanChoice) -> SearchPlan:
        return replace(
            self.plan, candidates=choice.candidates, weights=dict(choice.weights.weights), modes=None, calibration=None
        )


def _judge(encoder: Encoder, index: Index, queries: Sequence[Query]) -> tuple[Judged, list[str]]:
    """Return the queries that have content and an answer in the index, and the ids of the passages by row."""
    ids = index.ids()
    rows = {id: row for row, id in enumerate(ids)}
    full = [query for query, has in zip(queries, has_content(encoder, [q.text for q in queries]), strict=True) if has]
    answers = [{rows[id]: grade for id, grade in query.relevant.items() if id in rows} for query in full]
    answered = [i for i, each in enumerate(answers) if any(grade > 0 for grade in each.values())]
    if not answered:
        raise ValueError(
            f"none of {len(queries)} queries has an answer in the index; check that their judgements name its passages"
        )
    encoded = encoder.encode_queries([full[i].text for i in answered])
    return Judged.of(encoded, [answers[i] for i in answered]), ids


@dataclass(frozen=True)
class _FixedScores:
    """Scores of pairs in a mode that does not move."""

    scores: Floats
    gammas: Floats

    def at(self, gamma: float) -> Floats:
        del gamma
        return self.scores


@dataclass(frozen=True)
class _Candidates:
    """Candidates of the queries.

    Attributes:
        pairs: Queries and rows of their candidates.
        ranks: Best rank of each pair among the modes that generate candidates, from 0.
        scores: Score of each pair by mode.
        counts: Numbers of candidates to choose from.
    """

    pairs: Pairs
    ranks: Ints
    scores: Mapping[Mode, Floats]
    counts: tuple[int, ...]

    @classmethod
    def generate(cls, index: Index, judged: Judged, ids: Sequence[str], present: _PresentPlan, k: int) -> _Candidates:
        """Generate as many candidates as the largest number to choose from."""
        counts = tuple(sorted({max(k, int(present.plan.candidates * factor)) for factor in CANDIDATE_FACTORS}))
        row_of, parts = {id: row for row, id in enumerate(ids)}, []
        for start in range(0, len(judged), QUERIES_AT_ONCE):
            numbers = np.arange(start, min(start + QUERIES_AT_ONCE, len(judged)))
            queries = judged.in_modes.take(numbers)
            if present.plan.sparse_score is not None:
                queries = queries.with_sparse_score(present.plan.sparse_score)
            ranks = _ranks(index, queries, present.propose, counts[-1])
            found = [sorted(each) for each in ranks]
            scores = {mode: np.concatenate(index.score(mode, queries, found)) for mode in present.weights}
            parts.append(
                (
                    np.repeat(numbers, [len(each) for each in found]),
                    np.array([row_of[id] for each in found for id in each], np.int64),
                    np.array([of[id] for of, each in zip(ranks, found, strict=True) for id in each], np.int64),
                    *(scores[mode].astype(np.float64) for mode in present.weights),
                )
            )
        query_rows, rows, best, *by_mode = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(Pairs(query_rows, rows), best, dict(zip(present.weights, by_mode, strict=True)), counts)

    def objectives(self, judged: Judged, metric: RankMetric, fusion: Fusion) -> dict[int, FusedObjective]:
        """Return the fused metric by number of candidates."""
        return {count: self._objective(judged, metric, fusion, self.ranks < count) for count in self.counts}

    def _objective(
        self, judged: Judged, metric: RankMetric, fusion: Fusion, among: npt.NDArray[np.bool_]
    ) -> FusedObjective:
        pairs = Pairs(self.pairs.query_rows[among], self.pairs.rows[among])
        scores = {mode: each[among] for mode, each in self.scores.items()}
        if fusion == "rrf":
            scores = {mode: _reciprocal_ranks(pairs, each, mode) for mode, each in scores.items()}
        grids = {mode: [_FixedScores(each, np.empty(0))] for mode, each in scores.items()}
        return FusedObjective(judged, pairs, grids, metric)


def _reciprocal_ranks(pairs: Pairs, scores: Floats, mode: Mode) -> Floats:
    """Return the reciprocal rank of each pair among the candidates of its query."""
    starts = np.flatnonzero(np.diff(pairs.query_rows, prepend=-1))
    names = [f"{row:020d}" for row in pairs.rows.tolist()]  # in the order of the ids
    parts = [
        reciprocal_ranks(names[start:stop], scores[start:stop].tolist(), skip_zeros=mode == "sparse")
        for start, stop in pairwise([*starts.tolist(), len(scores)])
    ]
    return np.array([rank for part in parts for rank in part], np.float64)


def _ranks(index: Index, queries: Encoded, propose: Sequence[Mode], count: int) -> list[dict[str, int]]:
    """Return for each query the best rank of each candidate."""
    best: list[dict[str, int]] = [{} for _ in range(len(queries))]
    for mode in propose:
        for ranks, hits in zip(best, index.search(mode, queries, count), strict=True):
            for rank, hit in enumerate(hits):
                ranks[hit.id] = min(rank, ranks.get(hit.id, rank))
    return best


class _PlanSearch:
    """Coordinate ascent over the number of candidates and the weights."""

    def __init__(self, objectives: Mapping[int, FusedObjective], present: _PresentPlan) -> None:
        self.objectives = objectives
        candidates = max(present.plan.candidates, min(objectives))  # those of a metric at a large k are more
        self.start = _PlanChoice(candidates, Configuration.unmoved(present.weights))

    def metrics(self, choice: _PlanChoice) -> Floats:
        return self.objectives[choice.candidates].metrics(choice.weights)

    def mean(self, choice: _PlanChoice, subset: Ints) -> float:
        return self.objectives[choice.candidates].mean(choice.weights, subset)

    def ascend(self, subset: Ints) -> _PlanChoice:
        """Return the best choice found for these queries."""
        here, level = self.start, self.mean(self.start, subset)
        for _ in range(ROUNDS):
            before = level
            for coordinate in range(1 + len(self.start.weights.weights)):
                for step in self._steps(here, coordinate):
                    if (found := self.mean(step, subset)) > level + BETTER:
                        here, level = step, found
            if level <= before + BETTER:
                break
        return here

    def _steps(self, here: _PlanChoice, coordinate: int) -> list[_PlanChoice]:
        """Return the alternatives in a coordinate: the weights in order, then the number of candidates."""
        weights = self.start.weights.weights
        if coordinate == len(weights):
            return [replace(here, candidates=count) for count in self.objectives]
        if len(weights) == 1:
            return []
        mode, weight = weights[coordinate]
        return [replace(here, weights=here.weights.with_weight(mode, weight * factor)) for factor in FACTORS]

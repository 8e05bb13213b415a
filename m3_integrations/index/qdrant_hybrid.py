"""The weighted sum of all modes, in Qdrant, in one round trip.

Each proposing mode fetches its candidates; each weighted mode scores their union, exactly; a formula adds the scores.
A passage that one mode alone proposed is scored in all of them, as in `Retriever`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qdrant_client import models

from m3_integrations.core.encoded import Encoded
from m3_integrations.core.texts import Passage
from m3_integrations.index.base import Hybrid
from m3_integrations.index.qdrant_asking import EXACTLY, share, speaking, vector_request, with_ties
from m3_integrations.index.qdrant_engine import Engine, Scored
from m3_integrations.index.qdrant_payload import PASSAGE, passage


class Fused(NamedTuple):
    """A passage that was found, and the weighted sum of its scores."""

    passage: Passage
    score: float


def hybrid(engine: Engine, queries: Encoded, asked: Hybrid, k: int, passing: models.Filter | None) -> list[list[Fused]]:
    """The best k for each query and those that tie, ties by id; at most a few more.

    A query without tokens in a mode proposes nothing by it, and scores 0.
    """
    heard = {mode: set(speaking(mode, queries)) for mode in (*asked.weights, *asked.propose)}

    def ask(row: int, limit: int) -> models.QueryRequest:
        propose = {mode: count for mode, count in asked.propose.items() if row in heard[mode]}
        weights = {mode: weight for mode, weight in asked.weights.items() if row in heard[mode]}
        return _request(queries, row, Hybrid(propose, weights or {next(iter(propose)): 0.0}), passing, limit)

    rows = sorted({row for mode in asked.propose for row in heard[mode]})
    answers = with_ties(engine, rows, k, ask)
    return [_fused(answers.get(row, [])) for row in range(len(queries))]


def _request(
    queries: Encoded, row: int, asked: Hybrid, passing: models.Filter | None, limit: int
) -> models.QueryRequest:
    """One query's passages by the weighted sum; it has something to compare in each of these modes."""
    proposals = [
        models.Prefetch(**vector_request(mode, queries, row), limit=count, filter=passing)
        for mode, count in asked.propose.items()
    ]
    union = sum(asked.propose.values())
    scored = [
        models.Prefetch(**vector_request(mode, queries, row), prefetch=proposals, limit=union, params=EXACTLY)
        for mode in asked.weights
    ]
    weighed = enumerate(asked.weights.items())
    terms = {f"$score[{i}]": weight * share(mode, queries, row) for i, (mode, weight) in weighed}
    formula = models.SumExpression(sum=[models.MultExpression(mult=[term, score]) for score, term in terms.items()])
    # By shared tokens Qdrant answers only those that have one: the others' score is 0.
    weighted_sum = models.FormulaQuery(formula=formula, defaults=dict.fromkeys(terms, 0.0))
    return models.QueryRequest(prefetch=scored, query=weighted_sum, limit=limit, with_payload=PASSAGE)


def _fused(answer: Sequence[Scored]) -> list[Fused]:
    found = [Fused(passage(each.payload), each.score) for each in answer]
    return sorted(found, key=lambda each: (-each.score, each.passage.id))

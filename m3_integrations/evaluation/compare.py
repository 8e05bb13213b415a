"""Runs of search plans on judged queries, and their evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from time import perf_counter

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.encoded import MODES, Encoded, Mode
from m3_integrations.core.types import Query, SearchPlan
from m3_integrations.encoders.base import Encoder
from m3_integrations.evaluation.metrics import evaluate
from m3_integrations.index.base import Hit, Index
from m3_integrations.retrieval.retriever import Retriever


def default_plans(weights: Mapping[Mode, float]) -> dict[str, SearchPlan]:
    """Return plans for each mode alone, dense + sparse, and all modes, as far as they have weights.

    Args:
        weights: Mode weights of the sum of all modes; dense + sparse has the recommended weights of that pair.
    """
    plans = {str(mode): SearchPlan(propose=(mode,), weights={mode: 1.0}) for mode in weights}
    if "dense" in weights and "sparse" in weights:
        plans["dense + sparse"] = SearchPlan(modes=("dense", "sparse"))
    if len(weights) == 3:
        plans["all"] = SearchPlan(weights=weights)
    return plans


def combined_plans(encoder: Encoder, index: Index) -> dict[str, SearchPlan]:
    """Return a plan for each mode alone and for every combination, with the weights recommended for it.

    Args:
        encoder: Encoder.
        index: Index; its modes and those of the encoder are combined.
    """
    available = [mode for mode in MODES if mode in encoder.modes & index.modes]
    plans = default_plans(encoder.weights_for(available))
    for pair in combinations(available, 2):
        cheap = tuple(mode for mode in SearchPlan().propose if mode in pair)
        plans.setdefault(" + ".join(pair), SearchPlan(propose=cheap, modes=pair))
    return dict(sorted(plans.items(), key=lambda plan: plan[0] == "all"))


@dataclass(frozen=True, repr=False)
class PlanRun(FieldsDisplay):
    """Rankings of a search plan.

    Attributes:
        hits: Hits by query id, best first.
        seconds: Time of each search in the order of the queries, without encoding.
    """

    hits: Mapping[str, Sequence[Hit]]
    seconds: Sequence[float] = ()

    @property
    def ids(self) -> dict[str, list[str]]:
        """Passage ids by query id, best first."""
        return {query: [hit.id for hit in hits] for query, hits in self.hits.items()}


def run_plans(
    encoder: Encoder, index: Index, queries: Sequence[Query], plans: Mapping[str, SearchPlan], k: int = 100
) -> dict[str, PlanRun]:
    """Search by each plan, one query at a time; the queries are encoded once.

    Args:
        encoder: Encoder.
        index: Index to search.
        queries: Queries.
        plans: Plans by name.
        k: Number of passages per query.

    Returns:
        The run of each plan, by its name.
    """
    encoded = encoder.encode_queries([query.text for query in queries])
    return {name: _run(Retriever(encoder, index, plan), queries, encoded, k) for name, plan in plans.items()}


def _run(retriever: Retriever, queries: Sequence[Query], encoded: Encoded, k: int) -> PlanRun:
    hits, seconds = {}, []
    for row, query in enumerate(queries):
        began = perf_counter()
        (matches,) = retriever.retrieve_encoded(encoded.take([row]), k)
        seconds.append(perf_counter() - began)
        hits[query.id] = [Hit(match.passage.id, match.score) for match in matches]
    return PlanRun(hits, seconds)


def evaluate_plans(
    encoder: Encoder,
    index: Index,
    queries: Sequence[Query],
    plans: Mapping[str, SearchPlan],
    metrics: Sequence[str] = ("recall@1", "recall@10", "ndcg@10"),
    k: int = 10,
) -> dict[str, dict[str, float]]:
    """Evaluate search plans on judged queries, which are encoded once.

    Args:
        encoder: Encoder.
        index: Index to search.
        queries: Judged queries.
        plans: Plans by name.
        metrics: Names of metrics.
        k: Number of passages retrieved per query.

    Returns:
        Mean metrics by plan and metric.
    """
    encoded = encoder.encode_queries([query.text for query in queries])
    table = {}
    for name, plan in plans.items():
        found = Retriever(encoder, index, plan).retrieve_encoded(encoded, k)
        run = {q.id: [match.passage.id for match in matches] for q, matches in zip(queries, found, strict=True)}
        table[name] = evaluate(run, queries, metrics)
    return table

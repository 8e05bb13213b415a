"""Search plans against judged questions, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from m3_integrations.core.encoded import Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.metrics import evaluate
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.texts import Query
from m3_integrations.index.base import Index
from m3_integrations.retrieval.retriever import Retriever


def plans_of(weights: Mapping[Mode, float]) -> dict[str, SearchPlan]:
    """Each mode alone, dense with sparse, and all together as weighed, by name; of the modes that have a weight."""
    plans = {str(mode): SearchPlan(propose=(mode,), weights={mode: 1.0}) for mode in weights}
    pair: dict[Mode, float] = {mode: weight for mode, weight in weights.items() if mode != "multi_vector"}
    if len(pair) == 2:
        plans["dense + sparse"] = SearchPlan(weights=pair)
    if len(weights) == 3:
        plans["all"] = SearchPlan(weights=weights)
    return plans


def judge(
    encoder: Encoder,
    index: Index,
    queries: Sequence[Query],
    plans: Mapping[str, SearchPlan],
    metrics: Sequence[str] = ("recall@1", "recall@10", "ndcg@10"),
    k: int = 10,
) -> dict[str, dict[str, float]]:
    """plan -> metric -> its mean over the judged queries, which go through the model once."""
    asked = encoder.encode_queries([query.text for query in queries])
    table = {}
    for name, plan in plans.items():
        found = Retriever(encoder, index, plan).retrieve_encoded(asked, k)
        run = {q.id: [match.passage.id for match in matches] for q, matches in zip(queries, found, strict=True)}
        table[name] = evaluate(run, queries, metrics)
    return table

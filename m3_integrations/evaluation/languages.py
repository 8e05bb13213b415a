"""Metrics by the language of queries and passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from m3_integrations.core.types import Passage, Query, SearchPlan
from m3_integrations.encoders.base import Encoder
from m3_integrations.evaluation.metrics import Metric, evaluate
from m3_integrations.index.base import Index
from m3_integrations.index.filters import Field, any_of
from m3_integrations.retrieval.retriever import Retriever

FIELDS = ("language", "lang")  # of metadata
PASSAGES_AT_ONCE = 256


def stated_language(passage: Passage) -> str | None:
    """Return the language that the metadata of a passage states in "language" or "lang".

    Args:
        passage: The passage.
    """
    for field in FIELDS:
        if isinstance(stated := passage.metadata.get(field), str):
            return stated
    return None


def metrics_by_language(
    runs: Mapping[str, Mapping[str, Sequence[str]]],
    queries: Sequence[Query],
    languages: Mapping[str, str],
    metric: str,
) -> dict[str, dict[str, float]]:
    """Return the mean metric of each run over the queries in each language.

    Args:
        runs: Rankings by name; each has passage ids by query id.
        queries: Judged queries; those without a relevant passage do not count.
        languages: Language by query id; queries without one do not count.
        metric: Name of the metric.

    Returns:
        Means by language and name of the run.
    """
    groups: dict[str, list[Query]] = {}
    for query in queries:
        if query.id in languages and any(grade > 0 for grade in query.relevant.values()):
            groups.setdefault(languages[query.id], []).append(query)
    return {
        language: {name: evaluate(run, group, (metric,))[metric] for name, run in runs.items()}
        for language, group in sorted(groups.items())
    }


def cross_lingual_matrix(
    encoder: Encoder,
    index: Index,
    queries: Sequence[Query],
    languages: Mapping[str, str],
    metric: str,
    plan: SearchPlan | None = None,
) -> dict[str, dict[str, float]]:
    """Return the mean metric of queries in each language that search the passages of each language alone.

    Args:
        encoder: Encoder.
        index: Index whose passages state their language in the metadata, see `stated_language`.
        queries: Judged queries; in each language of passages, those with a relevant passage in it count.
        languages: Language by query id.
        metric: Name of the metric.
        plan: Search plan; default that of the index.

    Returns:
        Means by language of the query and of the passages; pairs without a judgement are left out.
    """
    retriever, k = Retriever(encoder, index, plan), Metric.parse(metric).k
    matrix: dict[str, dict[str, float]] = {}
    for language, ids in sorted(_ids_by_language(index).items()):
        judged = [Query(q.id, q.text, {id: g for id, g in q.relevant.items() if id in ids}) for q in queries]
        judged = [query for query in judged if query.id in languages and any(g > 0 for g in query.relevant.values())]
        if not judged:
            continue
        where = any_of(*(Field(field, "==", language) for field in FIELDS))
        found = retriever.retrieve_many([query.text for query in judged], k, where)
        run = {query.id: [match.passage.id for match in each] for query, each in zip(judged, found, strict=True)}
        for source, means in metrics_by_language({language: run}, judged, languages, metric).items():
            matrix.setdefault(source, {}).update(means)
    return dict(sorted(matrix.items()))


def _ids_by_language(index: Index) -> dict[str, set[str]]:
    every = index.ids()
    ids: dict[str, set[str]] = {}
    for start in range(0, len(every), PASSAGES_AT_ONCE):
        for passage in index.passages(every[start : start + PASSAGES_AT_ONCE]):
            if language := stated_language(passage):
                ids.setdefault(language, set()).add(passage.id)
    return ids

"""Search requests to Qdrant: one mode, exact scores, and the weighted sum of several modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.scoring import score_mode
from m3_integrations.index.base import Hit, HybridHit, HybridRequest
from m3_integrations.index.qdrant.backend import CollectionBackend, ScoredPoint
from m3_integrations.index.qdrant.points import ID, PASSAGE, encoded_of, passage, passage_id, vector_of
from m3_integrations.index.top_k import rank

_SPARE = 4  # extra results that show whether the k-th is tied
_GROWTH = 8
_QUERIES_AT_ONCE = 64
_EPSILON = float(np.finfo(np.float32).eps)
EXACTLY = models.SearchParams(exact=True)


def vector_request(mode: Mode, queries: Encoded, row: int) -> dict[str, Any]:
    """Return the part of a request that holds a query vector."""
    return {"query": vector_of(mode, queries, row), "using": mode}


def search(
    backend: CollectionBackend, mode: Mode, queries: Encoded, k: int, condition: models.Filter | None
) -> list[list[Hit]]:
    """Find the best k by Qdrant's own search and scores, ties by id."""

    def build(row: int, limit: int) -> models.QueryRequest:
        return models.QueryRequest(
            **vector_request(mode, queries, row), limit=limit, filter=condition, with_payload=[ID]
        )

    answers = search_with_ties(backend, range(len(queries)), k, build)
    return [_ranked(answers[row], k, score_scale(mode, queries, row)) for row in range(len(queries))]


def search_exact(
    backend: CollectionBackend,
    dimensions: Mapping[Mode, int],
    mode: Mode,
    queries: Encoded,
    k: int,
    condition: models.Filter | None,
) -> list[list[Hit]]:
    """Find the best k by our own kernels, over candidates of a full scan with their vectors."""

    def build(row: int, limit: int) -> models.QueryRequest:
        return models.QueryRequest(
            **vector_request(mode, queries, row),
            limit=limit,
            filter=condition,
            params=EXACTLY,
            with_payload=[ID],
            with_vector=[mode],
        )

    def error_bound(row: int, answer: Sequence[ScoredPoint]) -> float:
        found = encoded_of([each.vectors for each in answer], dimensions, (mode,))
        return _rounding(mode, queries.take([row]), found) / score_scale(mode, queries, row)

    answers = search_with_ties(backend, range(len(queries)), k, build, error_bound)
    return [_rescored(answers[row], dimensions, mode, queries.take([row]), k) for row in range(len(queries))]


def scores(
    backend: CollectionBackend, queries: Mapping[Mode, Encoded], points: Sequence[Sequence[str]]
) -> dict[Mode, list[dict[str, float]]]:
    """Score points with Qdrant by several modes, in one round trip; exact up to rounding.

    Args:
        backend: The collection.
        queries: Queries by mode; an empty one scores 0.
        points: Ids of the points to score for each query.

    Returns:
        For each mode and query the scores by point id, of the points that exist.
    """
    requests: list[models.QueryRequest] = []
    targets: list[tuple[Mode, int, float]] = []
    for mode, encoded in queries.items():
        non_empty = set(non_empty_queries(mode, encoded))
        for row in (row for row, ids in enumerate(points) if ids):
            among = models.Filter(must=[models.HasIdCondition(has_id=sorted(set(points[row])))])
            options: dict[str, Any] = {"filter": among, "limit": len(points[row])}
            if mode == "sparse" or row not in non_empty:
                # Sparse search returns only points that share a token; this request returns all that exist.
                requests.append(models.QueryRequest(**options))
                targets.append((mode, row, 0.0))
            if row in non_empty:
                requests.append(models.QueryRequest(**vector_request(mode, encoded, row), **options, params=EXACTLY))
                targets.append((mode, row, score_scale(mode, encoded, row)))
    found: dict[Mode, list[dict[str, float]]] = {mode: [{} for _ in points] for mode in queries}
    for (mode, row, scale), answer in zip(targets, query_all(backend, requests), strict=True):
        found[mode][row].update({point.id: point.score * scale for point in answer})
    return found


def score_scale(mode: Mode, queries: Encoded, row: int) -> float:
    """Return the factor of a score: Qdrant's max_sim is the sum over the query's vectors, ours is the mean."""
    return 1 / len(queries.multi_vector[row]) if mode == "multi_vector" else 1.0


def non_empty_queries(mode: Mode, queries: Encoded) -> list[int]:
    """Return the queries with at least one token or vector."""
    if mode == "dense":
        return list(range(len(queries)))
    counts = np.diff(queries.sparse.indptr) if mode == "sparse" else queries.multi_vector.counts
    return [int(row) for row in np.flatnonzero(counts)]


def search_with_ties(
    backend: CollectionBackend,
    rows: Sequence[int],
    k: int,
    build: Callable[[int, int], models.QueryRequest],
    error_bound: Callable[[int, Sequence[ScoredPoint]], float] = lambda _, __: 0.0,
) -> dict[int, list[ScoredPoint]]:
    """Return for each query the best k and all that tie with the k-th, within the error bound.

    `build` makes a request from a query's row and a limit. One round trip, unless there are more ties than expected.
    """
    limit, answers = k + _SPARE, dict[int, list[ScoredPoint]]()
    while rows:
        answers.update(zip(rows, query_all(backend, [build(row, limit) for row in rows]), strict=True))
        rows = [row for row in rows if _may_miss_ties(answers[row], k, limit, error_bound(row, answers[row]))]
        limit *= _GROWTH
    return answers


def query_all(backend: CollectionBackend, requests: Sequence[models.QueryRequest]) -> list[list[ScoredPoint]]:
    """Run queries in round trips of bounded size."""
    steps = range(0, len(requests), _QUERIES_AT_ONCE)
    return [answer for start in steps for answer in backend.query(requests[start : start + _QUERIES_AT_ONCE])]


def _may_miss_ties(answer: Sequence[ScoredPoint], k: int, limit: int, error_bound: float) -> bool:
    return len(answer) >= limit and answer[-1].score >= answer[k - 1].score - error_bound


def _ranked(answer: Sequence[ScoredPoint], k: int, factor: float) -> list[Hit]:
    scores = np.array([each.score * factor for each in answer])
    return rank([passage_id(each.payload) for each in answer], scores, k)


def _rescored(
    answer: Sequence[ScoredPoint], dimensions: Mapping[Mode, int], mode: Mode, query: Encoded, k: int
) -> list[Hit]:
    scores = score_mode(mode, query, encoded_of([each.vectors for each in answer], dimensions, (mode,)))[0]
    ids = [passage_id(each.payload) for each in answer]
    hits = rank(ids, scores, len(ids))
    return [hit for hit in hits if mode != "sparse" or hit.score > 0][:k]


def _rounding(mode: Mode, query: Encoded, found: Encoded) -> float:
    """Return how much two ways of adding up a score can differ."""
    left, right = _vectors(mode, query), _vectors(mode, found)
    return 2 * _EPSILON * int(left.shape[1]) * _longest(left) * _longest(right)


def _vectors(mode: Mode, encoded: Encoded) -> Any:
    return encoded.multi_vector.values if mode == "multi_vector" else getattr(encoded, mode)


def _longest(vectors: Any) -> float:
    squares = vectors.multiply(vectors) if hasattr(vectors, "multiply") else np.square(vectors, dtype=np.float64)
    return float(np.sqrt(squares.sum(axis=1).max(initial=0.0))) if vectors.shape[0] else 0.0


def search_weighted_sum(
    backend: CollectionBackend, queries: Encoded, request: HybridRequest, k: int, condition: models.Filter | None
) -> list[list[HybridHit]]:
    """Find the best k of each query by the weighted sum, with ties, by id.

    A query that is empty in a mode generates no candidates by it and scores 0.
    """
    non_empty = {mode: set(non_empty_queries(mode, queries)) for mode in (*request.weights, *request.candidate_counts)}

    def build(row: int, limit: int) -> models.QueryRequest:
        counts = {mode: count for mode, count in request.candidate_counts.items() if row in non_empty[mode]}
        weights = {mode: weight for mode, weight in request.weights.items() if row in non_empty[mode]}
        return _request(queries, row, HybridRequest(counts, weights or {next(iter(counts)): 0.0}), condition, limit)

    rows = sorted({row for mode in request.candidate_counts for row in non_empty[mode]})
    results = search_with_ties(backend, rows, k, build)
    return [_hits(results.get(row, [])) for row in range(len(queries))]


def _request(
    queries: Encoded, row: int, request: HybridRequest, condition: models.Filter | None, limit: int
) -> models.QueryRequest:
    """Build the request of one query, which is not empty in any of these modes."""
    candidates = [
        models.Prefetch(**vector_request(mode, queries, row), limit=count, filter=condition)
        for mode, count in request.candidate_counts.items()
    ]
    union = sum(request.candidate_counts.values())
    scored = [
        models.Prefetch(**vector_request(mode, queries, row), prefetch=candidates, limit=union, params=EXACTLY)
        for mode in request.weights
    ]
    weighted = enumerate(request.weights.items())
    terms = {f"$score[{i}]": weight * score_scale(mode, queries, row) for i, (mode, weight) in weighted}
    formula = models.SumExpression(sum=[models.MultExpression(mult=[term, score]) for score, term in terms.items()])
    # Sparse search returns only points that share a token: the score of the others is 0.
    weighted_sum = models.FormulaQuery(formula=formula, defaults=dict.fromkeys(terms, 0.0))
    return models.QueryRequest(prefetch=scored, query=weighted_sum, limit=limit, with_payload=PASSAGE)


def _hits(answer: Sequence[ScoredPoint]) -> list[HybridHit]:
    hits = [HybridHit(passage(each.payload), {}, each.score) for each in answer]
    return sorted(hits, key=lambda hit: (-hit.score, hit.passage.id))

"""Search and scores of one mode: the engine's, or by our own kernels over the vectors that it sends along."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from qdrant_client import models

from m3_integrations.core.encoded import Encoded, Mode, score_mode
from m3_integrations.index.base import Hit
from m3_integrations.index.qdrant_engine import Engine, Scored
from m3_integrations.index.qdrant_payload import ID, passage_id
from m3_integrations.index.qdrant_points import encoded_of, vector_of
from m3_integrations.index.ranking import rank

_SPARE = 4  # answers beyond the k-th that tell whether it is tied
_GROWTH = 8
_QUERIES_AT_ONCE = 64
_EPSILON = float(np.finfo(np.float32).eps)
EXACTLY = models.SearchParams(exact=True)


def vector_request(mode: Mode, queries: Encoded, row: int) -> dict[str, Any]:
    """The part of a request that says what to compare with: a query in one mode."""
    return {"query": vector_of(mode, queries, row), "using": mode}


def nearest(engine: Engine, mode: Mode, queries: Encoded, k: int, passing: models.Filter | None) -> list[list[Hit]]:
    """The best k by the engine's own search and scores, ties by id."""

    def ask(row: int, limit: int) -> models.QueryRequest:
        return models.QueryRequest(**vector_request(mode, queries, row), limit=limit, filter=passing, with_payload=[ID])

    answers = with_ties(engine, range(len(queries)), k, ask)
    return [_ranked(answers[row], k, share(mode, queries, row)) for row in range(len(queries))]


def nearest_exactly(
    engine: Engine, kept: Mapping[Mode, int], mode: Mode, queries: Encoded, k: int, passing: models.Filter | None
) -> list[list[Hit]]:
    """The best k as the shared kernels score them: the engine proposes by a full scan, and sends the vectors."""

    def ask(row: int, limit: int) -> models.QueryRequest:
        return models.QueryRequest(
            **vector_request(mode, queries, row),
            limit=limit,
            filter=passing,
            params=EXACTLY,
            with_payload=[ID],
            with_vector=[mode],
        )

    def slack(row: int, answer: Sequence[Scored]) -> float:
        found = encoded_of([each.vectors for each in answer], kept, (mode,))
        return _rounding(mode, queries.take([row]), found) / share(mode, queries, row)

    answers = with_ties(engine, range(len(queries)), k, ask, slack)
    return [_decided(answers[row], kept, mode, queries.take([row]), k) for row in range(len(queries))]


class Wanted(NamedTuple):
    """For each query the points whose scores in the mode are wanted."""

    mode: Mode
    queries: Encoded
    points: Sequence[Sequence[str]]

    def requests(self) -> Iterator[list[models.QueryRequest]]:
        for row, ids in enumerate(self.points):
            among = models.Filter(must=[models.HasIdCondition(has_id=sorted(set(ids)))])
            request = vector_request(self.mode, self.queries, row)
            asked = [models.QueryRequest(**request, filter=among, limit=len(ids), params=EXACTLY)]
            if self.mode == "sparse":
                # It answers only those that share a token; which of the others are there, this tells.
                asked.append(models.QueryRequest(filter=among, limit=len(ids)))
            yield asked

    def read(self, row: int, answers: Sequence[Sequence[Scored]]) -> dict[str, float]:
        """By point id, of those that are there, the scores of a query."""
        there = {each.id: 0.0 for answer in answers[1:] for each in answer}
        return there | {each.id: each.score * share(self.mode, self.queries, row) for each in answers[0]}


def scores(engine: Engine, wanted: Sequence[Wanted]) -> list[list[dict[str, float]]]:
    """By point id, of those that are there, for each query: the engine's scores, exact but for rounding.

    One round trip for all that is wanted.
    """
    asked = [list(each.requests()) for each in wanted]
    answers = iter(ask_all(engine, [request for each in asked for requests in each for request in requests]))
    return [
        [each.read(row, [next(answers) for _ in requests]) for row, requests in enumerate(rows)]
        for each, rows in zip(wanted, asked, strict=True)
    ]


def share(mode: Mode, queries: Encoded, row: int) -> float:
    """By what the engine's score is multiplied: its max_sim adds the query's vectors up, and ours is their mean."""
    return 1 / len(queries.multi_vector[row]) if mode == "multi_vector" else 1.0


def speaking(mode: Mode, queries: Encoded) -> list[int]:
    """The queries that have something to compare with: a token, a vector."""
    if mode == "dense":
        return list(range(len(queries)))
    counts = np.diff(queries.sparse.indptr) if mode == "sparse" else queries.multi_vector.counts
    return [int(row) for row in np.flatnonzero(counts)]


def with_ties(
    engine: Engine,
    rows: Sequence[int],
    k: int,
    ask: Callable[[int, int], models.QueryRequest],
    slack: Callable[[int, Sequence[Scored]], float] = lambda _, __: 0.0,
) -> dict[int, list[Scored]]:
    """For each of these queries the best k and all that tie with the k-th, within the slack.

    ask: of a query's row and how many are wanted. One round trip, unless more tie than were asked for.
    """
    limit, answers = k + _SPARE, dict[int, list[Scored]]()
    while rows:
        answers.update(zip(rows, ask_all(engine, [ask(row, limit) for row in rows]), strict=True))
        rows = [row for row in rows if _may_lack(answers[row], k, limit, slack(row, answers[row]))]
        limit *= _GROWTH
    return answers


def ask_all(engine: Engine, requests: Sequence[models.QueryRequest]) -> list[list[Scored]]:
    steps = range(0, len(requests), _QUERIES_AT_ONCE)
    return [answer for start in steps for answer in engine.query(requests[start : start + _QUERIES_AT_ONCE])]


def _may_lack(answer: Sequence[Scored], k: int, limit: int, slack: float) -> bool:
    return len(answer) >= limit and answer[-1].score >= answer[k - 1].score - slack


def _ranked(answer: Sequence[Scored], k: int, factor: float) -> list[Hit]:
    scores = np.array([each.score * factor for each in answer])
    return rank([passage_id(each.payload) for each in answer], scores, k)


def _decided(answer: Sequence[Scored], kept: Mapping[Mode, int], mode: Mode, query: Encoded, k: int) -> list[Hit]:
    scores = score_mode(mode, query, encoded_of([each.vectors for each in answer], kept, (mode,)))[0]
    ids = [passage_id(each.payload) for each in answer]
    hits = rank(ids, scores, len(ids))
    return [hit for hit in hits if mode != "sparse" or hit.score > 0][:k]


def _rounding(mode: Mode, query: Encoded, found: Encoded) -> float:
    """How far two ways of adding up a score of these can be apart."""
    asked, kept = _vectors(mode, query), _vectors(mode, found)
    return 2 * _EPSILON * int(asked.shape[1]) * _longest(asked) * _longest(kept)


def _vectors(mode: Mode, encoded: Encoded) -> Any:
    return encoded.multi_vector.values if mode == "multi_vector" else getattr(encoded, mode)


def _longest(vectors: Any) -> float:
    squares = vectors.multiply(vectors) if hasattr(vectors, "multiply") else np.square(vectors, dtype=np.float64)
    return float(np.sqrt(squares.sum(axis=1).max(initial=0.0))) if vectors.shape[0] else 0.0

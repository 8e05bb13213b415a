"""Endpoints that search index folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from m3_integrations.core.concurrency import micro_batched, to_thread
from m3_integrations.core.encoded import Mode
from m3_integrations.core.types import SearchPlan, is_blank
from m3_integrations.encoders.explain import Explanation
from m3_integrations.index import Index, parse_where
from m3_integrations.retrieval.retriever import Match, Retriever
from m3_integrations.server.batching import BatchingEncoder, SearchJob, search_jobs
from m3_integrations.server.http.encoding import INVALID
from m3_integrations.server.http.fields import list_fields
from m3_integrations.server.http.responses import RefusedRequest, json_response
from m3_integrations.server.http.schemas import FieldsRequest, PassagesRequest, SearchRequest
from m3_integrations.server.settings import ServerSettings

MAX_EXPLAINED = 20  # each hit takes a forward pass


class SearchEndpoints:
    """Handlers of the endpoints that search.

    Args:
        batching: Encoder of the queries.
        indexes: Indexes by name.
        settings: Limits.
    """

    def __init__(self, batching: BatchingEncoder, indexes: Mapping[str, Index], settings: ServerSettings) -> None:
        self._batching = batching
        self._indexes = indexes
        self._settings = settings

    async def search(self, request: SearchRequest) -> Response:
        """Search an index."""
        self._check(request)
        name, index = choose_index(self._indexes, request.index)
        retriever = Retriever(self._batching.encoder, index, _plan(request))
        matches = await self._retrieve(retriever, request)
        hits = [_hit(match) for match in matches]
        if request.explain and matches:
            for hit, explanation in zip(hits, await to_thread(_explain, retriever, request, matches), strict=True):
                hit |= _explanation(explanation)
        return json_response({"index": name, "query": request.query, "hits": hits})

    async def passages(self, request: PassagesRequest) -> Response:
        """Return passages by id."""
        if len(request.ids) > self._settings.max_k:
            raise RefusedRequest(413, f"ask for at most {self._settings.max_k} ids, got {len(request.ids):,}")
        name, index = choose_index(self._indexes, request.index)
        found, missing = await to_thread(_read, index, request.ids)
        return json_response({"index": name, "passages": found, "missing": missing})

    async def fields(self, request: FieldsRequest) -> Response:
        """List metadata fields and values."""
        name, index = choose_index(self._indexes, request.index)
        return json_response({"index": name, "fields": await to_thread(list_fields, index, request.values)})

    async def list_indexes(self) -> Response:
        """List the indexes."""
        return json_response({"indexes": await to_thread(self.describe)})

    def describe(self) -> list[dict[str, Any]]:
        """Return name, modes and number of passages of each index."""
        return [
            {"name": name, "passages": len(index), "modes": sorted(index.modes)}
            for name, index in self._indexes.items()
        ]

    async def _retrieve(self, retriever: Retriever, request: SearchRequest) -> list[Match]:
        """Encode the query together with texts of other requests, and search together with other requests."""
        where = None if request.where is None else parse_where(request.where)
        modes = await to_thread(_modes, retriever)
        if modes is None or is_blank(request.query):
            return []
        encoded = await self._batching.encode("query", [request.query], modes)
        weights = None if request.weights is None else tuple(sorted(request.weights.items()))
        key = (id(retriever.index), id(retriever.encoder), request.mode, weights)
        job = SearchJob(key, retriever, request.query, encoded, request.k, where)
        return await micro_batched(search_jobs, job)

    def _check(self, request: SearchRequest) -> None:
        most = MAX_EXPLAINED if request.explain else self._settings.max_k
        if request.k > most:
            raise RefusedRequest(INVALID, f"k must be at most {most}{' with explain' * request.explain}")
        if request.weights is not None and request.mode != "hybrid":
            raise RefusedRequest(INVALID, f"weights are for mode hybrid, and mode is {request.mode!r}; leave one out")
        if request.weights is not None and not any(request.weights.values()):
            raise RefusedRequest(INVALID, f"one of the weights must be above 0, got {request.weights}")
        if request.explain and not hasattr(self._batching.encoder, "explain"):
            raise RefusedRequest(INVALID, f"{self._batching.encoder!r} cannot explain matches; leave explain out")


def choose_index(indexes: Mapping[str, Index], name: str | None) -> tuple[str, Index]:
    """Return the index of a request with its name; without a name, the only one.

    Raises:
        RefusedRequest: If there is no such index, or there are several and none is named.
    """
    names = list(indexes)
    if not names:
        raise RefusedRequest(404, "there is no index here; start the server with: m3 serve FOLDER")
    if name is None and len(names) > 1:
        raise RefusedRequest(INVALID, f"there are several indexes; send one of {names} as index")
    chosen = names[0] if name is None else name
    if chosen not in indexes:
        raise RefusedRequest(404, f"there is no index {chosen!r}; there are {names}")
    return chosen, indexes[chosen]


def _plan(request: SearchRequest) -> SearchPlan | None:
    """Return the plan of a request; None is that of the index."""
    if request.mode != "hybrid":
        return SearchPlan(propose=(request.mode,), modes=(request.mode,))
    return None if request.weights is None else SearchPlan(weights=request.weights)


def _modes(retriever: Retriever) -> frozenset[Mode] | None:
    """Return the modes that a query needs; None if the index never held a passage."""
    return retriever.modes if retriever.index.modes else None


def _read(index: Index, ids: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    known = index.content_hashes(ids)
    wanted = [id for id in dict.fromkeys(ids) if id in known]
    passages = [{"id": each.id, "text": each.text, "metadata": dict(each.metadata)} for each in index.passages(wanted)]
    return passages, [id for id in dict.fromkeys(ids) if id not in known]


def _explain(retriever: Retriever, request: SearchRequest, matches: Sequence[Match]) -> list[Explanation]:
    encoder: Any = retriever.encoder
    weights, sparse_score = retriever.weights, retriever.sparse_score
    return [encoder.explain(request.query, match.passage.text, weights, sparse_score) for match in matches]


def _hit(match: Match) -> dict[str, Any]:
    passage = match.passage
    scores = {"score": match.score, "by_mode": dict(match.by_mode)}
    return {"id": passage.id, **scores, "text": passage.text, "metadata": dict(passage.metadata)}


def _explanation(explanation: Explanation) -> dict[str, Any]:
    """Return the words that met, and by mode the spans of both texts with their strengths, the strongest 1."""
    spans = {mode: {"query": each.query, "passage": each.passage} for mode, each in explanation.spans.items()}
    return {"words": _words(explanation), "spans": spans, "heat": explanation.passage_heat()}


def _words(explanation: Explanation) -> list[dict[str, Any]]:
    return [
        {
            "query": explanation.query[slice(*match.query_at)],
            "passage": explanation.passage[slice(*match.passage_at)],
            "query_span": list(match.query_at),
            "passage_span": list(match.passage_at),
            "strength": float(match.strength),
        }
        for match in explanation.words
    ]

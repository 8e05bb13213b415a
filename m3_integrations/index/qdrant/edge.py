"""Backend over qdrant-edge: Qdrant's engine in this process, one process at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from m3_integrations.core.errors import IndexFolderError, WrongCollection
from m3_integrations.core.files import replace_text, sync_folder
from m3_integrations.index.qdrant.backend import INDEXED, PAGE, CollectionConfig, CollectionInfo, Point, ScoredPoint

ABOUT = "m3.json"
_SHARD = "shard"
_EVERYTHING = 10**9


class EdgeBackend:
    """A folder with `m3.json`, its description, and the shard that Qdrant writes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.location = folder, str(folder)
        self._shard: edge.EdgeShard | None = None
        if folder.exists() and not folder.is_dir():
            raise WrongCollection(f"{folder} is a file; name a folder, which is created if missing")
        if folder.is_dir() and any(folder.iterdir()) and not self._about.is_file():
            raise WrongCollection(f"{folder} holds no {ABOUT}, so it is not a collection; name a new folder")

    @property
    def _about(self) -> Path:
        return self.folder / ABOUT

    @property
    def shard(self) -> edge.EdgeShard:
        if self._shard is None:
            try:
                self._shard = edge.EdgeShard.load(str(self.folder / _SHARD))
            except Exception as error:  # the engine raises nothing narrower
                raise IndexFolderError(_open_error(self.folder, str(error))) from error
        return self._shard

    def info(self) -> CollectionInfo | None:
        if not self._about.is_file():
            return None
        about = json.loads(self._about.read_text("utf-8"))
        if not (self.folder / _SHARD).is_dir():
            raise WrongCollection(f"{self.folder} lacks {_SHARD!r}; put it back, or name a new folder")
        return CollectionInfo.from_json(about, about["widths"])

    def create(self, info: CollectionInfo, layout: CollectionConfig) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shard = edge.EdgeShard.create(str(self.folder / _SHARD), _config(info, layout))
        for key, kind in INDEXED:
            self.create_field_index(key, kind)
        self.set_info(info)

    def set_info(self, info: CollectionInfo) -> None:
        replace_text(self._about, json.dumps(info.to_json()))
        sync_folder(self.folder)

    def upsert(self, points: Sequence[Point]) -> None:
        made = [edge.Point(each.id, _edge_vectors(each.vectors), dict(each.payload or {})) for each in points]
        self.shard.update(edge.UpdateOperation.upsert_points(made))

    def replace(self, points: Sequence[Point]) -> None:
        made = [edge.PointVectors(each.id, _edge_vectors(each.vectors)) for each in points]
        self.shard.update(edge.UpdateOperation.update_vectors(made))

    def delete(self, ids: Sequence[str]) -> None:
        self.shard.update(edge.UpdateOperation.delete_points(list(ids)))

    def records(self, ids: Sequence[str], payload: Sequence[str], vectors: Sequence[str]) -> list[ScoredPoint]:
        found = self.shard.retrieve(list(ids), list(payload) or False, list(vectors) or False)
        return [ScoredPoint.of(each) for each in found]

    def pages(self, condition: models.Filter | None, payload: Sequence[str]) -> Iterator[list[ScoredPoint]]:
        start: Any = None
        while True:
            request = edge.ScrollRequest(
                offset=start, limit=PAGE, filter=_filter(condition), with_payload=list(payload), with_vector=False
            )
            found, start = self.shard.scroll(request)
            yield [ScoredPoint.of(each) for each in found]
            if start is None:
                return

    def count(self) -> int:
        return self.shard.count(edge.CountRequest(exact=True))

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[ScoredPoint]]:
        if not requests:
            return []
        answers = self.shard.query_batch(edge.QueryBatchRequest([_to_edge_request(each) for each in requests]))
        return [[ScoredPoint.of(point) for point in answer] for answer in answers]

    def create_field_index(self, key: str, kind: models.PayloadSchemaType) -> None:
        self.shard.update(edge.UpdateOperation.create_field_index(key, _KINDS[kind]))

    def optimize(self) -> None:
        self.shard.optimize()

    def close(self) -> None:
        if self._shard is not None:
            self._shard.flush()
            self._shard.close()
            self._shard = None


def _open_error(folder: Path, reason: str) -> str:
    if "WouldBlock" in reason:
        return f"{folder} is open in another process; close it there, or use a Qdrant server for both"
    return f"{folder} cannot be opened ({reason}); restore it from a copy, or name a new folder"


_KINDS = {
    models.PayloadSchemaType.KEYWORD: edge.PayloadSchemaType.Keyword,
    models.PayloadSchemaType.FLOAT: edge.PayloadSchemaType.Float,
}


def _config(info: CollectionInfo, layout: CollectionConfig) -> edge.EdgeConfig:
    memory = edge.Memory.Cold if layout.on_disk else None
    vectors = {}
    if "dense" in info.widths:
        vectors["dense"] = edge.EdgeVectorParams(info.widths["dense"], edge.Distance.Dot, memory=memory)
    if "multi_vector" in info.widths:
        vectors["multi_vector"] = edge.EdgeVectorParams(
            info.widths["multi_vector"],
            edge.Distance.Dot,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
            quantization_config=edge.ScalarQuantizationConfig(edge.ScalarType.Int8) if layout.quantized else None,
            memory=memory,
        )
    sparse = {"sparse": edge.EdgeSparseVectorParams(memory=memory)} if "sparse" in info.widths else None
    return edge.EdgeConfig(vectors=vectors, sparse_vectors=sparse)


def _edge_vectors(vectors: Mapping[str, Any]) -> dict[str, Any]:
    return {mode: _vector(vector) for mode, vector in vectors.items()}


def _vector(vector: Any) -> Any:
    if isinstance(vector, models.SparseVector):
        return edge.SparseVector(vector.indices, vector.values)
    return vector


def _to_edge_request(request: models.QueryRequest) -> edge.QueryRequest:
    payload: Any = request.with_payload or False
    return edge.QueryRequest(
        limit=request.limit or _EVERYTHING,
        query=_query(request.query, request.using),
        prefetches=[_prefetch(each) for each in _as_list(request.prefetch)] or None,
        filter=_filter(request.filter),
        params=_params(request.params),
        with_payload=payload,
        with_vector=request.with_vector or False,
    )


def _prefetch(prefetch: models.Prefetch) -> edge.Prefetch:
    return edge.Prefetch(
        limit=prefetch.limit or _EVERYTHING,
        query=_query(prefetch.query, prefetch.using),
        prefetches=[_prefetch(each) for each in _as_list(prefetch.prefetch)] or None,
        filter=_filter(prefetch.filter),
        params=_params(prefetch.params),
    )


def _as_list(prefetch: Any) -> list[models.Prefetch]:
    if prefetch is None:
        return []
    return prefetch if isinstance(prefetch, list) else [prefetch]


def _query(query: Any, using: str | None) -> Any:
    if isinstance(query, models.FormulaQuery):
        return edge.Formula(_expression(query.formula), query.defaults or {})
    nearest = query.nearest if isinstance(query, models.NearestQuery) else query
    return None if nearest is None else edge.Query.Nearest(_vector(nearest), using)


def _expression(formula: Any) -> edge.Expression:
    if isinstance(formula, models.SumExpression):
        return edge.Expression.Sum([_expression(each) for each in formula.sum])
    if isinstance(formula, models.MultExpression):
        return edge.Expression.Mult([_expression(each) for each in formula.mult])
    return edge.Expression.Variable(formula) if isinstance(formula, str) else edge.Expression.Constant(formula)


def _params(params: models.SearchParams | None) -> edge.SearchParams | None:
    return None if params is None else edge.SearchParams(exact=bool(params.exact), hnsw_ef=params.hnsw_ef)


def _filter(condition: Any) -> edge.Filter | None:
    if condition is None:
        return None
    parts = [[_condition(each) for each in getattr(condition, part) or []] for part in ("must", "should", "must_not")]
    must, should, must_not = (part or None for part in parts)
    return edge.Filter(must=must, should=should, must_not=must_not)


def _condition(condition: Any) -> Any:
    if isinstance(condition, models.Filter):
        return _filter(condition)
    if isinstance(condition, models.HasIdCondition):
        return edge.HasIdCondition(set(condition.has_id))
    if isinstance(condition, models.FieldCondition) and condition.range is not None:
        bounds = {name: getattr(condition.range, name) for name in ("lt", "lte", "gt", "gte")}
        return edge.FieldCondition(condition.key, range=edge.RangeFloat(**bounds))
    return edge.FieldCondition(condition.key, match=_MATCHES[type(condition.match)](condition.match))


_MATCHES: Mapping[type, Callable[[Any], Any]] = {
    models.MatchAny: lambda match: edge.MatchAny(match.any),
    models.MatchSubstring: lambda match: edge.MatchSubstring(match.substring),
}

"""A collection in a folder, by Qdrant's own engine in this process: no server, one process at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from m3_integrations.core.errors import IndexFolderError
from m3_integrations.index.arrays import sync_folder
from m3_integrations.index.qdrant_engine import INDEXED, PAGE, Kept, Layout, Point, Scored
from m3_integrations.index.qdrant_errors import WrongCollection

ABOUT = "m3.json"
_SHARD = "shard"
_EVERYTHING = 10**9


class EdgeEngine:
    """A folder with `m3.json`, which says what it is, beside the shard that Qdrant writes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)
        self._shard: edge.EdgeShard | None = None
        if folder.exists() and not folder.is_dir():
            raise WrongCollection(f"{folder} is a file; name a folder, which is made where there is none")
        if folder.is_dir() and any(folder.iterdir()) and not self._about.is_file():
            raise WrongCollection(f"{folder} holds no {ABOUT}, so that it is no collection; name a new folder")

    @property
    def _about(self) -> Path:
        return self.folder / ABOUT

    @property
    def shard(self) -> edge.EdgeShard:
        if self._shard is None:
            try:
                self._shard = edge.EdgeShard.load(str(self.folder / _SHARD))
            except Exception as error:  # the engine knows no narrower one
                raise IndexFolderError(_why_not(self.folder, str(error))) from error
        return self._shard

    def kept(self) -> Kept | None:
        if not self._about.is_file():
            return None
        said = json.loads(self._about.read_text("utf-8"))
        if not (self.folder / _SHARD).is_dir():
            raise WrongCollection(f"{self.folder} lacks {_SHARD!r}; put it back, or name a new folder")
        return Kept(said["widths"], said["fingerprint"], said["label"])

    def create(self, kept: Kept, layout: Layout) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shard = edge.EdgeShard.create(str(self.folder / _SHARD), _config(kept, layout))
        for key, kind in INDEXED:
            self.index_field(key, kind)
        self.remember(kept)

    def remember(self, kept: Kept) -> None:
        about = {"widths": dict(kept.widths), "fingerprint": kept.fingerprint, "label": kept.label}
        written = self._about.with_suffix(".new")
        written.write_text(json.dumps(about), "utf-8")
        written.replace(self._about)
        sync_folder(self.folder)

    def upsert(self, points: Sequence[Point]) -> None:
        made = [edge.Point(each.id, _named(each.vectors), dict(each.payload or {})) for each in points]
        self.shard.update(edge.UpdateOperation.upsert_points(made))

    def replace(self, points: Sequence[Point]) -> None:
        made = [edge.PointVectors(each.id, _named(each.vectors)) for each in points]
        self.shard.update(edge.UpdateOperation.update_vectors(made))

    def delete(self, ids: Sequence[str]) -> None:
        self.shard.update(edge.UpdateOperation.delete_points(list(ids)))

    def records(self, ids: Sequence[str], payload: Sequence[str], vectors: Sequence[str]) -> list[Scored]:
        found = self.shard.retrieve(list(ids), list(payload) or False, list(vectors) or False)
        return [_scored(each) for each in found]

    def pages(self, passing: models.Filter | None, payload: Sequence[str]) -> Iterator[list[Scored]]:
        start: Any = None
        while True:
            request = edge.ScrollRequest(
                offset=start, limit=PAGE, filter=_filter(passing), with_payload=list(payload), with_vector=False
            )
            found, start = self.shard.scroll(request)
            yield [_scored(each) for each in found]
            if start is None:
                return

    def count(self) -> int:
        return self.shard.count(edge.CountRequest(exact=True))

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[Scored]]:
        if not requests:
            return []
        answers = self.shard.query_batch(edge.QueryBatchRequest([_request(each) for each in requests]))
        return [[_scored(point) for point in answer] for answer in answers]

    def index_field(self, key: str, kind: models.PayloadSchemaType) -> None:
        self.shard.update(edge.UpdateOperation.create_field_index(key, _KINDS[kind]))

    def optimise(self) -> None:
        self.shard.optimize()

    def close(self) -> None:
        if self._shard is not None:
            self._shard.flush()
            self._shard.close()
            self._shard = None


def _why_not(folder: Path, said: str) -> str:
    if "WouldBlock" in said:
        return f"{folder} is open in another process; close it there, or let both ask a Qdrant server"
    return f"{folder} cannot be opened ({said}); restore it from a copy, or name a new folder"


_KINDS = {
    models.PayloadSchemaType.KEYWORD: edge.PayloadSchemaType.Keyword,
    models.PayloadSchemaType.FLOAT: edge.PayloadSchemaType.Float,
}


def _config(kept: Kept, layout: Layout) -> edge.EdgeConfig:
    memory = edge.Memory.Cold if layout.on_disk else None
    vectors = {}
    if "dense" in kept.widths:
        vectors["dense"] = edge.EdgeVectorParams(kept.widths["dense"], edge.Distance.Dot, memory=memory)
    if "multi_vector" in kept.widths:
        vectors["multi_vector"] = edge.EdgeVectorParams(
            kept.widths["multi_vector"],
            edge.Distance.Dot,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
            quantization_config=edge.ScalarQuantizationConfig(edge.ScalarType.Int8) if layout.quantised else None,
            memory=memory,
        )
    sparse = {"sparse": edge.EdgeSparseVectorParams(memory=memory)} if "sparse" in kept.widths else None
    return edge.EdgeConfig(vectors=vectors, sparse_vectors=sparse)


def _named(vectors: Mapping[str, Any]) -> dict[str, Any]:
    return {mode: _vector(vector) for mode, vector in vectors.items()}


def _vector(vector: Any) -> Any:
    if isinstance(vector, models.SparseVector):
        return edge.SparseVector(vector.indices, vector.values)
    return vector


def _request(request: models.QueryRequest) -> edge.QueryRequest:
    payload: Any = request.with_payload or False
    return edge.QueryRequest(
        limit=request.limit or _EVERYTHING,
        query=_query(request.query, request.using),
        prefetches=[_prefetch(each) for each in _several(request.prefetch)] or None,
        filter=_filter(request.filter),
        params=_params(request.params),
        with_payload=payload,
        with_vector=request.with_vector or False,
    )


def _prefetch(prefetch: models.Prefetch) -> edge.Prefetch:
    return edge.Prefetch(
        limit=prefetch.limit or _EVERYTHING,
        query=_query(prefetch.query, prefetch.using),
        prefetches=[_prefetch(each) for each in _several(prefetch.prefetch)] or None,
        filter=_filter(prefetch.filter),
        params=_params(prefetch.params),
    )


def _several(prefetch: Any) -> list[models.Prefetch]:
    if prefetch is None:
        return []
    return prefetch if isinstance(prefetch, list) else [prefetch]


def _query(query: Any, using: str | None) -> Any:
    if isinstance(query, models.FormulaQuery):
        return edge.Formula(_expression(query.formula), query.defaults or {})
    nearest = query.nearest if isinstance(query, models.NearestQuery) else query
    return None if nearest is None else edge.Query.Nearest(_vector(nearest), using)


def _expression(said: Any) -> edge.Expression:
    if isinstance(said, models.SumExpression):
        return edge.Expression.Sum([_expression(each) for each in said.sum])
    if isinstance(said, models.MultExpression):
        return edge.Expression.Mult([_expression(each) for each in said.mult])
    return edge.Expression.Variable(said) if isinstance(said, str) else edge.Expression.Constant(said)


def _params(params: models.SearchParams | None) -> edge.SearchParams | None:
    return None if params is None else edge.SearchParams(exact=bool(params.exact), hnsw_ef=params.hnsw_ef)


def _filter(said: Any) -> edge.Filter | None:
    if said is None:
        return None
    parts = [[_condition(each) for each in getattr(said, part) or []] for part in ("must", "should", "must_not")]
    must, should, must_not = (part or None for part in parts)
    return edge.Filter(must=must, should=should, must_not=must_not)


def _condition(said: Any) -> Any:
    if isinstance(said, models.Filter):
        return _filter(said)
    if isinstance(said, models.HasIdCondition):
        return edge.HasIdCondition(set(said.has_id))
    if isinstance(said, models.FieldCondition) and said.range is not None:
        bounds = {name: getattr(said.range, name) for name in ("lt", "lte", "gt", "gte")}
        return edge.FieldCondition(said.key, range=edge.RangeFloat(**bounds))
    return edge.FieldCondition(said.key, match=_MATCHES[type(said.match)](said.match))


_MATCHES: Mapping[type, Callable[[Any], Any]] = {
    models.MatchAny: lambda match: edge.MatchAny(match.any),
    models.MatchSubstring: lambda match: edge.MatchSubstring(match.substring),
}


def _scored(point: Any) -> Scored:
    return Scored(str(point.id), getattr(point, "score", 0.0), point.payload or {}, point.vector or {})

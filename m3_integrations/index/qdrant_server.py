"""A collection behind qdrant-client: a server, a cluster, or the client's stand-in in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.index.qdrant_engine import INDEXED, PAGE, Kept, Layout, Point, Scored
from m3_integrations.index.qdrant_errors import QdrantUnreachable, WrongCollection

T = TypeVar("T")
_ABOUT = "m3_integrations"
_PASSING = (429, 500, 502, 503, 504)  # what a server says while it is busy, or is being started again
_ABSENT = (404, "NOT_FOUND")
_THERE = (409, "ALREADY_EXISTS")
_REFUSED = (401, 403, "UNAUTHENTICATED", "PERMISSION_DENIED")


class ServerEngine:
    """A collection of a `QdrantClient`.

    tries: how often a request is made before its failure is believed; the pauses between double from half a second.
    """

    def __init__(self, client: QdrantClient, collection: str, place: str, tries: int = 4) -> None:
        self.client, self.collection, self.place, self._tries = client, collection, place, tries

    def kept(self) -> Kept | None:
        try:
            config = self._ask(lambda: self.client.get_collection(self.collection)).config
        except Exception as error:
            if _code(error) in _ABSENT or (isinstance(error, ValueError) and not self.is_server):
                return None
            raise
        return _kept(config.params, (config.metadata or {}).get(_ABOUT), self.collection)

    def create(self, kept: Kept, layout: Layout) -> None:
        try:
            self._ask(
                lambda: self.client.create_collection(
                    self.collection,
                    vectors_config=_vectors_config(kept.widths, layout),
                    sparse_vectors_config=_sparse_config(kept.widths, layout),
                    shard_number=layout.shards,
                    replication_factor=layout.copies,
                    on_disk_payload=True,
                    metadata={_ABOUT: _about(kept)},
                )
            )
        except Exception as error:
            if _code(error) not in _THERE:
                raise
        for key, kind in INDEXED:
            self.index_field(key, kind)

    def remember(self, kept: Kept) -> None:
        about = {_ABOUT: _about(kept)}
        self._ask(lambda: self.client.update_collection(self.collection, metadata=about))

    def upsert(self, points: Sequence[Point]) -> None:
        structs = [
            models.PointStruct(id=each.id, vector=dict(each.vectors), payload=dict(each.payload or {}))
            for each in points
        ]
        self._ask(lambda: self.client.upsert(self.collection, structs, wait=True))

    def replace(self, points: Sequence[Point]) -> None:
        vectors = [models.PointVectors(id=each.id, vector=dict(each.vectors)) for each in points]
        self._ask(lambda: self.client.update_vectors(self.collection, vectors, wait=True))

    def delete(self, ids: Sequence[str]) -> None:
        self._ask(lambda: self.client.delete(self.collection, list(ids), wait=True))

    def records(self, ids: Sequence[str], payload: Sequence[str], vectors: Sequence[str]) -> list[Scored]:
        found = self._ask(
            lambda: self.client.retrieve(
                self.collection, list(ids), with_payload=list(payload) or False, with_vectors=list(vectors) or False
            )
        )
        return [_scored(each) for each in found]

    def pages(self, passing: models.Filter | None, payload: Sequence[str]) -> Iterator[list[Scored]]:
        start: Any = None
        while True:
            found, start = self._ask(
                lambda start=start: self.client.scroll(  # type: ignore[misc]  # mypy knows no default of a lambda
                    self.collection, scroll_filter=passing, limit=PAGE, offset=start, with_payload=list(payload)
                )
            )
            yield [_scored(each) for each in found]
            if start is None:
                return

    def count(self) -> int:
        return self._ask(lambda: self.client.count(self.collection, exact=True)).count

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[Scored]]:
        if not requests:
            return []
        answers = self._ask(lambda: self.client.query_batch_points(self.collection, list(requests)))
        return [[_scored(point) for point in answer.points] for answer in answers]

    def index_field(self, key: str, kind: models.PayloadSchemaType) -> None:
        if self.is_server:  # the stand-in has no payload indexes, and says so each time
            self._ask(lambda: self.client.create_payload_index(self.collection, key, kind, wait=True))

    def optimise(self) -> None:
        """Nothing: a server does so by itself."""

    def serve_as(self, alias: str) -> None:
        """Let the alias stand for this collection from now on; whoever searches sees the one before, or this one."""
        known = self._ask(self.client.get_aliases).aliases
        changes: list[Any] = [
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name=self.collection, alias_name=alias)
            )
        ]
        if any(each.alias_name == alias for each in known):
            changes.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        self._ask(lambda: self.client.update_collection_aliases(changes))

    def snapshot(self) -> str:
        """Let the server write a snapshot; its name."""
        made = self._ask(lambda: self.client.create_snapshot(self.collection, wait=True))
        if made is None:
            raise WrongCollection(f"{self.place} writes no snapshots; a Qdrant server does")
        return made.name

    def close(self) -> None:
        self.client.close()

    @property
    def is_server(self) -> bool:
        options = self.client.init_options
        return options.get("location") != ":memory:" and options.get("path") is None

    def _ask(self, request: Callable[[], T]) -> T:
        """What the server answers, asked again while its failure may pass."""
        for attempt in range(self._tries):
            try:
                return request()
            except Exception as error:  # which errors there are depends on whether the client speaks REST or gRPC
                last = attempt == self._tries - 1
                if last or not _may_pass(error):
                    raise self._named(error) from error
                time.sleep(_pause(error, attempt))
        raise AssertionError("tries is at least 1")

    def _named(self, error: Exception) -> Exception:
        if _code(error) in _REFUSED:
            return QdrantUnreachable(
                f"{self.place} refuses the key; pass api_key=... with rights to {self.collection!r}"
            )
        if isinstance(error, ResponseHandlingException) or _code(error) in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            reason = error.source if isinstance(error, ResponseHandlingException) else _code(error)
            return QdrantUnreachable(
                f"no Qdrant answers at {self.place} ({reason}); start one with `docker run -p 6333:6333 -p 6334:6334 "
                "qdrant/qdrant`, or name another URL"
            )
        return error


def _may_pass(error: Exception) -> bool:
    if isinstance(error, (ResponseHandlingException, ResourceExhaustedResponse)):
        return True
    return _code(error) in (*_PASSING, "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


def _code(error: Exception) -> int | str | None:
    """The status of HTTP, or the name of gRPC's."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code
    code = getattr(error, "code", None)
    return code().name if callable(code) else None


def _pause(error: Exception, attempt: int) -> float:
    """Seconds: what the server asks for, within half a minute, or half a second and twice as much each time."""
    return float(min(30, getattr(error, "retry_after_s", 0.5 * 2**attempt)))


def _about(kept: Kept) -> dict[str, Any]:
    return {"widths": dict(kept.widths), "fingerprint": kept.fingerprint, "label": kept.label}


def _kept(params: models.CollectionParams, about: Any, collection: str) -> Kept:
    """What the collection says; its own configuration is asked whether it can be so."""
    vectors = params.vectors if isinstance(params.vectors, dict) else {}
    there = {*vectors, *(params.sparse_vectors or {})}
    if not isinstance(about, dict) or set(about["widths"]) != there or not there <= set(MODES):
        raise WrongCollection(
            f"the collection {collection!r} was not made by QdrantIndex (its vectors are {sorted(there)}); name "
            "another, which is made where there is none"
        )
    for mode, params_of_mode in vectors.items():
        if params_of_mode.size != about["widths"][mode] or params_of_mode.distance != models.Distance.DOT:
            raise WrongCollection(
                f"the collection {collection!r} compares {mode} vectors of {params_of_mode.size} by "
                f"{params_of_mode.distance}, and was made for {about['widths'][mode]} by Dot; name another"
            )
    widths: dict[Mode, int] = {mode: about["widths"][mode] for mode in MODES if mode in there}
    return Kept(widths, about["fingerprint"], about["label"])


def _vectors_config(widths: Mapping[Mode, int], layout: Layout) -> dict[str, models.VectorParams]:
    config: dict[str, models.VectorParams] = {}
    if "dense" in widths:
        # Dot, as every similarity of ours: cosine would shorten what NUDGE-M has made longer on purpose.
        config["dense"] = models.VectorParams(
            size=widths["dense"], distance=models.Distance.DOT, on_disk=layout.on_disk or None
        )
    if "multi_vector" in widths:
        config["multi_vector"] = models.VectorParams(
            size=widths["multi_vector"],
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # a graph over late interaction costs more than it finds
            quantization_config=_quantisation() if layout.quantised else None,
            on_disk=layout.on_disk or None,
        )
    return config


def _sparse_config(widths: Mapping[Mode, int], layout: Layout) -> dict[str, models.SparseVectorParams] | None:
    if "sparse" not in widths:
        return None
    # No idf modifier: the weights of a learned sparse row already say how rare a token is.
    return {"sparse": models.SparseVectorParams(index=models.SparseIndexParams(on_disk=layout.on_disk or None))}


def _quantisation() -> models.ScalarQuantization:
    return models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8))


def _scored(point: Any) -> Scored:
    return Scored(str(point.id), getattr(point, "score", 0.0), point.payload or {}, point.vector or {})

"""Backend over qdrant-client: a server, a cluster, or the in-memory client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.core.errors import QdrantUnreachable, WrongCollection
from m3_integrations.index.qdrant.backend import INDEXED, PAGE, CollectionConfig, CollectionInfo, Point, ScoredPoint

T = TypeVar("T")
_ABOUT = "m3_integrations"
_TRANSIENT = (429, 500, 502, 503, 504)  # while a server is busy or restarting
_INT8 = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8))
_ABSENT = (404, "NOT_FOUND")
_EXISTS = (409, "ALREADY_EXISTS")
_REFUSED = (401, 403, "UNAUTHENTICATED", "PERMISSION_DENIED")


class ServerBackend:
    """A collection of a QdrantClient.

    Requests are tried `tries` times; the pauses between double from half a second.
    """

    def __init__(self, client: QdrantClient, collection: str, location: str, tries: int = 4) -> None:
        self.client, self.collection, self.location, self._tries = client, collection, location, tries

    def info(self) -> CollectionInfo | None:
        try:
            config = self._request(lambda: self.client.get_collection(self.collection)).config
        except Exception as error:
            if _code(error) in _ABSENT or (isinstance(error, ValueError) and not self.is_server):
                return None
            raise
        return _read_info(config.params, (config.metadata or {}).get(_ABOUT), self.collection)

    def create(self, info: CollectionInfo, layout: CollectionConfig) -> None:
        try:
            self._request(
                lambda: self.client.create_collection(
                    self.collection,
                    vectors_config=_vectors_config(info.widths, layout),
                    sparse_vectors_config=_sparse_config(info.widths, layout),
                    shard_number=layout.shards,
                    replication_factor=layout.replicas,
                    on_disk_payload=True,
                    metadata={_ABOUT: info.to_json()},
                )
            )
        except Exception as error:
            if _code(error) not in _EXISTS:
                raise
        for key, kind in INDEXED:
            self.create_field_index(key, kind)

    def set_info(self, info: CollectionInfo) -> None:
        metadata = {_ABOUT: info.to_json()}
        self._request(lambda: self.client.update_collection(self.collection, metadata=metadata))

    def upsert(self, points: Sequence[Point]) -> None:
        structs = [
            models.PointStruct(id=each.id, vector=dict(each.vectors), payload=dict(each.payload or {}))
            for each in points
        ]
        self._request(lambda: self.client.upsert(self.collection, structs, wait=True))

    def replace(self, points: Sequence[Point]) -> None:
        vectors = [models.PointVectors(id=each.id, vector=dict(each.vectors)) for each in points]
        self._request(lambda: self.client.update_vectors(self.collection, vectors, wait=True))

    def delete(self, ids: Sequence[str]) -> None:
        self._request(lambda: self.client.delete(self.collection, list(ids), wait=True))

    def records(self, ids: Sequence[str], payload: Sequence[str], vectors: Sequence[str]) -> list[ScoredPoint]:
        found = self._request(
            lambda: self.client.retrieve(
                self.collection, list(ids), with_payload=list(payload) or False, with_vectors=list(vectors) or False
            )
        )
        return [ScoredPoint.of(each) for each in found]

    def pages(self, condition: models.Filter | None, payload: Sequence[str]) -> Iterator[list[ScoredPoint]]:
        start: Any = None
        while True:
            found, start = self._request(
                lambda start=start: self.client.scroll(  # type: ignore[misc]  # mypy rejects a lambda's default
                    self.collection, scroll_filter=condition, limit=PAGE, offset=start, with_payload=list(payload)
                )
            )
            yield [ScoredPoint.of(each) for each in found]
            if start is None:
                return

    def count(self) -> int:
        return self._request(lambda: self.client.count(self.collection, exact=True)).count

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[ScoredPoint]]:
        if not requests:
            return []
        answers = self._request(lambda: self.client.query_batch_points(self.collection, list(requests)))
        return [[ScoredPoint.of(point) for point in answer.points] for answer in answers]

    def create_field_index(self, key: str, kind: models.PayloadSchemaType) -> None:
        if self.is_server:  # the in-memory client has none and warns at each call
            self._request(lambda: self.client.create_payload_index(self.collection, key, kind, wait=True))

    def optimize(self) -> None:
        """Do nothing: a server optimizes by itself."""

    def set_alias(self, alias: str) -> None:
        """Point the alias to this collection, atomically."""
        known = self._request(self.client.get_aliases).aliases
        changes: list[Any] = [
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name=self.collection, alias_name=alias)
            )
        ]
        if any(each.alias_name == alias for each in known):
            changes.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        self._request(lambda: self.client.update_collection_aliases(changes))

    def snapshot(self) -> str:
        """Let the server write a snapshot and return its name."""
        made = self._request(lambda: self.client.create_snapshot(self.collection, wait=True))
        if made is None:
            raise WrongCollection(f"{self.location} does not support snapshots; a Qdrant server does")
        return made.name

    def close(self) -> None:
        self.client.close()

    @property
    def is_server(self) -> bool:
        options = self.client.init_options
        return options.get("location") != ":memory:" and options.get("path") is None

    def _request(self, request: Callable[[], T]) -> T:
        """Send a request, again after transient failures."""
        for attempt in range(self._tries):
            try:
                return request()
            except Exception as error:  # REST and gRPC raise different errors
                last = attempt == self._tries - 1
                if last or not _is_transient(error):
                    raise self._translate(error) from error
                time.sleep(_backoff(error, attempt))
        raise AssertionError("tries is at least 1")

    def _translate(self, error: Exception) -> Exception:
        if _code(error) in _REFUSED:
            return QdrantUnreachable(
                f"{self.location} refuses the key; pass api_key=... with rights to {self.collection!r}"
            )
        if isinstance(error, ResponseHandlingException) or _code(error) in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            reason = error.source if isinstance(error, ResponseHandlingException) else _code(error)
            return QdrantUnreachable(
                f"no Qdrant server answers at {self.location} ({reason}); start one with `docker run -p 6333:6333 "
                "-p 6334:6334 qdrant/qdrant`, or name another URL"
            )
        return error


def _is_transient(error: Exception) -> bool:
    if isinstance(error, (ResponseHandlingException, ResourceExhaustedResponse)):
        return True
    return _code(error) in (*_TRANSIENT, "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


def _code(error: Exception) -> int | str | None:
    """Return the HTTP status or the name of the gRPC status."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code
    code = getattr(error, "code", None)
    return code().name if callable(code) else None


def _backoff(error: Exception, attempt: int) -> float:
    """Return seconds to wait: as the server asks, up to half a minute, or half a second, doubled each time."""
    return float(min(30, getattr(error, "retry_after_s", 0.5 * 2**attempt)))


def _read_info(params: models.CollectionParams, about: Any, collection: str) -> CollectionInfo:
    """Read the description and check it against the collection's configuration."""
    vectors = params.vectors if isinstance(params.vectors, dict) else {}
    known = {*vectors, *(params.sparse_vectors or {})}
    if not isinstance(about, dict) or set(about["widths"]) != known or not known <= set(MODES):
        raise WrongCollection(
            f"the collection {collection!r} was not made by QdrantIndex (its vectors are {sorted(known)}); name "
            "another collection, which is created if missing"
        )
    for mode, params_of_mode in vectors.items():
        if params_of_mode.size != about["widths"][mode] or params_of_mode.distance != models.Distance.DOT:
            raise WrongCollection(
                f"the collection {collection!r} compares {mode} vectors of {params_of_mode.size} by "
                f"{params_of_mode.distance}, and was made for {about['widths'][mode]} by Dot; name another"
            )
    widths: dict[Mode, int] = {mode: about["widths"][mode] for mode in MODES if mode in known}
    return CollectionInfo.from_json(about, widths)


def _vectors_config(widths: Mapping[Mode, int], layout: CollectionConfig) -> dict[str, models.VectorParams]:
    config: dict[str, models.VectorParams] = {}
    if "dense" in widths:
        # Dot, as everywhere here: cosine would undo the lengths of NUDGE-M.
        config["dense"] = models.VectorParams(
            size=widths["dense"], distance=models.Distance.DOT, on_disk=layout.on_disk or None
        )
    if "multi_vector" in widths:
        config["multi_vector"] = models.VectorParams(
            size=widths["multi_vector"],
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # a graph over multi-vectors costs more than it helps
            quantization_config=_INT8 if layout.quantized else None,
            on_disk=layout.on_disk or None,
        )
    return config


def _sparse_config(widths: Mapping[Mode, int], layout: CollectionConfig) -> dict[str, models.SparseVectorParams] | None:
    if "sparse" not in widths:
        return None
    # No idf modifier: learned sparse weights already account for rare tokens.
    return {"sparse": models.SparseVectorParams(index=models.SparseIndexParams(on_disk=layout.on_disk or None))}

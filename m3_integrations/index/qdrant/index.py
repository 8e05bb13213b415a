"""QdrantIndex: an index in a Qdrant server or in Qdrant's embedded engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np

from m3_integrations.core.concurrency import as_async
from m3_integrations.core.encoded import Array, Encoded, Mode, Modes, check_modes
from m3_integrations.core.errors import NotPicklable, PartlyWritten, QdrantUnreachable, WrongCollection
from m3_integrations.core.forking import ProcessBound
from m3_integrations.core.optional import import_optional
from m3_integrations.core.scoring import score_mode, weighted_sum
from m3_integrations.core.types import Passage, SearchPlan, positive_integer
from m3_integrations.index.base import ClosableIndex, Fingerprinted, Hit, HybridHit, HybridRequest, describe_plan
from m3_integrations.index.filters import Where, check_depth
from m3_integrations.index.qdrant.locations import check_api_key, check_url, hide_credentials
from m3_integrations.index.validation import (
    check_count,
    check_encoder,
    check_ids,
    check_plan,
    check_score,
    check_search,
    check_unchanged,
    check_updates,
    check_widths,
    deduplicate,
    last_rows,
    resolve_updates,
    unknown_id_error,
    widths,
)

if not TYPE_CHECKING:
    import_optional("qdrant-client", extra="qdrant")  # before imports that would fail less clearly

from qdrant_client import QdrantClient, models

from m3_integrations.index.qdrant.backend import CollectionBackend, CollectionConfig, CollectionInfo, Point, ScoredPoint
from m3_integrations.index.qdrant.filter_fields import FIELDS, NUMBER, NotExpressible, field_key
from m3_integrations.index.qdrant.filters import to_qdrant_filter
from m3_integrations.index.qdrant.points import (
    HASH,
    ID,
    PASSAGE,
    batches,
    encoded_of,
    passage,
    passage_id,
    payload,
    point_id,
    vectors_of,
)
from m3_integrations.index.qdrant.search import non_empty_queries, scores, search, search_exact, search_weighted_sum
from m3_integrations.index.qdrant.server import ServerBackend

__all__ = ["CollectionConfig", "PartlyWritten", "QdrantIndex", "QdrantUnreachable", "WrongCollection"]
_READ_AT_ONCE = 256
_MAX_LIMIT = 1 << 16
_SCHEMES = {"http": "http", "https": "https", "qdrant": "http", "qdrants": "https"}


class QdrantIndex(ClosableIndex):
    """A Qdrant collection with a named vector for each mode, compared by inner product; thread-safe.

    Open it with `QdrantIndex.open`, or with a client of your own by `QdrantIndex.from_client`. Within one QdrantIndex a
    search sees all of a write or none of it; other readers may see a part of it and should read through an alias
    (`set_alias`).
    """

    def __init__(self, backend: CollectionBackend, layout: CollectionConfig, exact_below: int) -> None:
        self._backend, self._layout, self._exact_below = backend, layout, exact_below
        self._lock = ReadWriteLock()
        self._encoder: Fingerprinted | None = None
        self._collection: CollectionInfo | None = None
        self._first_plan: SearchPlan | None = None  # until the first passages create the collection
        self._is_large = False
        self.folder: Path | None = getattr(backend, "folder", None)

    def __reduce__(self) -> NoReturn:
        raise NotPicklable(
            "a QdrantIndex cannot be pickled, as it holds a connection; open it in each process with "
            "QdrantIndex.open(url, collection)"
        )

    def __copy__(self) -> QdrantIndex:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QdrantIndex:
        """Return this index: copies of components share its connection."""
        return self

    @classmethod
    def open(
        cls,
        url_or_path: str | PathLike[str],
        collection: str,
        encoder: Fingerprinted | None = None,
        *,
        api_key: str | None = None,
        layout: CollectionConfig | None = None,
        exact_below: int = 1000,
        grpc: bool = False,
        timeout: int = 60,
    ) -> QdrantIndex:
        """Open a collection; the first passages create it.

        Args:
            url_or_path: http://host:6333 or qdrant://host:6333, with TLS https:// or qdrants://; a folder, for Qdrant's
                embedded engine in this process; or ":memory:", qdrant-client's in-memory client, for tests.
            collection: Name of the collection.
            encoder: The encoder of its vectors; a new collection records the first one. None: not checked.
            api_key: API key of the server.
            layout: Configuration of a new collection.
            exact_below: Up to this many passages, vectors are fetched and scored here, so that results equal those of
                MemoryIndex bit for bit. Above, Qdrant's scores count, with its rounding, and its graph generates the
                dense candidates, which may miss some.
            grpc: Use gRPC on the next port (6334), which is faster.
            timeout: Timeout of a request in seconds.

        Returns:
            The index; close it, or use it in a `with` block.

        Raises:
            QdrantUnreachable: If no server answers or it refuses the key.
            WrongEncoder: If another encoder filled the collection.
            WrongCollection: If the collection was not made by QdrantIndex.
            MissingExtra: If qdrant-client is not installed.
        """
        location = fspath(url_or_path)
        if location == ":memory:":
            return cls.from_client(QdrantClient(location), collection, encoder, layout=layout, exact_below=exact_below)
        if "://" in location and location.partition("://")[0].lower() in _SCHEMES:
            client = _client(location, api_key, grpc, timeout)
            return cls.from_client(client, collection, encoder, layout=layout, exact_below=exact_below)
        return cls._from_backend(_edge(Path(location).absolute() / collection), encoder, layout, exact_below)

    @classmethod
    def from_client(
        cls,
        client: QdrantClient,
        collection: str,
        encoder: Fingerprinted | None = None,
        *,
        layout: CollectionConfig | None = None,
        exact_below: int = 1000,
    ) -> QdrantIndex:
        """Open a collection with a client of your own, which is closed with the index.

        Args:
            client: The client.
            collection: Name of the collection.
            encoder: As in `open`.
            layout: As in `open`.
            exact_below: As in `open`.

        Returns:
            The index.
        """
        options = client.init_options
        location = options.get("url") or options.get("host") or options.get("location") or options.get("path")
        return cls._from_backend(
            ServerBackend(client, collection, hide_credentials(str(location))), encoder, layout, exact_below
        )

    @classmethod
    def _from_backend(
        cls,
        backend: CollectionBackend,
        encoder: Fingerprinted | None,
        layout: CollectionConfig | None,
        exact_below: int,
    ) -> QdrantIndex:
        index = cls(backend, layout or CollectionConfig(), exact_below)
        try:
            if encoder is not None:
                index._set_encoder(encoder)
            else:
                index._info()
        except BaseException:
            index.close()
            raise
        return index

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(self._widths())

    @property
    def encoder(self) -> tuple[str | None, str | None]:
        """Fingerprint and label of the encoder that filled the collection; None if it was never given."""
        info = self._info()
        return (info.fingerprint, info.label) if info else (None, None)

    @property
    def plan(self) -> SearchPlan | None:
        """Search plan, see `Index.plan`; another process's change is seen by those who open the collection later."""
        info = self._info()
        return info.plan if info else self._first_plan

    @plan.setter
    def plan(self, plan: SearchPlan | None) -> None:
        with self._lock.writing():
            self._set_plan(check_plan(plan))

    def add(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        """Add passages; see `Index.add`.

        Raises:
            PartlyWritten: If a request after the first one fails; add the same passages again to complete it.
        """
        check_count("passages", len(passages), encoded)
        if not passages:
            return
        records, vectors = deduplicate(passages, encoded)
        with self._lock.writing():
            stored = self._widths() or widths(encoded)
            check_widths(stored, encoded)
            self._create(stored)
            check_widths(self._widths(), encoded)  # another process may have created it with other vectors
            ids, payloads = [record.id for record in records], [payload(record) for record in records]
            self._write(self._backend.upsert, ids, vectors.only(self._widths().keys()), payloads)

    def delete(self, ids: Collection[str], *, purge: bool = False) -> None:
        if purge:
            raise WrongCollection(
                "QdrantIndex does not support purge=True: Qdrant removes deleted points from its files when its "
                "optimizer runs; delete without purge=True, or copy the rest into a new collection and drop this one"
            )
        points = [point_id(id) for id in check_ids(ids, "delete")]
        with self._lock.writing():
            if points and self._info():
                for part in _parts(points):
                    self._backend.delete(part)

    def set_vectors(self, ids: Sequence[str], encoded: Encoded) -> None:
        self.set_vectors_many([(ids, encoded)])

    def set_vectors_many(
        self,
        updates: Sequence[tuple[Sequence[str], Encoded]],
        plan: SearchPlan | None = None,
        *,
        unchanged: Mapping[str, str] | None = None,
    ) -> None:
        """Replace vectors; see `Index.set_vectors_many`.

        Raises:
            PartlyWritten: If a request after the first one fails; set the same vectors again to complete it.
        """
        checked = check_updates(updates)
        if unchanged:  # a server has no transaction: a writer in another process can still come between
            check_unchanged(unchanged, self.content_hashes(unchanged.keys()))
        with self._lock.writing():
            self._points(list({id for update in checked for id in update.ids}), [])
            for ids, encoded in resolve_updates(self._widths(), checked):
                self._write(self._backend.replace, ids, encoded)
            if plan is not None:
                self._set_plan(check_plan(plan))

    def search(self, mode: Mode, queries: Encoded, k: int, where: Where | None = None) -> list[list[Hit]]:
        with self._lock.reading():
            queries, k = _without_idf(check_search(self._widths(), mode, queries, k)), self._limited(k)
            if not self._info():
                return [[] for _ in range(len(queries))]
            condition = self._condition(where)
            rows = non_empty_queries(mode, queries)
            found = dict(zip(rows, self._nearest(mode, queries.take(rows), k, condition), strict=True))
            of_empty = self._matches_of_empty_query(mode, k, condition) if len(rows) < len(queries) else []
            return [found.get(row, of_empty) for row in range(len(queries))]

    def supports_hybrid(self, queries: Encoded, request: HybridRequest) -> bool:
        has_vectors = "multi_vector" not in request.candidate_counts or queries.multi_vector.counts.all()
        return bool(has_vectors) and self._info() is not None and not self._is_exact()

    def search_hybrid(
        self, queries: Encoded, request: HybridRequest, k: int = 10, where: Where | None = None, *, by_mode: bool = True
    ) -> list[list[HybridHit]]:
        """Find the best k passages by the weighted sum of their scores, computed by Qdrant.

        All queries share one round trip, and a second one if scores by mode are requested. A filter that Qdrant cannot
        express takes one more.

        Args:
            queries: Encoded queries, in all modes of the request.
            request: Candidates and weights by mode.
            k: Number of passages per query, at least 1.
            where: Metadata filter.
            by_mode: Whether to return the scores of each mode. If False, `HybridHit.by_mode` is empty and
                `HybridHit.score` is Qdrant's sum, rounded to float32.

        Returns:
            For each query the passages, best first, ties by id.

        Raises:
            MissingMode: If the queries or the index lack a mode.
            ValueError: If k is less than 1 or all weights are 0.
            UnknownId: If a passage was deleted during the search; retry it.
        """
        with self._lock.reading():
            found = self._hybrid(queries, request, k, where)
            if not by_mode:
                return [hits[:k] for hits in found]
            ids = [[hit.passage.id for hit in hits] for hits in found]
            scores = self._engine_scores({mode: queries.only((mode,)) for mode in request.weights}, ids)
        return [
            _rescore(hits, {mode: scores[mode][row].tolist() for mode in scores}, request.weights)[:k]
            for row, hits in enumerate(found)
        ]

    asearch, asearch_hybrid = as_async(search), as_async(search_hybrid)

    def score(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        with self._lock.reading():
            queries, wanted = check_score(self._widths(), mode, _without_idf(queries), ids)
            if not any(wanted):
                return [np.zeros(0, np.float32) for _ in wanted]
            if self._is_exact():
                return self._kernel_scores(mode, queries, wanted)
            return self._engine_scores({mode: queries}, wanted)[mode]

    def passages(self, ids: Sequence[str] | None = None) -> list[Passage]:
        wanted = None if ids is None else check_ids(ids, "passages")
        with self._lock.reading():
            if wanted is None:
                return sorted((passage(point.payload) for point in self._scroll(PASSAGE)), key=lambda each: each.id)
            return [passage(point.payload) for point in self._points(wanted, PASSAGE)]

    def vectors(self, ids: Sequence[str], modes: Modes | None = None) -> Encoded:
        wanted = check_ids(ids, "vectors")
        with self._lock.reading():
            return self._vectors(wanted, modes)

    def content_hashes(self, ids: Collection[str] | None = None) -> dict[str, str]:
        wanted = None if ids is None else check_ids(ids, "content_hashes")
        with self._lock.reading():
            points = self._scroll([ID, HASH]) if wanted is None else self._records(wanted, [ID, HASH])
            return {passage_id(point.payload): point.payload[HASH] for point in points}

    def ids(self, where: Where | None = None) -> list[str]:
        with self._lock.reading():
            return sorted(passage_id(point.payload) for point in self._scroll([ID], self._condition(where)))

    def __len__(self) -> int:
        return self._backend.count() if self._info() else 0

    def create_field_index(self, name: str) -> None:
        """Index a metadata field for range filters (<, <=, >, >=), which otherwise scan.

        The other operators are always indexed.

        Args:
            name: Name of the metadata field.

        Raises:
            WrongCollection: If there are no passages yet.
        """
        with self._lock.writing():
            if not self._info():
                raise WrongCollection(f"{self._backend.location} holds no passages to index yet; add some first")
            for part in (NUMBER, "c0", "c1"):  # the first twelve bytes of strings: a date with its hour
                self._backend.create_field_index(f"{FIELDS}.{field_key(name)}.{part}", models.PayloadSchemaType.FLOAT)

    def optimize(self) -> None:
        """Build pending indexes of a folder after many additions; a server does so by itself.

        Until then, new passages are searched by a full scan.
        """
        with self._lock.writing():
            if self._info():
                self._backend.optimize()

    def set_alias(self, alias: str) -> None:
        """Point an alias to this collection; readers of the alias switch at once.

        Write a copy, nudge it, and switch the alias, so that no reader sees a half-nudged collection.

        Args:
            alias: Name of the alias.

        Raises:
            WrongCollection: If the index is a folder, which has no aliases.
        """
        self._server().set_alias(alias)

    def snapshot(self) -> str:
        """Let the server write a snapshot and return its name.

        Returns:
            Name of the snapshot on the server.

        Raises:
            WrongCollection: If the index is a folder.
        """
        return self._server().snapshot()

    def close(self) -> None:
        self._backend.close()

    def __repr__(self) -> str:
        return f"QdrantIndex({self._backend.location!r}){describe_plan(self._collection and self._collection.plan)}"

    def _server(self) -> ServerBackend:
        if not isinstance(self._backend, ServerBackend):
            raise WrongCollection(
                f"{self._backend.location} is a folder and does not support this; a Qdrant server does"
            )
        return self._backend

    def _info(self) -> CollectionInfo | None:
        """Return the collection's own description, read until it exists; its modes never change."""
        if self._collection is None:
            self._collection = self._backend.info()
            if self._collection is not None and self._encoder is not None:
                self._check_encoder(self._collection, self._encoder)
        return self._collection

    def _widths(self) -> Mapping[Mode, int]:
        info = self._info()
        return info.widths if info else {}

    def _set_encoder(self, encoder: Fingerprinted) -> None:
        self._encoder = encoder
        info = self._info()
        if info is not None and info.fingerprint is None:
            self._set_info(info._replace(fingerprint=encoder.fingerprint, label=repr(encoder)))

    def _set_plan(self, plan: SearchPlan | None) -> None:
        info = self._info()
        if info is None:
            self._first_plan = plan
        else:
            self._set_info(info._replace(plan=plan))

    def _set_info(self, info: CollectionInfo) -> None:
        self._backend.set_info(info)
        self._collection = info

    def _check_encoder(self, info: CollectionInfo, encoder: Fingerprinted) -> None:
        check_encoder(self._backend.location, info.fingerprint, info.label, encoder, "collection")

    def _create(self, stored: Mapping[Mode, int]) -> None:
        if self._info() is None:
            encoder = self._encoder
            identity = (None, None) if encoder is None else (encoder.fingerprint, repr(encoder))
            self._backend.create(CollectionInfo(stored, *identity)._replace(plan=self._first_plan), self._layout)

    def _write(
        self,
        write: Callable[[Sequence[Point]], None],
        ids: Sequence[str],
        encoded: Encoded,
        payloads: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        """Write in requests of bounded size; raise PartlyWritten if one of several fails."""
        for rows in batches(encoded):
            vectors = zip(rows, vectors_of(encoded.take(rows)), strict=True)
            try:
                write(
                    [Point(point_id(ids[row]), vector, payloads[row] if payloads else None) for row, vector in vectors]
                )
            except Exception as error:
                if rows.start == 0 and rows.stop == len(ids):
                    raise
                raise PartlyWritten(ids[: rows.start], ids[rows.start :], error) from error

    def _nearest(self, mode: Mode, queries: Encoded, k: int, condition: models.Filter | None) -> list[list[Hit]]:
        if not len(queries):
            return []
        if self._is_exact():
            return search_exact(self._backend, self._widths(), mode, queries, k, condition)
        return search(self._backend, mode, queries, k, condition)

    def _matches_of_empty_query(self, mode: Mode, k: int, condition: models.Filter | None) -> list[Hit]:
        """Return the hits of an empty query: none for sparse, score 0 for every passage otherwise."""
        if mode == "sparse":
            return []
        return [Hit(id, 0.0) for id in sorted(passage_id(point.payload) for point in self._scroll([ID], condition))[:k]]

    def _kernel_scores(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        all_ids = sorted({id for query_ids in ids for id in query_ids})
        stored, rows = self._vectors(all_ids, (mode,)), last_rows(all_ids)
        return [
            score_mode(mode, queries.take([i]), stored.take([rows[id] for id in query_ids]))[0]
            for i, query_ids in enumerate(ids)
        ]

    def _hybrid(self, queries: Encoded, request: HybridRequest, k: int, where: Where | None) -> list[list[HybridHit]]:
        """Find at least the best k of each query."""
        weights = {mode: weight for mode, weight in request.weights.items() if weight}
        if not weights:
            raise ValueError(f"give at least one of {sorted(self.modes)} a weight, got {dict(request.weights)}")
        for mode in (*weights, *request.candidate_counts):
            check_search(self._widths(), mode, _without_idf(queries), k)
        if not self._info():
            return [[] for _ in range(len(queries))]
        counts = {mode: self._limited(count, "candidates") for mode, count in request.candidate_counts.items()}
        request, k = HybridRequest(counts, weights), self._limited(k)
        return search_weighted_sum(self._backend, queries, request, k, self._condition(where))

    def _limited(self, count: int, name: str = "k") -> int:
        """Return a number of hits that Qdrant, which allocates memory for it, can take."""
        number = positive_integer(name, count)
        return number if number <= _MAX_LIMIT else min(number, max(1, self._backend.count()))

    def _engine_scores(self, queries: Mapping[Mode, Encoded], ids: Sequence[Sequence[str]]) -> dict[Mode, list[Array]]:
        """Return the scores of ids[i] for query i by mode, in one round trip; raise UnknownId."""
        found = scores(self._backend, queries, [list(map(point_id, query_ids)) for query_ids in ids])
        return {mode: list(map(_align_scores, ids, by_query)) for mode, by_query in found.items()}

    def _is_exact(self) -> bool:
        """Return whether the collection is small; a large one is not counted again."""
        self._is_large = self._is_large or self._backend.count() > self._exact_below
        return not self._is_large

    def _condition(self, where: Where | None) -> models.Filter | None:
        if where is None:
            return None
        check_depth(where)
        try:
            return to_qdrant_filter(where)
        except NotExpressible:
            passages = (passage(point.payload) for point in self._scroll(PASSAGE))
            matching = [point_id(each.id) for each in passages if where.matches(each.metadata)]
            return models.Filter(must=[models.HasIdCondition(has_id=list[int | str | UUID](matching))])

    def _vectors(self, ids: Sequence[str], modes: Modes | None) -> Encoded:
        if not self._info() and ids:
            raise unknown_id_error(ids[0])
        modes = check_modes(self._widths() if modes is None else modes, self._widths())
        return encoded_of([point.vectors for point in self._points(ids, [], list(modes))], self._widths(), modes)

    def _points(self, ids: Sequence[str], payload: Sequence[str], vectors: Sequence[str] = ()) -> list[ScoredPoint]:
        """Return the points of passages, in order; raise UnknownId."""
        found = {point.id: point for point in self._records(ids, payload, vectors)}
        for id in ids:
            if point_id(id) not in found:
                raise unknown_id_error(id)
        return [found[point_id(id)] for id in ids]

    def _records(
        self, ids: Collection[str], payload: Sequence[str], vectors: Sequence[str] = ()
    ) -> Iterator[ScoredPoint]:
        if self._info():
            for part in _parts([point_id(id) for id in dict.fromkeys(ids)]):
                yield from self._backend.records(part, payload, vectors)

    def _scroll(self, payload: Sequence[str], condition: models.Filter | None = None) -> Iterator[ScoredPoint]:
        if self._info():
            for page in self._backend.pages(condition, payload):
                yield from page


def _without_idf(queries: Encoded) -> Encoded:
    """Return queries whose sparse score a collection can compute, or raise WrongCollection."""
    if queries.sparse_score == "idf" and "sparse" in queries.modes:
        raise WrongCollection(
            "sparse_score='idf' needs the number of passages of each token, which Qdrant does not count; search with "
            "SearchPlan(sparse_score='mean'), or copy the collection to a LocalIndex"
        )
    return queries


def _rescore(
    hits: Sequence[HybridHit], scores: Mapping[Mode, Sequence[float]], weights: Mapping[Mode, float]
) -> list[HybridHit]:
    """Sort hits by the weighted sum of these scores, ties by id."""
    by_mode = [{mode: scores[mode][position] for mode in scores} for position in range(len(hits))]
    rescored = [
        HybridHit(hit.passage, each, weighted_sum(each, weights)[0]) for hit, each in zip(hits, by_mode, strict=True)
    ]
    return sorted(rescored, key=lambda hit: (-hit.score, hit.passage.id))


def _align_scores(ids: Sequence[str], by_point: Mapping[str, float]) -> Array:
    """Return the scores of these passages, in order; raise UnknownId."""
    aligned = [by_point.get(point_id(id)) for id in ids]
    if None in aligned:
        raise unknown_id_error(ids[aligned.index(None)])
    return np.array(aligned, np.float32)


def _parts(points: Sequence[str]) -> Iterator[Sequence[str]]:
    return (points[start : start + _READ_AT_ONCE] for start in range(0, len(points), _READ_AT_ONCE))


def _client(location: str, api_key: str | None, grpc: bool, timeout: int) -> QdrantClient:
    check_url(location)
    check_api_key(api_key)
    url = urlsplit(location)
    port = url.port or 6333
    return QdrantClient(
        url=f"{_SCHEMES[url.scheme]}://{url.hostname}:{port}",
        prefix=url.path.strip("/") or None,
        api_key=api_key,
        prefer_grpc=grpc,
        grpc_port=port + 1,
        timeout=timeout,
        check_compatibility=False,  # it warns, and contacts the server before the first request
    )


def _edge(folder: Path) -> CollectionBackend:
    import_optional("qdrant-edge-py", extra="qdrant", module="qdrant_edge")
    from m3_integrations.index.qdrant.edge import EdgeBackend

    return EdgeBackend(folder)


class ReadWriteLock:
    """A lock for many readers or one writer; a waiting writer blocks new readers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = threading.Lock()
        self._process = ProcessBound("a QdrantIndex")

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._process.check()
        with self._writing, self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        self._process.check()
        with self._writing:
            with self._changed:
                self._changed.wait_for(lambda: not self._readers)
            yield

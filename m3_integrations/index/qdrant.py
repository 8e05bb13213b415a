"""An index in Qdrant: for a corpus, or a load of questions, that outgrows one machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np

from m3_integrations.core.encoded import Array, Encoded, Mode, check_modes, score_mode
from m3_integrations.core.errors import WrongEncoder
from m3_integrations.core.extras import need
from m3_integrations.core.texts import Passage
from m3_integrations.core.threads import awaited
from m3_integrations.index.base import Found, Hit, Hybrid
from m3_integrations.index.checks import (
    check_changes,
    check_count,
    check_score,
    check_search,
    check_widths,
    last_rows,
    latest_of,
    list_of_ids,
    newest,
    unknown,
    widths,
)
from m3_integrations.index.where import Where

if not TYPE_CHECKING:
    need("qdrant-client", extra="qdrant")  # before imports that would say less

from qdrant_client import QdrantClient, models

from m3_integrations.index import qdrant_asking as asking
from m3_integrations.index.qdrant_engine import Engine, Kept, Layout, Point, Scored
from m3_integrations.index.qdrant_errors import PartlyWritten, QdrantUnreachable, WrongCollection
from m3_integrations.index.qdrant_facts import FIELDS, NUMBER, Undecidable, field_key
from m3_integrations.index.qdrant_filter import filter_of
from m3_integrations.index.qdrant_gate import Gate
from m3_integrations.index.qdrant_hybrid import Fused, hybrid
from m3_integrations.index.qdrant_payload import HASH, ID, PASSAGE, passage, passage_id, payload, point_id
from m3_integrations.index.qdrant_points import batches, encoded_of, vectors_of
from m3_integrations.index.qdrant_server import ServerEngine

__all__ = ["Fused", "Layout", "PartlyWritten", "QdrantIndex", "QdrantUnreachable", "WrongCollection"]

_READ_AT_ONCE = 256
_SCHEMES = {"http": "http", "https": "https", "qdrant": "http", "qdrants": "https"}


class _Fills(Protocol):
    """What an index remembers of an encoder."""

    @property
    def fingerprint(self) -> str: ...


class QdrantIndex:
    """A collection of Qdrant, with a named vector for each mode, searched by inner products; for many threads at once.

    Open it with `QdrantIndex.open`, or over a client of your own with `QdrantIndex.over`. Within one QdrantIndex a
    search sees all of a write or nothing; others may see a part of it: let them read by an alias (`serve_as`).
    """

    def __init__(self, engine: Engine, layout: Layout, exact_below: int) -> None:
        self._engine, self._layout, self._exact_below = engine, layout, exact_below
        self._gate = Gate()
        self._encoder: _Fills | None = None
        self._collection: Kept | None = None
        self._is_large = False
        self.folder: Path | None = getattr(engine, "folder", None)

    @classmethod
    def open(
        cls,
        url_or_path: str | PathLike[str],
        collection: str,
        encoder: _Fills | None = None,
        *,
        api_key: str | None = None,
        layout: Layout | None = None,
        exact_below: int = 1000,
        grpc: bool = False,
        timeout: int = 60,
    ) -> QdrantIndex:
        """The index in a collection, which the first passages make where there is none.

        url_or_path: http://host:6333 or qdrant://host:6333; with TLS https:// or qdrants://; or a folder, in which
        Qdrant's engine then runs within this process; or ':memory:', the client's own stand-in, for tests.
        encoder: whose vectors it holds; a new collection remembers the first that it is told. None: not checked.
        exact_below: up to this many passages the vectors are sent along and scored here, so that searches answer what
        `MemoryIndex` answers, to the bit. Beyond, the engine's scores count, which are rounded otherwise, and its graph
        proposes for the dense mode, which may miss some. grpc: speak it, on the next port (6334), which is quicker.
        timeout: seconds for one request.
        Raises QdrantUnreachable, WrongEncoder where another encoder filled it, WrongCollection, MissingExtra.
        """
        place = fspath(url_or_path)
        if place == ":memory:":
            return cls.over(QdrantClient(place), collection, encoder, layout=layout, exact_below=exact_below)
        if urlsplit(place).scheme in _SCHEMES and "://" in place:
            client = _client(place, api_key, grpc, timeout)
            return cls.over(client, collection, encoder, layout=layout, exact_below=exact_below)
        return cls._opened(_edge(Path(place).absolute() / collection), encoder, layout, exact_below)

    @classmethod
    def over(
        cls,
        client: QdrantClient,
        collection: str,
        encoder: _Fills | None = None,
        *,
        layout: Layout | None = None,
        exact_below: int = 1000,
    ) -> QdrantIndex:
        """The same over a client of your own, which is closed with the index."""
        options = client.init_options
        place = str(options.get("url") or options.get("host") or options.get("location") or options.get("path"))
        return cls._opened(ServerEngine(client, collection, place), encoder, layout, exact_below)

    @classmethod
    def _opened(cls, engine: Engine, encoder: _Fills | None, layout: Layout | None, exact_below: int) -> QdrantIndex:
        index = cls(engine, layout or Layout(), exact_below)
        try:
            if encoder is not None:
                index._meet(encoder)
            else:
                index._known()
        except BaseException:
            index.close()
            raise
        return index

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(self._widths())

    @property
    def encoder(self) -> tuple[str | None, str | None]:
        """The fingerprint of the encoder that filled it, and what it called itself; None where it was never told."""
        known = self._known()
        return (known.fingerprint, known.label) if known else (None, None)

    def add(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        """As of every index. On a server a failure half-way raises PartlyWritten; adding the same again mends it."""
        check_count("passages", len(passages), encoded)
        if not passages:
            return
        latest, vectors = latest_of(passages, encoded)
        with self._gate.writing():
            kept = self._widths() or widths(encoded)
            check_widths(kept, encoded)
            self._create(kept)
            check_widths(self._widths(), encoded)  # another process may have been quicker, with other vectors
            ids, said = [entry.id for entry in latest], [payload(entry) for entry in latest]
            self._write(self._engine.upsert, ids, vectors.only(self._widths()), said)

    def delete(self, ids: Collection[str]) -> None:
        points = [point_id(id) for id in list_of_ids(ids, "delete")]
        with self._gate.writing():
            if points and self._known():
                for some in _parts(points):
                    self._engine.delete(some)

    def set_vectors(self, ids: Sequence[str], encoded: Encoded) -> None:
        self.set_many([(ids, encoded)])

    def set_many(self, changes: Sequence[tuple[Sequence[str], Encoded]]) -> None:
        """As of every index. On a server a failure half-way raises PartlyWritten; setting the same again mends it."""
        named = check_changes(changes)
        with self._gate.writing():
            self._require({id for change in named for id in change.ids})
            for ids, encoded in newest(self._widths(), named):
                self._write(self._engine.replace, ids, encoded)

    def search(self, mode: Mode, queries: Encoded, k: int, where: Where | None = None) -> list[list[Hit]]:
        with self._gate.reading():
            asked = check_search(self._widths(), mode, queries, k)
            if not self._known():
                return [[] for _ in range(len(asked))]
            passing = self._passing(where)
            rows = asking.speaking(mode, asked)
            found = dict(zip(rows, self._nearest(mode, asked.take(rows), k, passing), strict=True))
            silent = self._silent(mode, k, passing) if len(rows) < len(asked) else []
            return [found.get(row, silent) for row in range(len(asked))]

    def hybrid(
        self,
        queries: Encoded,
        weights: Mapping[Mode, float],
        k: int = 10,
        where: Where | None = None,
        *,
        propose: Sequence[Mode] = ("dense", "sparse"),
        candidates: int = 100,
    ) -> list[list[Fused]]:
        """The best k passages by the weighted sum of their scores, for each query, in one round trip for all queries.

        What `Retriever` answers with `SearchPlan(propose, candidates, weights)`: each of `propose` proposes (k, or
        candidates, where those are more), and all weighted modes score the union; ties by id. A filter that Qdrant
        cannot decide takes another round trip. The sum is the engine's, rounded as float32.
        Raises MissingMode for a mode that the queries or the index lack, ValueError for k < 1 or no weight.
        """
        asked = Hybrid(dict.fromkeys(propose, max(k, candidates)), weights)
        with self._gate.reading():
            return [each[:k] for each in self._fused(queries, asked, k, where)]

    asearch, ahybrid = awaited(search), awaited(hybrid)

    def is_hybrid(self, queries: Encoded, asked: Hybrid) -> bool:
        """Whether the engine's scores count: a small collection is scored here, to the bit, which takes more ways."""
        speaks = "multi_vector" not in asked.propose or queries.multi_vector.counts.all()
        return bool(speaks) and self._known() is not None and not self._is_exact()

    def find(self, queries: Encoded, asked: Hybrid, k: int, where: Where | None = None) -> list[list[Found]]:
        """What `hybrid` answers, mode by mode: one round trip finds, and one scores the few that were found."""
        with self._gate.reading():
            fused = self._fused(queries, asked, k, where)
            ids = [[each.passage.id for each in one] for one in fused]
            scores = self._engine_scores({mode: queries.only((mode,)) for mode in asked.weights}, ids)
        return [
            [
                Found(each.passage, {mode: float(scores[mode][row][place]) for mode in asked.weights})
                for place, each in enumerate(one)
            ]
            for row, one in enumerate(fused)
        ]

    def score(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        with self._gate.reading():
            asked, wanted = check_score(self._widths(), mode, queries, ids)
            if not any(wanted):
                return [np.zeros(0, np.float32) for _ in wanted]
            if self._is_exact():
                return self._kernel_scores(mode, asked, wanted)
            return self._engine_scores({mode: asked}, wanted)[mode]

    def passages(self, ids: Sequence[str] | None = None) -> list[Passage]:
        wanted = None if ids is None else list_of_ids(ids, "passages")
        with self._gate.reading():
            if wanted is None:
                return sorted((passage(each.payload) for each in self._all(PASSAGE)), key=lambda each: each.id)
            # Each time anew: what is given away may be changed.
            found = self._found(wanted, PASSAGE)
            return [passage(found[id].payload) for id in wanted]

    def vectors(self, ids: Sequence[str], modes: Collection[Mode] | None = None) -> Encoded:
        wanted = list_of_ids(ids, "vectors")
        with self._gate.reading():
            return self._vectors(wanted, modes)

    def content_hashes(self, ids: Collection[str] | None = None) -> dict[str, str]:
        wanted = None if ids is None else list_of_ids(ids, "content_hashes")
        with self._gate.reading():
            found = self._all([ID, HASH]) if wanted is None else self._records(wanted, [ID, HASH])
            return {passage_id(each.payload): each.payload[HASH] for each in found}

    def ids(self, where: Where | None = None) -> list[str]:
        with self._gate.reading():
            return sorted(passage_id(each.payload) for each in self._all([ID], self._passing(where)))

    def __len__(self) -> int:
        return self._engine.count() if self._known() else 0

    def index_field(self, name: str) -> None:
        """Let Qdrant keep an order of a metadata field, so that `<` and its kin need not read every passage.

        What ==, !=, in, not in, contains (of lists) and exists ask is indexed without. Raises WrongCollection before
        the first passages.
        """
        with self._gate.writing():
            if not self._known():
                raise WrongCollection(f"there is nothing to index at {self._engine.place} yet; add passages first")
            for part in (NUMBER, "c0", "c1"):  # of strings the first twelve bytes: a date, and an hour
                self._engine.index_field(f"{FIELDS}.{field_key(name)}.{part}", models.PayloadSchemaType.FLOAT)

    def optimise(self) -> None:
        """Build the graph and the other indexes that are due, after many passages were added to a folder.

        Until then searches of them are full scans. A server does so by itself: there nothing happens.
        """
        with self._gate.writing():
            if self._known():
                self._engine.optimise()

    def serve_as(self, alias: str) -> None:
        """Let those who open `alias` see this collection from now on. What they saw before stays as it is.

        Write a copy, nudge it, and switch: nobody sees a half-nudged collection. Raises WrongCollection for a folder,
        which has no aliases.
        """
        self._server().serve_as(alias)

    def snapshot(self) -> str:
        """Have the server write a snapshot of the collection; its name there. Raises WrongCollection for a folder."""
        return self._server().snapshot()

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"QdrantIndex({self._engine.place!r})"

    def _server(self) -> ServerEngine:
        if not isinstance(self._engine, ServerEngine):
            raise WrongCollection(f"{self._engine.place} is a folder, which cannot do this; a Qdrant server can")
        return self._engine

    def _known(self) -> Kept | None:
        """What the collection says of itself. It is asked until it is there: the modes of one never change."""
        if self._collection is None:
            self._collection = self._engine.kept()
            if self._collection is not None and self._encoder is not None:
                self._compare(self._collection, self._encoder)
        return self._collection

    def _widths(self) -> Mapping[Mode, int]:
        known = self._known()
        return known.widths if known else {}

    def _meet(self, encoder: _Fills) -> None:
        self._encoder = encoder
        known = self._known()
        if known is not None and known.fingerprint is None:
            self._collection = Kept(known.widths, encoder.fingerprint, repr(encoder))
            self._engine.remember(self._collection)

    def _compare(self, known: Kept, encoder: _Fills) -> None:
        if known.fingerprint not in (None, encoder.fingerprint):
            raise WrongEncoder(
                f"{self._engine.place} was filled by {known.label} (fingerprint {str(known.fingerprint)[:12]}), and "
                f"this encoder is {encoder!r} (fingerprint {encoder.fingerprint[:12]}); open it with the encoder that "
                "filled it, or ingest the passages into a new collection"
            )

    def _create(self, kept: Mapping[Mode, int]) -> None:
        if self._known() is None:
            encoder = self._encoder
            said = (None, None) if encoder is None else (encoder.fingerprint, repr(encoder))
            self._engine.create(Kept(kept, *said), self._layout)

    def _write(
        self,
        write: Callable[[Sequence[Point]], None],
        ids: Sequence[str],
        encoded: Encoded,
        payloads: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        """In requests of bounded size. Raises PartlyWritten where one after the first fails."""
        for rows in batches(encoded):
            vectors = vectors_of(encoded.take(rows))
            said = [None] * len(rows) if payloads is None else [payloads[row] for row in rows]
            points = [
                Point(point_id(ids[row]), each, about) for row, each, about in zip(rows, vectors, said, strict=True)
            ]
            try:
                write(points)
            except Exception as error:
                if rows.start == 0 and rows.stop == len(ids):
                    raise
                raise PartlyWritten(ids[: rows.start], ids[rows.start :], error) from error

    def _nearest(self, mode: Mode, queries: Encoded, k: int, passing: models.Filter | None) -> list[list[Hit]]:
        if not len(queries):
            return []
        if self._is_exact():
            return asking.nearest_exactly(self._engine, self._widths(), mode, queries, k, passing)
        return asking.nearest(self._engine, mode, queries, k, passing)

    def _silent(self, mode: Mode, k: int, passing: models.Filter | None) -> list[Hit]:
        """What a query without tokens finds: by late interaction every passage scores 0, by shared tokens none."""
        if mode == "sparse":
            return []
        return [Hit(id, 0.0) for id in sorted(passage_id(each.payload) for each in self._all([ID], passing))[:k]]

    def _kernel_scores(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        everyone = sorted({id for each in ids for id in each})
        kept, rows = self._vectors(everyone, (mode,)), last_rows(everyone)
        return [
            score_mode(mode, queries.take([i]), kept.take([rows[id] for id in each]))[0] for i, each in enumerate(ids)
        ]

    def _fused(self, queries: Encoded, asked: Hybrid, k: int, where: Where | None) -> list[list[Fused]]:
        """At least the best k of each query."""
        weights = {mode: weight for mode, weight in asked.weights.items() if weight}
        if not weights:
            raise ValueError(f"give at least one of {sorted(self.modes)} a weight, got {dict(asked.weights)}")
        for mode in (*weights, *asked.propose):
            check_search(self._widths(), mode, queries, k)
        if not self._known():
            return [[] for _ in range(len(queries))]
        return hybrid(self._engine, queries, Hybrid(asked.propose, weights), k, self._passing(where))

    def _engine_scores(self, queries: Mapping[Mode, Encoded], ids: Sequence[Sequence[str]]) -> dict[Mode, list[Array]]:
        """In every mode the scores of ids[i] against query i, in one round trip. Raises UnknownId."""
        points = {id: point_id(id) for each in ids for id in each}
        rows = {mode: [row for row in asking.speaking(mode, each) if ids[row]] for mode, each in queries.items()}
        wanted = [
            asking.Wanted(mode, queries[mode].take(heard), [[points[id] for id in ids[row]] for row in heard])
            for mode, heard in rows.items()
        ]
        answers = zip(rows.items(), asking.scores(self._engine, wanted), strict=True)
        found = {mode: dict(zip(heard, each, strict=True)) for (mode, heard), each in answers}
        self._require({id for each in found.values() for row, some in enumerate(ids) if row not in each for id in some})
        return {mode: _in_order(ids, points, each) for mode, each in found.items()}

    def _is_exact(self) -> bool:
        """Whether the collection is small. Once seen to be large it is not counted again."""
        self._is_large = self._is_large or self._engine.count() > self._exact_below
        return not self._is_large

    def _passing(self, where: Where | None) -> models.Filter | None:
        if where is None:
            return None
        try:
            return filter_of(where)
        except Undecidable:
            everyone = (passage(each.payload) for each in self._all(PASSAGE))
            chosen = [point_id(each.id) for each in everyone if where.matches(each.metadata)]
            return models.Filter(must=[models.HasIdCondition(has_id=list[int | str | UUID](chosen))])

    def _vectors(self, ids: Sequence[str], modes: Collection[Mode] | None) -> Encoded:
        if not self._known() and ids:
            raise unknown(ids[0])
        asked = check_modes(self._widths() if modes is None else modes, self._widths())
        found = self._found(ids, [], list(asked))
        return encoded_of([found[id].vectors for id in ids], self._widths(), asked)

    def _require(self, ids: Collection[str]) -> None:
        """Raises UnknownId."""
        self._found(list(ids), [])

    def _found(self, ids: Sequence[str], payload: Sequence[str], vectors: Sequence[str] = ()) -> dict[str, Scored]:
        """By passage id. Raises UnknownId."""
        by_point = {each.id: each for each in self._records(ids, payload, vectors)}
        found = {id: by_point.get(point_id(id)) for id in ids}
        for id, each in found.items():
            if each is None:
                raise unknown(id)
        return {id: each for id, each in found.items() if each is not None}

    def _records(self, ids: Collection[str], payload: Sequence[str], vectors: Sequence[str] = ()) -> Iterator[Scored]:
        if self._known():
            for some in _parts([point_id(id) for id in dict.fromkeys(ids)]):
                yield from self._engine.records(some, payload, vectors)

    def _all(self, payload: Sequence[str], passing: models.Filter | None = None) -> Iterator[Scored]:
        if self._known():
            for page in self._engine.pages(passing, payload):
                yield from page


def _in_order(
    ids: Sequence[Sequence[str]], points: Mapping[str, str], found: Mapping[int, Mapping[str, float]]
) -> list[Array]:
    """The scores of ids[i] against query i; 0 for a query that has nothing to compare with. Raises UnknownId."""
    for row, by_point in found.items():
        for id in ids[row]:
            if points[id] not in by_point:
                raise unknown(id)
    return [
        np.array([found[row][points[id]] if row in found else 0.0 for id in each], np.float32)
        for row, each in enumerate(ids)
    ]


def _parts(points: Sequence[str]) -> Iterator[Sequence[str]]:
    return (points[start : start + _READ_AT_ONCE] for start in range(0, len(points), _READ_AT_ONCE))


def _client(place: str, api_key: str | None, grpc: bool, timeout: int) -> QdrantClient:
    url = urlsplit(place)
    port = url.port or 6333
    return QdrantClient(
        url=f"{_SCHEMES[url.scheme]}://{url.hostname}:{port}",
        prefix=url.path.strip("/") or None,
        api_key=api_key,
        prefer_grpc=grpc,
        grpc_port=port + 1,
        timeout=timeout,
        check_compatibility=False,  # it warns, and asks the server before anything was asked of it
    )


def _edge(folder: Path) -> Engine:
    need("qdrant-edge-py", extra="qdrant", module="qdrant_edge")
    from m3_integrations.index.qdrant_edge import EdgeEngine

    return EdgeEngine(folder)

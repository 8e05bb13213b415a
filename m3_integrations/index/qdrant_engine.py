"""What an index asks of Qdrant, whether it runs behind a URL, in this process, or as the client's own stand-in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from qdrant_client import models

from m3_integrations.core.encoded import Mode
from m3_integrations.index.qdrant_facts import FACTS

PAGE = 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """How a new collection is laid out; one that is there keeps its own.

    shards, copies: over how many parts, and how often, a cluster keeps it; None: as the server is set up.
    on_disk: vectors stay on disk and are mapped into memory as they are read. quantised: late interaction is proposed
    by one byte a number and scored again by all four; search of it is then no longer exact.
    """

    shards: int | None = None
    copies: int | None = None
    on_disk: bool = False
    quantised: bool = False


class Kept(NamedTuple):
    """What a collection says of itself. widths: of each mode. fingerprint, label: of the encoder that filled it."""

    widths: Mapping[Mode, int]
    fingerprint: str | None = None
    label: str | None = None


class Point(NamedTuple):
    """A passage as Qdrant keeps it; vectors by mode."""

    id: str
    vectors: Mapping[str, Any]
    payload: Mapping[str, Any] | None = None


class Scored(NamedTuple):
    """A point as Qdrant answers it, with what was asked for of payload and vectors."""

    id: str
    score: float
    payload: Mapping[str, Any]
    vectors: Mapping[str, Any]


class Engine(Protocol):
    """One collection. Ids are those of points; `payload` names the keys that are wanted of it."""

    place: str

    def kept(self) -> Kept | None:
        """None where there is no such collection yet. Raises WrongCollection for one that no QdrantIndex made."""

    def create(self, kept: Kept, layout: Layout) -> None:
        """Make the collection; where another was quicker, nothing happens."""

    def remember(self, kept: Kept) -> None:
        """Say of itself from now on what `kept` says."""

    def upsert(self, points: Sequence[Point]) -> None: ...

    def replace(self, points: Sequence[Point]) -> None:
        """Replace the vectors that are named, and nothing else."""

    def delete(self, ids: Sequence[str]) -> None: ...

    def records(self, ids: Sequence[str], payload: Sequence[str], vectors: Sequence[str]) -> list[Scored]:
        """Those of the points that are there, in any order."""

    def pages(self, passing: models.Filter | None, payload: Sequence[str]) -> Iterator[list[Scored]]:
        """All that pass the filter, a page at a time."""

    def count(self) -> int: ...

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[Scored]]:
        """Several questions in one round trip."""

    def index_field(self, key: str, kind: models.PayloadSchemaType) -> None: ...

    def optimise(self) -> None:
        """Build the graph and the other indexes that are due, where nobody else does."""

    def close(self) -> None: ...


INDEXED: tuple[tuple[str, models.PayloadSchemaType], ...] = ((FACTS, models.PayloadSchemaType.KEYWORD),)

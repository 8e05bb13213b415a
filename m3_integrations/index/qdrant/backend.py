"""Backend protocol of QdrantIndex: a server, the embedded engine, or qdrant-client in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from qdrant_client import models

from m3_integrations.core.encoded import Mode
from m3_integrations.core.errors import M3Error, WrongCollection
from m3_integrations.core.types import SearchPlan
from m3_integrations.index.qdrant.filter_fields import FACTS

PAGE = 1024


@dataclass(frozen=True, slots=True)
class CollectionConfig:
    """Configuration of a new collection; an existing one keeps its own.

    Attributes:
        shards: Number of shards in a cluster; None: the server's default.
        replicas: Number of replicas in a cluster; None: the server's default.
        on_disk: Whether vectors are memory-mapped from disk.
        quantized: Whether late interaction generates candidates by int8 and rescores them; its search is then inexact.
    """

    shards: int | None = None
    replicas: int | None = None
    on_disk: bool = False
    quantized: bool = False


class CollectionInfo(NamedTuple):
    """A collection's description: dimensions by mode, fingerprint and label of the encoder, and the search plan."""

    widths: Mapping[Mode, int]
    fingerprint: str | None = None
    label: str | None = None
    plan: SearchPlan | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the description as the collection stores it."""
        plan = None if self.plan is None else self.plan.to_json()
        return {**self._asdict(), "widths": dict(self.widths), "plan": plan}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], widths: Mapping[Mode, int]) -> CollectionInfo:
        """Read the description that a collection stores, for checked dimensions.

        Raises:
            WrongCollection: If its search plan cannot be read.
        """
        plan = stored.get("plan")  # absent before it was stored
        try:
            restored = None if plan is None else SearchPlan.from_json(plan)
        except (TypeError, ValueError, M3Error) as error:
            raise WrongCollection(
                f"the collection has the search plan {plan!r}, which cannot be read ({error}); name another collection"
            ) from error
        return cls(widths, stored["fingerprint"], stored["label"], restored)


class Point(NamedTuple):
    """A passage as a Qdrant point, with vectors by mode."""

    id: str
    vectors: Mapping[str, Any]
    payload: Mapping[str, Any] | None = None


class ScoredPoint(NamedTuple):
    """A point of a response, with the payload and vectors requested."""

    id: str
    score: float
    payload: Mapping[str, Any]
    vectors: Mapping[str, Any]

    @classmethod
    def of(cls, point: Any) -> ScoredPoint:
        """Convert a record or a scored point of either engine."""
        return cls(str(point.id), getattr(point, "score", 0.0), point.payload or {}, point.vector or {})


class CollectionBackend(Protocol):
    """Operations on one collection; ids are point ids, `payload` names the keys to return."""

    location: str

    def info(self) -> CollectionInfo | None:
        """Return the description, None if there is no collection.

        Raises:
            WrongCollection: If QdrantIndex did not make it.
        """

    def create(self, info: CollectionInfo, layout: CollectionConfig) -> None:
        """Create the collection, unless another process already has."""

    def set_info(self, info: CollectionInfo) -> None:
        """Replace the description."""

    def upsert(self, points: Sequence[Point]) -> None: ...

    def replace(self, points: Sequence[Point]) -> None:
        """Replace the named vectors and nothing else."""

    def delete(self, ids: Sequence[str]) -> None: ...

    def records(self, ids: Sequence[str], payload: Sequence[str], vectors: Sequence[str]) -> list[ScoredPoint]:
        """Return the points that exist, in any order."""

    def pages(self, condition: models.Filter | None, payload: Sequence[str]) -> Iterator[list[ScoredPoint]]:
        """Yield all points that match, a page at a time."""

    def count(self) -> int: ...

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[ScoredPoint]]:
        """Run several queries in one round trip."""

    def create_field_index(self, key: str, kind: models.PayloadSchemaType) -> None: ...

    def optimize(self) -> None:
        """Build pending indexes; a server does so by itself."""

    def close(self) -> None: ...


INDEXED: tuple[tuple[str, models.PayloadSchemaType], ...] = ((FACTS, models.PayloadSchemaType.KEYWORD),)

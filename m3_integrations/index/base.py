"""The protocol that every index keeps, what a search answers, and the filters that it takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable

from m3_integrations.core.encoded import Array, Encoded, Mode
from m3_integrations.core.texts import Passage
from m3_integrations.index.entries import content_hash
from m3_integrations.index.where import Where

__all__ = ["Found", "Hit", "Hybrid", "HybridIndex", "Index", "Where", "content_hash"]


class Hit(NamedTuple):
    """A passage that was found, and its score: higher is better."""

    id: str
    score: float


@runtime_checkable
class Index(Protocol):
    """Keeps passages with their vectors and finds them by inner products. Ties break by id, ascending."""

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes that it keeps: those of the first passages added; none while it has never held any."""

    def add(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        """Keep these passages; an id seen before is replaced. All or nothing.

        encoded: row i is passages[i], in the modes of the index (more raise no error and are not kept; fewer raise
        MissingMode). Of an id that comes twice in one call the last is kept. No passages: nothing happens.
        Metadata is kept as JSON says it: a tuple comes back as a list.
        Raises WrongDimension where widths differ from those kept, ValueError where counts differ or where metadata is
        not JSON (a datetime, NaN, a key that is no string).
        """

    def delete(self, ids: Collection[str]) -> None:
        """Forget these passages; ids that are not there are passed over. Raises ValueError for a bare string."""

    def search(self, mode: Mode, queries: Encoded, k: int, where: Where | None = None) -> list[list[Hit]]:
        """The best k of one mode among the passages that pass the filter, for each query, best first.

        A list is shorter only where fewer passages match. A sparse hit has a score above 0.
        Raises MissingMode for a mode that is not kept, WrongDimension, ValueError for k < 1. An empty index answers
        empty lists.
        """

    def score(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        """The exact scores of ids[i] against query i, in that order. Raises UnknownId."""

    def passages(self, ids: Sequence[str] | None = None) -> list[Passage]:
        """These passages in this order, or all of them ordered by id. Raises UnknownId."""

    def vectors(self, ids: Sequence[str], modes: Collection[Mode] | None = None) -> Encoded:
        """The kept vectors; row i is ids[i]. None: every mode. Raises UnknownId, MissingMode."""

    def set_vectors(self, ids: Sequence[str], encoded: Encoded) -> None:
        """Replace the vectors of these ids in the modes of `encoded`, atomically; row i is ids[i].

        Of an id that comes twice the last is kept. Raises UnknownId, MissingMode for a mode that the index does not
        keep, WrongDimension, ValueError where counts differ.
        """

    def set_many(self, changes: Sequence[tuple[Sequence[str], Encoded]]) -> None:
        """Several calls of `set_vectors` as one commit: all of them or none. changes: (ids, encoded) each.

        Raises ValueError also where two of them replace the same passage in the same mode.
        """

    def content_hashes(self, ids: Collection[str] | None = None) -> dict[str, str]:
        """`content_hash` of each of these passages, or of all; ids that are not there are passed over."""

    def ids(self, where: Where | None = None) -> list[str]:
        """Every id, or those of the passages that pass the filter, ascending."""

    def __len__(self) -> int:
        """How many passages it holds."""

    def close(self) -> None:
        """Let go of files and connections; what was committed stays."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Hybrid(NamedTuple):
    """What is asked of several modes together: so many candidates of each that proposes, scored by all that weigh."""

    propose: Mapping[Mode, int]
    weights: Mapping[Mode, float]


class Found(NamedTuple):
    """A passage that was found, and its score in each mode that weighs, the weight not included."""

    passage: Passage
    by_mode: Mapping[Mode, float]


@runtime_checkable
class HybridIndex(Protocol):
    """An index that puts the modes together where they lie: one far away, or one that reads its state once for all."""

    def is_hybrid(self, queries: Encoded, asked: Hybrid) -> bool:
        """Whether `find` answers here what the modes would, asked one by one."""

    def find(self, queries: Encoded, asked: Hybrid, k: int, where: Where | None = None) -> list[list[Found]]:
        """For each query the best k by the weighted sum, and maybe some that follow, in any order.

        Raises UnknownId where a passage was deleted meanwhile: ask again.
        """

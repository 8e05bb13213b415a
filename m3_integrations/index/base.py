"""Index and HybridIndex protocols, and the values returned by searches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable

from m3_integrations.core.encoded import Array, Encoded, Ints, Mode, Modes
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.index.filters import Where
from m3_integrations.index.records import content_hash

__all__ = ["Fingerprinted", "Hit", "HybridHit", "HybridIndex", "HybridRequest", "Index", "Where", "content_hash"]


class Fingerprinted(Protocol):
    """An encoder, as far as an index records it."""

    @property
    def fingerprint(self) -> str: ...


class Hit(NamedTuple):
    """A passage id and its score; higher is better."""

    id: str
    score: float


@runtime_checkable
class Index(Protocol):
    """Storage of passages and their embeddings, with top-k search by inner product.

    Ties break by id, ascending.
    """

    @property
    def modes(self) -> frozenset[Mode]:
        """The stored modes: those of the first passages added; empty before."""

    @property
    def plan(self) -> SearchPlan | None:
        """Search plan of those who search the index without one of their own; None if none was set.

        Additions, copies and merges keep it. Setting the default `SearchPlan()` or None removes it.
        """

    @plan.setter
    def plan(self, plan: SearchPlan | None) -> None: ...

    def add(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        """Add passages, replacing those with the same id. All or nothing.

        Args:
            passages: Passages to store. If an id occurs twice, the last one is stored. Metadata is stored as JSON: a
                tuple comes back as a list. An empty sequence does nothing.
            encoded: Embeddings; row i belongs to passages[i]. Modes that the index does not store are ignored.

        Raises:
            MissingMode: If `encoded` lacks a mode of the index.
            WrongDimension: If the vectors have another width than the stored ones.
            ValueError: If the counts differ, or if metadata is not JSON (a datetime, NaN, a key that is not a string).
        """

    def delete(self, ids: Collection[str], *, purge: bool = False) -> None:
        """Delete passages; unknown ids are ignored.

        Args:
            ids: Ids of the passages.
            purge: Whether to return only when nothing of these passages, nor of any deleted or replaced before, is left
                in a file of the index. A `LocalIndex` rewrites the segments that hold some and its catalog, and removes
                the passages and the questions that they answer from its nudge ledger. Repeat an interrupted call with
                the same ids. `QdrantIndex` does not support it.

        Raises:
            ValueError: If `ids` is a single string.
            WriterBusy: If another process reads or writes for longer than a write waits; when purging, the passages
                are deleted, and repeating the call purges them.
        """

    def search(self, mode: Mode, queries: Encoded, k: int, where: Where | None = None) -> list[list[Hit]]:
        """Find the top k passages of one mode.

        Args:
            mode: The mode to search by.
            queries: Encoded queries.
            k: Number of hits per query, at least 1.
            where: Metadata filter; None searches all passages.

        Returns:
            One list per query, best first, shorter than k only if fewer passages match. Sparse hits have a score
            above 0. An empty index returns empty lists.

        Raises:
            MissingMode: If the index or the queries lack the mode.
            WrongDimension: If the queries have another width than the stored vectors.
            ValueError: If k is less than 1.
        """

    def score(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        """Score passages exactly.

        Args:
            mode: The mode to score by.
            queries: Encoded queries.
            ids: One list of passage ids per query.

        Returns:
            One array per query, in the order of its ids.

        Raises:
            UnknownId: If a passage is not in the index.
            MissingMode: If the index or the queries lack the mode.
            WrongDimension: If the queries have another width than the stored vectors.
            ValueError: If the number of lists is not the number of queries.
        """

    def passages(self, ids: Sequence[str] | None = None) -> list[Passage]:
        """Return passages in the order of `ids`, or all of them ordered by id.

        Args:
            ids: Passage ids; None returns all passages.

        Raises:
            UnknownId: If a passage is not in the index.
        """

    def vectors(self, ids: Sequence[str], modes: Modes | None = None) -> Encoded:
        """Return the stored embeddings.

        Args:
            ids: Passage ids; row i of the result belongs to ids[i].
            modes: Modes to return; None returns all of them.

        Raises:
            UnknownId: If a passage is not in the index.
            MissingMode: If the index does not store one of the modes.
        """

    def set_vectors(self, ids: Sequence[str], encoded: Encoded) -> None:
        """Replace the embeddings of passages in the modes of `encoded`. All or nothing.

        Args:
            ids: Passage ids. If an id occurs twice, its last row is stored.
            encoded: New embeddings; row i belongs to ids[i].

        Raises:
            UnknownId: If a passage is not in the index.
            MissingMode: If the index does not store one of the modes.
            WrongDimension: If the vectors have another width than the stored ones.
            ValueError: If the counts differ.
        """

    def set_vectors_many(
        self,
        updates: Sequence[tuple[Sequence[str], Encoded]],
        plan: SearchPlan | None = None,
        *,
        unchanged: Mapping[str, str] | None = None,
    ) -> None:
        """Apply several `set_vectors` calls as one commit. All or nothing.

        Args:
            updates: Arguments (ids, encoded) of each call.
            plan: Search plan to set in the same commit; None keeps the current one, and `SearchPlan()` removes it.
            unchanged: Content hashes that passages must still have, by id, so that vectors computed from earlier texts
                are never stored with later ones.

        Raises:
            PassagesChanged: If a passage has another hash than in `unchanged`.
            ValueError: If two updates replace the same passage in the same mode, and as `set_vectors` does.
            UnknownId, MissingMode, WrongDimension: As `set_vectors` does.
        """

    def content_hashes(self, ids: Collection[str] | None = None) -> dict[str, str]:
        """Return the `content_hash` of passages by id; None returns all, unknown ids are ignored.

        Args:
            ids: Passage ids; None returns all hashes.
        """

    def ids(self, where: Where | None = None) -> list[str]:
        """Return the ids of the passages matching the filter, or all ids, ascending.

        Args:
            where: Metadata filter; None returns all ids.
        """

    def __len__(self) -> int:
        """Return the number of passages."""

    def close(self) -> None:
        """Close files and connections; committed data stays."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class HybridRequest(NamedTuple):
    """A search by several modes.

    Attributes:
        candidate_counts: Number of candidates to generate, by mode.
        weights: Weight of each mode in the score of a candidate.
    """

    candidate_counts: Mapping[Mode, int]
    weights: Mapping[Mode, float]


class HybridHit(NamedTuple):
    """A passage found by several modes.

    Attributes:
        passage: The passage.
        by_mode: Unweighted score in each weighted mode.
        score: Weighted sum of the scores; 0 if the index leaves it to the caller.
    """

    passage: Passage
    by_mode: Mapping[Mode, float]
    score: float = 0.0


class ClosableIndex(ABC):
    """The context manager of an index: leaving the block closes it."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def describe_plan(plan: SearchPlan | None) -> str:
    """Return how the repr of an index shows its search plan."""
    return "" if plan is None else f" with {plan!r}"


@runtime_checkable
class LexicalIndex(Protocol):
    """An index that knows how many passages contain a token, for `sparse_score="idf"`.

    Its `search`, `score` and `search_hybrid` apply the idf of the state that they read to queries with this score.
    """

    def idf(self, tokens: Ints) -> Array:
        """Return the inverse document frequency of tokens among the stored passages, shape (tokens,).

        A passage contains a token if its sparse row has a weight for it.

        Args:
            tokens: Columns of sparse rows, ascending.
        """


@runtime_checkable
class HybridIndex(Protocol):
    """An index with one call for generating and rescoring candidates of several modes.

    This saves round trips to a remote index, and reads the state of a local one once.
    """

    def supports_hybrid(self, queries: Encoded, request: HybridRequest) -> bool:
        """Return whether `search_hybrid` gives the same hits as one search per mode does.

        Args:
            queries: Encoded queries.
            request: Candidates and weights per mode.
        """

    def search_hybrid(
        self, queries: Encoded, request: HybridRequest, k: int, where: Where | None = None
    ) -> list[list[HybridHit]]:
        """Find the top k passages by the weighted sum of their scores.

        Args:
            queries: Encoded queries, in all modes of the request.
            request: Candidates and weights per mode.
            k: Number of hits per query, at least 1.
            where: Metadata filter; None searches all passages.

        Returns:
            The top k per query and possibly some more, in any order.

        Raises:
            UnknownId: If a passage was deleted during the search; retry it.
        """

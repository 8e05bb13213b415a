"""NUDGE at LangChain's door: the vectors of a store moved towards the questions that its documents answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from m3_integrations.core.encoded import DENSE, Encoded
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.texts import Query
from m3_integrations.langchain.embeddings import M3Embeddings
from m3_integrations.langchain.foreign import EmbeddingsEncoder
from m3_integrations.langchain.vectorstore import M3VectorStore
from m3_integrations.nudging.by_id import (
    Asked,
    Comparison,
    NudgeOptions,
    Stored,
    held_out,
    require_options,
    rows_of,
)
from m3_integrations.nudging.dense import Nudged

Vectors: TypeAlias = Sequence[Sequence[float]]


@runtime_checkable
class HoldsVectors(Protocol):
    """What `nudge_store` needs of a store; wrap one of another make in a class that has these."""

    @property
    def compares_by(self) -> Comparison:
        """How it compares a document with a question: "cosine", or "dot" for the inner product."""

    @property
    def embeddings(self) -> Embeddings | None:
        """What embeds its questions."""

    def read_vectors(self) -> tuple[Sequence[str], Vectors]:
        """The ids of all its documents and, in that order, their vectors."""

    def write_vectors(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Keep these vectors in the place of those that these documents have."""


@dataclass(frozen=True, eq=False)
class NudgedStore:
    """Documents after a nudge: `ids`, row by row of `nudged`, which has the figures before and after.

    holder: where the vectors were written; None where documents were given, whose vectors are in `vectors`.
    """

    ids: Sequence[str]
    nudged: Nudged
    holder: HoldsVectors | None
    _before: Vectors

    @property
    def vectors(self) -> dict[str, list[float]]:
        """The vector of each document by its id."""
        return dict(zip(self.ids, self.nudged.passages.tolist(), strict=True))

    def revert(self) -> None:
        """Put the vectors back that the store had. Raises ValueError where none was written."""
        if self.holder is None:
            raise ValueError("documents were nudged, and no store was written; their embeddings are as they were")
        self.holder.write_vectors(self._moved_ids, self._before)

    @property
    def _moved_ids(self) -> list[str]:
        return [self.ids[row] for row in self.nudged.rows]


def nudge_store(
    store: VectorStore | HoldsVectors | Sequence[Document],
    train: Sequence[Query],
    validation: Sequence[Query] | None = None,
    *,
    embedding: Embeddings | None = None,
    method: Literal["auto", "n", "m"] = "auto",
    metric: str = "ndcg@10",
    spread: Literal["auto", "neighbours"] | None = "auto",
    centre: float | None = None,
    gamma: float | None = None,
    compares_by: Comparison | None = None,
    seed: int = 0,
) -> NudgedStore:
    """Move the vectors of documents towards the questions that they answer, and write them back into their store.

    store: an InMemoryVectorStore, an M3VectorStore (its dense mode), what keeps `HoldsVectors`, or documents with ids,
    which are embedded in one batch and not written. train, validation: queries whose `relevant` names documents by id;
    no validation: a fifth is held out, drawn by `seed`, no text on both sides. method to gamma: as in `nudge`.
    embedding: None is the store's; M3Embeddings reads questions in batches, others one by one: LangChain knows no more.
    compares_by: where documents were given, how their store will compare; a store knows. Where it is not "dot", vectors
    are brought to length 1 and "auto" does not take "m".
    A second nudge starts from where the first left the vectors: `revert` it first.
    Raises ValueError where "m" is asked for and the store compares by cosine, and for a store whose vectors are out of
    reach; UnknownId for an answer that is no document.
    """
    options = NudgeOptions(method, metric, spread, centre, gamma)
    if isinstance(store, Sequence):
        require_options(options, compares_by)
        encoder = _encoder(embedding, "a list of documents")
        stored = _embedded(store, encoder, compares_by)
        return NudgedStore(stored.ids, stored.nudged(*_asked(encoder, train, validation, seed), options), None, [])
    holder = _holder(store)
    require_options(options, holder.compares_by)
    encoder = _encoder(embedding or holder.embeddings, f"this {type(store).__name__}")
    ids, kept = holder.read_vectors()
    stored = Stored(ids, rows_of(kept), holder.compares_by)
    nudged = stored.nudged(*_asked(encoder, train, validation, seed), options)
    done = NudgedStore(ids, nudged, holder, [kept[row] for row in nudged.rows])
    holder.write_vectors(done._moved_ids, nudged.vectors.tolist())
    return done


@dataclass(frozen=True)
class _InMemory:
    """LangChain's own store in memory, which compares by cosine."""

    store: InMemoryVectorStore
    compares_by: Comparison = "cosine"

    @property
    def embeddings(self) -> Embeddings | None:
        return self.store.embeddings

    def read_vectors(self) -> tuple[Sequence[str], Vectors]:
        return list(self.store.store), [entry["vector"] for entry in self.store.store.values()]

    def write_vectors(self, ids: Sequence[str], vectors: Vectors) -> None:
        entries: Mapping[str, dict[str, Any]] = self.store.store
        moved = {id: {**entries[id], "vector": vector} for id, vector in zip(ids, vectors, strict=True)}
        self.store.store.update(moved)


@dataclass(frozen=True)
class _Ours:
    """The dense mode of an M3VectorStore."""

    store: M3VectorStore
    compares_by: Comparison = "dot"

    @property
    def embeddings(self) -> Embeddings | None:
        return self.store.embeddings

    def read_vectors(self) -> tuple[Sequence[str], Vectors]:
        ids = self.store.index.ids()
        return ids, self.store.index.vectors(ids, DENSE).dense.tolist()

    def write_vectors(self, ids: Sequence[str], vectors: Vectors) -> None:
        if ids:
            self.store.index.set_vectors(ids, Encoded(dense=vectors))


def _holder(store: VectorStore | HoldsVectors) -> HoldsVectors:
    if isinstance(store, InMemoryVectorStore):
        return _InMemory(store)
    if isinstance(store, M3VectorStore):
        return _Ours(store)
    if isinstance(store, HoldsVectors):
        return store
    raise ValueError(
        f"the vectors of a {type(store).__name__} cannot be read and replaced through LangChain; call "
        "nudge_store(documents, train, embedding=..., compares_by='cosine' or 'dot') and write its `.vectors` with the "
        "store's own client, or pass an object with m3_integrations.langchain.nudge.HoldsVectors' four members"
    )


def _encoder(embedding: Embeddings | None, whose: str) -> Encoder:
    if embedding is None:
        raise ValueError(f"{whose} does not say what embeds its questions; pass embedding=M3Embeddings()")
    return embedding.encoder if isinstance(embedding, M3Embeddings) else EmbeddingsEncoder(embedding)


def _embedded(documents: Sequence[Document], encoder: Encoder, compares_by: Comparison | None) -> Stored:
    ids: dict[str, str] = {}
    for document in documents:
        if not document.id or document.id in ids:
            raise ValueError(
                f"every document needs an id of its own, by which queries name it, and {document.id!r} of "
                f"{document.page_content[:40]!r} is none; write Document(id='doc-1', page_content=...)"
            )
        ids[document.id] = document.page_content
    return Stored(list(ids), encoder.encode_passages(list(ids.values()), DENSE).dense, compares_by)


def _asked(
    encoder: Encoder, train: Sequence[Query], validation: Sequence[Query] | None, seed: int
) -> tuple[Asked, Asked]:
    by, judges = held_out(train, seed) if validation is None else (train, validation)
    return _encoded(encoder, by), _encoded(encoder, judges)


def _encoded(encoder: Encoder, queries: Sequence[Query]) -> Asked:
    return Asked(queries, encoder.encode_queries([query.text for query in queries], DENSE).dense)

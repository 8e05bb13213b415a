"""nudge_store: move the vectors of a LangChain vector store (NUDGE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from m3_integrations.adapters.store_vectors import (
    NudgeOptions,
    QueryVectors,
    Similarity,
    StoreVectors,
    check_options,
    hold_out,
    to_matrix,
)
from m3_integrations.core.encoded import DENSE, Encoded
from m3_integrations.core.types import Query
from m3_integrations.encoders.base import Encoder
from m3_integrations.langchain.dense_only_encoder import DenseOnlyEncoder
from m3_integrations.langchain.embeddings import M3Embeddings
from m3_integrations.langchain.vectorstore import M3VectorStore
from m3_integrations.nudging.method.variants import MethodChoice, Propagate
from m3_integrations.nudging.optimize.dense import Nudged

Vectors: TypeAlias = Sequence[Sequence[float]]


@runtime_checkable
class HoldsVectors(Protocol):
    """Access of `nudge_store` to the vectors of a store; implement it to wrap other stores."""

    @property
    def similarity(self) -> Similarity:
        """How the store compares vectors: "cosine", or "dot" for the inner product."""

    @property
    def embeddings(self) -> Embeddings | None:
        """Embeddings of the queries."""

    def read_vectors(self) -> tuple[Sequence[str], Vectors]:
        """Return the ids of all documents and their vectors, in the same order."""

    def write_vectors(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Replace the vectors of these documents.

        Args:
            ids: Ids of the documents.
            vectors: Their vectors, shape (n, dim).
        """


@dataclass(frozen=True, eq=False)
class NudgedStore:
    """Result of `nudge_store`.

    Attributes:
        ids: Ids of the documents, one per row of `nudged`.
        nudged: The moved vectors, with the metric before and after.
        holder: The store whose vectors were replaced; None if documents were given.
    """

    ids: Sequence[str]
    nudged: Nudged
    holder: HoldsVectors | None
    _originals: Vectors

    @property
    def vectors(self) -> dict[str, list[float]]:
        """Vector of each document by id."""
        return dict(zip(self.ids, self.nudged.passages.tolist(), strict=True))

    def revert(self) -> None:
        """Restore the original vectors in the store.

        Raises:
            ValueError: If documents were given instead of a store.
        """
        if self.holder is None:
            raise ValueError("documents were nudged and no store was written, so there is nothing to revert")
        self.holder.write_vectors(self._moved_ids, self._originals)

    @property
    def _moved_ids(self) -> list[str]:
        return [self.ids[row] for row in self.nudged.rows]


def nudge_store(
    store: VectorStore | HoldsVectors | Sequence[Document],
    train: Sequence[Query],
    validation: Sequence[Query] | None = None,
    *,
    embedding: Embeddings | None = None,
    method: MethodChoice = "auto",
    metric: str = "ndcg@10",
    propagate: Propagate = "auto",
    center: float | None = None,
    gamma: float | None = None,
    similarity: Similarity | None = None,
    seed: int = 0,
) -> NudgedStore:
    """Nudge the vectors of documents and write them into their store (NUDGE).

    The vectors move towards the queries that their documents answer (arXiv 2409.02343). A second nudge starts from the
    vectors of the first one; call `revert` to start from the original vectors.

    Args:
        store: An InMemoryVectorStore, an M3VectorStore (its dense mode), an object with the members of `HoldsVectors`,
            or documents with ids, which are embedded in one batch and not written.
        train: Queries whose `relevant` refers to documents by id.
        validation: Queries that choose gamma. Default: a fifth of `train`, drawn by `seed`, with no text on both sides.
        embedding: Embeddings of the queries; default the store's. M3Embeddings embeds queries in batches, others one by
            one, as LangChain has no batch method for queries.
        method: "nudge-n" (keeps length 1), "nudge-m" (changes lengths) or "auto".
        metric: Metric to optimize; default "ndcg@10".
        propagate: See `nudge`.
        center: See `nudge`.
        gamma: See `nudge`.
        similarity: How the store of given documents compares vectors; ignored for a store. Unless the similarity is
            "dot", vectors are normalized to length 1 and "auto" does not choose "nudge-m".
        seed: Seed of the split of the queries.

    Returns:
        The moved vectors, which `NudgedStore.revert` undoes.

    Raises:
        ValueError: If `method` is "nudge-m" and the store compares by cosine, or the store gives no access to its
            vectors.
        UnknownId: If an answer is not a document.
    """
    options = NudgeOptions(method, metric, propagate, center, gamma)
    if isinstance(store, Sequence):
        check_options(options, similarity)
        encoder = _to_encoder(embedding, "a list of documents")
        original = _embed_documents(store, encoder, similarity)
        nudged = original.nudge(*_embed_queries(encoder, train, validation, seed), options)
        return NudgedStore(original.ids, nudged, None, [])
    holder = _to_holder(store)
    check_options(options, holder.similarity)
    encoder = _to_encoder(embedding or holder.embeddings, f"this {type(store).__name__}")
    ids, vectors = holder.read_vectors()
    original = StoreVectors(ids, to_matrix(vectors), holder.similarity)
    nudged = original.nudge(*_embed_queries(encoder, train, validation, seed), options)
    result = NudgedStore(ids, nudged, holder, [vectors[row] for row in nudged.rows])
    holder.write_vectors(result._moved_ids, nudged.vectors.tolist())
    return result


@dataclass(frozen=True)
class _InMemoryVectors:
    """Vectors of an InMemoryVectorStore, compared by cosine."""

    store: InMemoryVectorStore
    similarity: Similarity = "cosine"

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
class _M3Vectors:
    """Dense vectors of an M3VectorStore."""

    store: M3VectorStore
    similarity: Similarity = "dot"

    @property
    def embeddings(self) -> Embeddings | None:
        return self.store.embeddings

    def read_vectors(self) -> tuple[Sequence[str], Vectors]:
        ids = self.store.index.ids()
        return ids, self.store.index.vectors(ids, DENSE).dense.tolist()

    def write_vectors(self, ids: Sequence[str], vectors: Vectors) -> None:
        if ids:
            self.store.index.set_vectors(ids, Encoded(dense=vectors))


def _to_holder(store: VectorStore | HoldsVectors) -> HoldsVectors:
    if isinstance(store, InMemoryVectorStore):
        return _InMemoryVectors(store)
    if isinstance(store, M3VectorStore):
        return _M3Vectors(store)
    if isinstance(store, HoldsVectors):
        return store
    raise ValueError(
        f"LangChain gives no access to the vectors of a {type(store).__name__}; call "
        "nudge_store(documents, train, embedding=..., similarity='cosine' or 'dot') and write its `.vectors` with the "
        "client of the store, or pass an object with the members of m3_integrations.langchain.HoldsVectors"
    )


def _to_encoder(embedding: Embeddings | None, what: str) -> Encoder:
    if embedding is None:
        raise ValueError(f"{what} has no embeddings for queries; pass embedding=M3Embeddings()")
    return embedding.encoder if isinstance(embedding, M3Embeddings) else DenseOnlyEncoder(embedding)


def _embed_documents(documents: Sequence[Document], encoder: Encoder, similarity: Similarity | None) -> StoreVectors:
    texts: dict[str, str] = {}
    for document in documents:
        if not document.id or document.id in texts:
            raise ValueError(
                f"every document needs a unique id, but {document.page_content[:40]!r} has {document.id!r}; write "
                "Document(id='doc-1', page_content=...)"
            )
        texts[document.id] = document.page_content
    return StoreVectors(list(texts), encoder.encode_passages(list(texts.values()), DENSE).dense, similarity)


def _embed_queries(
    encoder: Encoder, train: Sequence[Query], validation: Sequence[Query] | None, seed: int
) -> tuple[QueryVectors, QueryVectors]:
    tune, choose = hold_out(train, seed) if validation is None else (train, validation)
    return _embed(encoder, tune), _embed(encoder, choose)


def _embed(encoder: Encoder, queries: Sequence[Query]) -> QueryVectors:
    return QueryVectors(queries, encoder.encode_queries([query.text for query in queries], DENSE).dense)

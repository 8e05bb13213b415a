"""M3VectorStore: an index as a LangChain vector store with hybrid search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from m3_integrations.adapters.encoder_registry import check_index_encoder
from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.errors import MissingMode
from m3_integrations.core.types import SearchPlan, is_blank
from m3_integrations.encoders.base import Encoder
from m3_integrations.index.base import Index
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.langchain.convert import SearchFilter, texts_to_passages, to_document, to_documents, to_where
from m3_integrations.langchain.dense_only_encoder import DenseOnlyEncoder
from m3_integrations.langchain.embeddings import M3Embeddings
from m3_integrations.retrieval.calibration import Calibration, relevance, similarity
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.mmr import mmr_rerank
from m3_integrations.retrieval.plan_calibration import match_probabilities
from m3_integrations.retrieval.retriever import Match, Retriever

SearchMode: TypeAlias = Mode | Literal["hybrid"]
ScoredDocuments: TypeAlias = list[tuple[Document, float]]


class M3VectorStore(VectorStore):
    """Vector store over a MemoryIndex, a LocalIndex or any other Index.

    Searches take `filter`, for example `{"year": {"$gte": 2020}}` or a `Where`, and `mode`: "hybrid" (default),
    "dense", "sparse" or "multi_vector". Scores are inner products, higher is better; hybrid scores are their weighted
    sum.

    Args:
        embedding: Default `M3Embeddings()`. Other LangChain embeddings are searched in the dense mode only.
        index: Index of the documents; default a LocalIndex in `folder`, or a MemoryIndex without `folder`.
        folder: Folder of a LocalIndex, created if missing.
        plan: Search plan of hybrid searches; default that of the index.
        calibration: Converts hybrid scores to relevance scores, see `retrieval.calibration.calibrate`. Default: as for
            single modes, the score divided by the weights of its modes and clipped to [0, 1].
    """

    def __init__(
        self,
        embedding: Embeddings | None = None,
        index: Index | None = None,
        *,
        folder: str | Path | None = None,
        plan: SearchPlan | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if index is not None and folder is not None:
            raise ValueError(f"index and folder={str(folder)!r} are both given; leave one of them out")
        self.embedding = embedding or M3Embeddings()
        self.index: Index = index if index is not None else _open(folder)
        self.plan = plan
        self.calibration = calibration
        self._retrievers: dict[SearchMode, Retriever] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of pickles and copies, which load the encoder again or share it."""
        state = {name: value for name, value in vars(self).items() if name != "encoder"}
        return {**state, "_retrievers": {}}

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> M3VectorStore:
        """Create a store and add texts.

        Args:
            texts: See `add_texts`.
            embedding: See the class.
            metadatas: See `add_texts`.
            ids: See `add_texts`.
            **kwargs: Other arguments of the constructor, such as `folder="my-index"`, which keeps the texts on disk.

        Returns:
            The store.
        """
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def from_folder(cls, folder: str | Path, embedding: Embeddings | None = None, **kwargs: Any) -> M3VectorStore:
        """Open the store in a folder, created if missing.

        Args:
            folder: Folder of the index.
            embedding: See the class.
            **kwargs: Other arguments of the constructor.

        Returns:
            The store.

        Raises:
            WrongEncoder: At the first use, if other embeddings filled the folder.
        """
        return cls(embedding, folder=folder, **kwargs)

    @property
    def embeddings(self) -> Embeddings:
        return self.embedding

    @cached_property
    def encoder(self) -> Encoder:
        """Encoder of the embeddings, loaded at the first use.

        Raises:
            WrongEncoder: If another encoder filled the index.
        """
        embedding = self.embedding
        encoder = embedding.encoder if isinstance(embedding, M3Embeddings) else DenseOnlyEncoder(embedding)
        check_index_encoder(self.index, encoder)
        return encoder

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, replacing documents with the same ids; unchanged ones are not encoded again.

        Args:
            texts: The texts.
            metadatas: Metadata of each text; None for none.
            ids: Ids of the texts. A text without an id gets a hash of text and metadata, so that equal ones are added
                once.
            batch_size: Accepted for LangChain's indexing API and ignored; batches are bounded by tokens.
            **kwargs: None is supported.

        Returns:
            The ids of the texts.

        Raises:
            ValueError: If the numbers of arguments differ, a text is no string, or metadata is not JSON-like.
        """
        _reject_unknown("add_texts", kwargs, "metadatas, ids and batch_size")
        texts = list(texts)
        per_text = _align("metadatas", metadatas, len(texts), None), _align("ids", ids, len(texts), None)
        passages = texts_to_passages(texts, *per_text)
        ingest(self.encoder, self.index, passages)
        return [each.id for each in passages]

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        return await to_thread(self.add_texts, texts, metadatas, ids=ids, batch_size=batch_size, **kwargs)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents; unknown ids are ignored.

        Args:
            ids: Ids of the documents; None deletes every document.
            **kwargs: `purge=True` removes the documents from every file too, as `Index.delete` does.

        Returns:
            True.
        """
        purge = bool(kwargs.pop("purge", False))
        _reject_unknown("delete", kwargs, "ids and purge")
        self.index.delete(self.index.ids() if ids is None else ids, purge=purge)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return documents in the order of their ids, without duplicates; unknown ids are ignored.

        Args:
            ids: Ids of documents.
        """
        present = self.index.content_hashes(list(ids))
        return [to_document(each) for each in self.index.passages([id for id in dict.fromkeys(ids) if id in present])]

    def similarity_search(
        self, query: str, k: int = 4, filter: SearchFilter = None, mode: SearchMode = "hybrid", **kwargs: Any
    ) -> list[Document]:
        """Return the k best documents, best first; fewer only if fewer match.

        Args:
            query: The query.
            k: Number of documents.
            filter: See the class.
            mode: See the class.
            **kwargs: None is supported.

        Raises:
            MissingMode: If the encoder does not have the mode.
            UnsupportedFilter: If a filter has no equivalent.
        """
        return to_documents(self._find(query, k, filter, mode, kwargs))

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: SearchFilter = None, mode: SearchMode = "hybrid", **kwargs: Any
    ) -> list[Document]:
        return to_documents(await self._afind(query, k, filter, mode, kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: SearchFilter = None, mode: SearchMode = "hybrid", **kwargs: Any
    ) -> ScoredDocuments:
        """Return the documents of `similarity_search` with their scores.

        Args:
            query: The query.
            k: Number of documents.
            filter: See the class.
            mode: See the class.
            **kwargs: None is supported.
        """
        return _with_scores(self._find(query, k, filter, mode, kwargs))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: SearchFilter = None, mode: SearchMode = "hybrid", **kwargs: Any
    ) -> ScoredDocuments:
        return _with_scores(await self._afind(query, k, filter, mode, kwargs))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: SearchFilter = None, **kwargs: Any
    ) -> list[Document]:
        """Return the k best documents by their dense vectors.

        Args:
            embedding: Dense vector of the query, shape (dim,).
            k: Number of documents.
            filter: See the class.
            **kwargs: None is supported.

        Raises:
            WrongDimension: If the vector has another dimension than the encoder's.
        """
        return to_documents(self._find_by_vector(embedding, k, filter, kwargs))

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: SearchFilter = None, **kwargs: Any
    ) -> ScoredDocuments:
        """Return the documents of `similarity_search_by_vector` with their scores.

        Args:
            embedding: Dense vector of the query, shape (dim,).
            k: Number of documents.
            filter: See the class.
            **kwargs: None is supported.
        """
        return _with_scores(self._find_by_vector(embedding, k, filter, kwargs))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: SearchFilter = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> list[Document]:
        """Select k relevant and diverse documents by maximal marginal relevance.

        Args:
            query: The query.
            k: Number of documents.
            fetch_k: Number of documents to select from.
            lambda_mult: Weight of relevance against diversity: 1 ranks by relevance, 0 by diversity alone. Relevance is
                the score divided by the weights of its modes; diversity compares dense vectors.
            filter: See the class.
            mode: See the class.
            **kwargs: None is supported.

        Returns:
            The documents, in the order of selection.
        """
        matches = self._find(query, max(k, fetch_k), filter, mode, kwargs)
        return to_documents(self._diversify(matches, k, lambda_mult, mode))

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: SearchFilter = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> list[Document]:
        matches = await self._afind(query, max(k, fetch_k), filter, mode, kwargs)
        return to_documents(await to_thread(self._diversify, matches, k, lambda_mult, mode))

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: SearchFilter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Select documents as `max_marginal_relevance_search` does, by a dense vector.

        Args:
            embedding: Dense vector of the query, shape (dim,).
            k: Number of documents.
            fetch_k: Number of documents to select from.
            lambda_mult: Weight of relevance against diversity.
            filter: See the class.
            **kwargs: None is supported.

        Returns:
            The documents, in the order of selection.
        """
        matches = self._find_by_vector(embedding, max(k, fetch_k), filter, kwargs)
        return to_documents(self._diversify(matches, k, lambda_mult, "dense"))

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, filter: SearchFilter = None, mode: SearchMode = "hybrid", **kwargs: Any
    ) -> ScoredDocuments:
        return self._with_relevance(self._find(query, k, filter, mode, kwargs), mode)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, filter: SearchFilter = None, mode: SearchMode = "hybrid", **kwargs: Any
    ) -> ScoredDocuments:
        return self._with_relevance(await self._afind(query, k, filter, mode, kwargs), mode)

    def _find(
        self, query: str, k: int, filter: SearchFilter, mode: SearchMode, kwargs: Mapping[str, Any]
    ) -> list[Match]:
        _reject_unknown_search(kwargs)
        return self._get_retriever(mode).retrieve(query, k, to_where(filter))

    async def _afind(
        self, query: str, k: int, filter: SearchFilter, mode: SearchMode, kwargs: Mapping[str, Any]
    ) -> list[Match]:
        _reject_unknown_search(kwargs)
        where = to_where(filter)
        retriever = self._retrievers.get(mode)
        if retriever is None:
            retriever = await to_thread(self._get_retriever, mode)
        if isinstance(retriever.encoder, DenseOnlyEncoder) and not is_blank(query):
            encoded = await retriever.encoder.aencode_query(query)
            matches = await to_thread(retriever.retrieve_encoded, encoded, k, where)
            return matches[0]
        return await retriever.aretrieve(query, k, where)

    def _find_by_vector(
        self, embedding: Sequence[float], k: int, filter: SearchFilter, kwargs: Mapping[str, Any]
    ) -> list[Match]:
        _reject_unknown_search(kwargs)
        retriever, encoder = self._get_retriever("dense"), self.encoder
        encoded = encoder.encoded([embedding]) if isinstance(encoder, DenseOnlyEncoder) else Encoded(dense=[embedding])
        return retriever.retrieve_encoded(encoded, k, to_where(filter))[0]

    def _diversify(self, matches: Sequence[Match], k: int, lambda_mult: float, mode: SearchMode) -> list[Match]:
        if not matches:
            return []
        retriever = self._get_retriever(mode)
        weights, fusion = retriever.weights, retriever.fusion
        averaged = [replace(match, score=similarity(match, weights, fusion)) for match in matches]
        return mmr_rerank(self.index, averaged, k, lambda_mult)

    def _with_relevance(self, matches: Sequence[Match], mode: SearchMode) -> ScoredDocuments:
        if self.calibration is not None and mode == "hybrid":
            return [(to_document(match.passage), self.calibration.of(match)) for match in matches]
        if not matches:
            return []
        retriever = self._get_retriever(mode)
        if retriever.calibration is not None:
            probabilities = match_probabilities(retriever.calibration, matches)
            return list(zip(to_documents(matches), probabilities, strict=True))
        weights, fusion = retriever.weights, retriever.fusion
        return [(to_document(match.passage), relevance(match, weights, fusion)) for match in matches]

    def _get_retriever(self, mode: SearchMode) -> Retriever:
        """Return the one retriever of a mode; it micro-batches concurrent queries."""
        if mode not in self._retrievers:
            encoder = self.encoder
            if mode != "hybrid" and mode not in encoder.modes:
                raise MissingMode(
                    f"mode={mode!r} is not available: {encoder!r} supports {sorted(encoder.modes)}. Use mode='hybrid'."
                )
            plan = self.plan if mode == "hybrid" else SearchPlan(propose=(mode,), weights={mode: 1.0})
            self._retrievers.setdefault(mode, Retriever(encoder, self.index, plan))
        return self._retrievers[mode]


def _open(folder: str | Path | None) -> Index:
    return MemoryIndex() if folder is None else LocalIndex.open(folder)


def _with_scores(matches: Sequence[Match]) -> ScoredDocuments:
    return [(to_document(match.passage), match.score) for match in matches]


def _align(name: str, values: Sequence[Any] | None, count: int, default: Any) -> Sequence[Any]:
    if values is None:
        return [default] * count
    if len(values) != count:
        raise ValueError(f"got {count} texts and {len(values)} {name}; pass one for each text")
    return values


def _reject_unknown_search(kwargs: Mapping[str, Any]) -> None:
    if "score_threshold" in kwargs:
        raise TypeError("score_threshold needs relevance scores; use search_type='similarity_score_threshold'")
    _reject_unknown("a search", kwargs, "k, filter and mode, and for MMR fetch_k and lambda_mult")


def _reject_unknown(method: str, kwargs: Mapping[str, Any], supported: str) -> None:
    if kwargs:
        raise TypeError(f"{method} of M3VectorStore takes no {sorted(kwargs)}; it takes {supported}")

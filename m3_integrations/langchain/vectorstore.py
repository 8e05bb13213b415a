"""M3VectorStore: any of our indexes as a LangChain vector store, hybrid from the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.errors import MissingMode
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.threads import on_thread
from m3_integrations.index.base import Index, Where
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.langchain.convert import Filter, document_of, documents_of, passage, where_of
from m3_integrations.langchain.embeddings import M3Embeddings
from m3_integrations.langchain.foreign import EmbeddingsEncoder
from m3_integrations.langchain.settings import require_filler
from m3_integrations.retrieval.calibration import Calibration, relevance, similarity
from m3_integrations.retrieval.diversity import diversify
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Match, Retriever

SearchMode: TypeAlias = Mode | Literal["hybrid"]
Scored: TypeAlias = list[tuple[Document, float]]


class M3VectorStore(VectorStore):
    """Documents in a MemoryIndex, a LocalIndex or any other Index, found by all modes of M3Embeddings at once.

    embedding: None is M3Embeddings(); other LangChain embeddings serve too, by their dense vectors alone. index: None
    is memory. plan: how a hybrid search weighs the modes; None leaves it to the encoder.
    calibration: what makes a hybrid's scores relevance scores, fitted by `retrieval.calibration.calibrate`; None
    divides a score by the weights of its modes and cuts it to [0, 1], as is done for single modes.

    Every search takes `filter`, as `{"year": {"$gte": 2020}}` or a Where, and `mode`: "hybrid", or "dense", "sparse",
    "multi_vector" alone. Scores are inner products, higher is better; those of a hybrid are their weighted sum.
    """

    def __init__(
        self,
        embedding: Embeddings | None = None,
        index: Index | None = None,
        *,
        plan: SearchPlan | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.embedding = embedding or M3Embeddings()
        self.index: Index = MemoryIndex() if index is None else index
        self.plan = plan
        self.calibration = calibration
        self._retrievers: dict[SearchMode, Retriever] = {}

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
        """A store with these texts; kwargs are those of the constructor."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def from_folder(
        cls, folder: str | Path, embedding: Embeddings | None = None, *, plan: SearchPlan | None = None
    ) -> M3VectorStore:
        """A store in a LocalIndex folder, which is made where there is none.

        Raises WrongEncoder, at the first use, where other embeddings filled it.
        """
        return cls(embedding, LocalIndex.open(folder), plan=plan)

    @property
    def embeddings(self) -> Embeddings:
        return self.embedding

    @cached_property
    def encoder(self) -> Encoder:
        """What reads the texts; the model is read when it is first needed.

        Raises WrongEncoder where the index is a folder that another encoder filled.
        """
        embedding = self.embedding
        encoder = embedding.encoder if isinstance(embedding, M3Embeddings) else EmbeddingsEncoder(embedding)
        require_filler(self.index, encoder)
        return encoder

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Keep texts, and answer their ids; one whose id is there is replaced, and what is unchanged is not encoded.

        A text without id gets one from its content: equal texts with equal metadata are kept once. batch_size, which
        LangChain's indexing gives, has no use here: passes are filled by tokens.
        Raises ValueError where counts differ, for a text that is none, and for metadata that JSON cannot say.
        """
        _refuse("add_texts", kwargs, "metadatas, ids and batch_size")
        said = list(texts)
        named = _one_each("ids", ids, len(said), None)
        passages = list(map(passage, said, _one_each("metadatas", metadatas, len(said), {}), named))
        ingest(self.encoder, self.index, passages)
        return [each.id for each in passages]

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        return await on_thread(self.add_texts, texts, metadatas, ids=ids, batch_size=batch_size, **kwargs)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Forget these documents, or every one where ids is None; ids that are not there are passed over."""
        _refuse("delete", kwargs, "ids")
        self.index.delete(self.index.ids() if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """These documents, each once and in this order; ids that are not there are passed over."""
        held = self.index.content_hashes(list(ids))
        return [document_of(each) for each in self.index.passages([id for id in dict.fromkeys(ids) if id in held])]

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Filter | Where | None = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> list[Document]:
        """The best k documents for a question, best first; fewer only where fewer are there."""
        return documents_of(self._find(query, k, filter, mode, kwargs))

    async def asimilarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Filter | Where | None = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> list[Document]:
        return documents_of(await self._afind(query, k, filter, mode, kwargs))

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Filter | Where | None = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> Scored:
        """`similarity_search`, each document with its score."""
        return _scored(self._find(query, k, filter, mode, kwargs))

    async def asimilarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Filter | Where | None = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> Scored:
        return _scored(await self._afind(query, k, filter, mode, kwargs))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | Where | None = None, **kwargs: Any
    ) -> list[Document]:
        """The best k documents by their dense vectors alone. Raises WrongDimension for a vector of another width."""
        return documents_of(self._find_vector(embedding, k, filter, kwargs))

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | Where | None = None, **kwargs: Any
    ) -> Scored:
        """`similarity_search_by_vector`, each document with its score."""
        return _scored(self._find_vector(embedding, k, filter, kwargs))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | Where | None = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> list[Document]:
        """k of the best fetch_k documents that answer, and do not say the same: see `maximal_marginal_relevance`.

        Relevance is the score over the weights of its modes; documents are compared by their dense vectors.
        """
        matches = self._find(query, max(k, fetch_k), filter, mode, kwargs)
        return documents_of(self._diversified(matches, k, lambda_mult, mode))

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | Where | None = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> list[Document]:
        matches = await self._afind(query, max(k, fetch_k), filter, mode, kwargs)
        return documents_of(await on_thread(self._diversified, matches, k, lambda_mult, mode))

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """The same for a question's dense vector, in the dense mode."""
        matches = self._find_vector(embedding, max(k, fetch_k), filter, kwargs)
        return documents_of(self._diversified(matches, k, lambda_mult, "dense"))

    def _similarity_search_with_relevance_scores(
        self,
        query: str,
        k: int = 4,
        filter: Filter | Where | None = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> Scored:
        return self._relevant(self._find(query, k, filter, mode, kwargs), mode)

    async def _asimilarity_search_with_relevance_scores(
        self,
        query: str,
        k: int = 4,
        filter: Filter | Where | None = None,
        mode: SearchMode = "hybrid",
        **kwargs: Any,
    ) -> Scored:
        return self._relevant(await self._afind(query, k, filter, mode, kwargs), mode)

    def _find(
        self, query: str, k: int, filter: Filter | Where | None, mode: SearchMode, kwargs: Mapping[str, Any]
    ) -> list[Match]:
        _refuse_search(kwargs)
        return self._retriever(mode).retrieve(query, k, where_of(filter))

    async def _afind(
        self, query: str, k: int, filter: Filter | Where | None, mode: SearchMode, kwargs: Mapping[str, Any]
    ) -> list[Match]:
        _refuse_search(kwargs)
        where = where_of(filter)
        retriever = self._retrievers.get(mode)
        if retriever is None:
            retriever = await on_thread(self._retriever, mode)
        if isinstance(retriever.encoder, EmbeddingsEncoder):
            encoded = await retriever.encoder.aencode_query(query)
            matches = await on_thread(retriever.retrieve_encoded, encoded, k, where)
            return matches[0]
        return await retriever.aretrieve(query, k, where)

    def _find_vector(
        self, embedding: Sequence[float], k: int, filter: Filter | Where | None, kwargs: Mapping[str, Any]
    ) -> list[Match]:
        _refuse_search(kwargs)
        retriever, encoder = self._retriever("dense"), self.encoder
        encoded = encoder.encoded([embedding]) if isinstance(encoder, EmbeddingsEncoder) else Encoded(dense=[embedding])
        return retriever.retrieve_encoded(encoded, k, where_of(filter))[0]

    def _diversified(self, matches: Sequence[Match], k: int, balance: float, mode: SearchMode) -> list[Match]:
        weights = self._weights(mode)
        averaged = [replace(match, score=similarity(match, weights)) for match in matches]
        return diversify(self.index, averaged, k, balance)

    def _relevant(self, matches: Sequence[Match], mode: SearchMode) -> Scored:
        if self.calibration is not None and mode == "hybrid":
            return [(document_of(match.passage), self.calibration.of(match)) for match in matches]
        weights = self._weights(mode)
        return [(document_of(match.passage), relevance(match, weights)) for match in matches]

    def _weights(self, mode: SearchMode) -> Mapping[Mode, float]:
        stated = self._retriever(mode).plan.weights
        return self.encoder.weights if stated is None else stated

    def _retriever(self, mode: SearchMode) -> Retriever:
        """One for each mode, so that questions which are awaited together meet in it."""
        if mode not in self._retrievers:
            encoder = self.encoder
            if mode != "hybrid" and mode not in encoder.modes:
                raise MissingMode(
                    f"mode={mode!r} is not to be had of {encoder!r}, which has {sorted(encoder.modes)}; mode='hybrid' "
                    "weighs what there is"
                )
            plan = self.plan if mode == "hybrid" else SearchPlan(propose=(mode,), weights={mode: 1.0})
            self._retrievers.setdefault(mode, Retriever(encoder, self.index, plan))
        return self._retrievers[mode]


def _scored(matches: Sequence[Match]) -> Scored:
    return [(document_of(match.passage), match.score) for match in matches]


def _one_each(kind: str, given: Sequence[Any] | None, count: int, otherwise: Any) -> Sequence[Any]:
    if given is None:
        return [otherwise] * count
    if len(given) != count:
        raise ValueError(f"got {count} texts and {len(given)} {kind}; give one for each")
    return given


def _refuse_search(kwargs: Mapping[str, Any]) -> None:
    if "score_threshold" in kwargs:
        raise TypeError("score_threshold needs relevance scores; use search_type='similarity_score_threshold'")
    _refuse("a search", kwargs, "k, filter and mode; one by mmr fetch_k and lambda_mult, too")


def _refuse(call: str, kwargs: Mapping[str, Any], taken: str) -> None:
    if kwargs:
        raise TypeError(f"{call} of M3VectorStore takes no {sorted(kwargs)}; it takes {taken}")

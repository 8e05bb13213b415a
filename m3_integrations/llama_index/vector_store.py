"""M3VectorStore: any of our indexes as a LlamaIndex vector store, all three modes behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import fsspec  # type: ignore[import-untyped]  # it ships no types
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.microbatch import gathered
from m3_integrations.core.recent import Recent, complete_passages, complete_query, wanted_from
from m3_integrations.core.threads import on_thread
from m3_integrations.index.base import Index
from m3_integrations.index.copying import copy_passages
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.where import Field as Condition
from m3_integrations.index.where import Where
from m3_integrations.llama_index import persisting
from m3_integrations.llama_index.convert import NODE_TYPE, REF_DOC_ID, node_of, passage_of, where_of
from m3_integrations.llama_index.query_modes import LEXICAL, Ask, ask_of, where_of_query
from m3_integrations.llama_index.settings import EncoderSettings, require_filler
from m3_integrations.retrieval.diversity import diversify
from m3_integrations.retrieval.retriever import Match, Retriever

_AT_ONCE = 512
_BALANCE = 0.5
_SPARSE: tuple[Mode, ...] = ("sparse",)
_POINTERS = Condition(NODE_TYPE, "in", ("IndexNode", "ImageNode"))


class M3VectorStore(EncoderSettings, BasePydanticVectorStore):
    """Nodes in a MemoryIndex, a LocalIndex or any other Index, found in every query mode but the learners'.

    index: where the nodes are; None is a LocalIndex in `folder`, or memory where that is None too. encoder: the one
    whose vectors it holds; None is what `model_name` says. Give the same one to M3Embedding, or none to either: then
    each text goes through the model once, since what M3Embedding made beside the embedding waits here for `add`. A node
    whose embedding came from elsewhere (a cache, another process, NUDGE) keeps it, and costs a pass for the rest.

    DEFAULT and MMR ask by dense vectors, SPARSE and TEXT_SEARCH by token weights, HYBRID by both, and SEMANTIC_HYBRID
    scores what both find by late interaction too. `alpha` and the numbers of a hybrid: see `ask_of`. Scores are inner
    products, those of a hybrid their weighted sum; MMR's are what each node added, and take `mmr_threshold`.
    """

    model_config = ConfigDict(extra="forbid")

    stores_text: bool = True
    folder: str | None = Field(default=None, description="A LocalIndex folder; None where an index is passed in.")
    modes: tuple[Mode, ...] | None = Field(
        default=None, description="What an index is filled with that never held any; None is all the encoder's modes."
    )
    weights: dict[Mode, float] | None = Field(default=None, description="Of a hybrid; None takes the model's own.")
    candidates: int = Field(default=100, gt=0, description="How many nodes each mode of a hybrid puts forward.")
    waiting_bytes: int = Field(
        default=4 << 30, gt=0, description="Bytes of vectors that wait at once between M3Embedding and add."
    )
    _index: Index | None = PrivateAttr(default=None)
    _recent: Recent | None = PrivateAttr(default=None)

    def __init__(
        self,
        index: Index | None = None,
        encoder: Encoder | None = None,
        *,
        model_name: str | None = None,
        **settings: Any,
    ) -> None:
        """Raises WrongEncoder where another encoder filled the folder, CheckpointError where there is no such model."""
        super().__init__(model_name, encoder=encoder, **settings)
        if index is not None and self.folder is not None:
            raise ValueError(f"got both an index and folder={self.folder!r}; leave one of them out")
        if index is not None:
            require_filler(index, self.encoder)
        if isinstance(index, LocalIndex):
            self.folder = str(index.folder)
        self._index = index
        self._recent = self._wanted()

    @classmethod
    def class_name(cls) -> str:
        return "M3VectorStore"

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = DEFAULT_PERSIST_DIR,
        namespace: str = "default",
        fs: fsspec.AbstractFileSystem | None = None,
        *,
        encoder: Encoder | None = None,
        index: Index | None = None,
        **changed: Any,
    ) -> M3VectorStore:
        """The store that `StorageContext.persist(persist_dir)` wrote; the rest as in `from_persist_path`."""
        path = f"{persist_dir}/{namespace}__{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(path, fs, encoder=encoder, index=index, **changed)

    @classmethod
    def from_persist_path(
        cls,
        persist_path: str,
        fs: fsspec.AbstractFileSystem | None = None,
        *,
        encoder: Encoder | None = None,
        index: Index | None = None,
        **changed: Any,
    ) -> M3VectorStore:
        """The store that `persist` wrote, with all its settings but those that are changed; nothing is unpickled.

        encoder, index: needed where the store was made with one that only the caller has (an encoder that was passed
        in, an index on a server). Raises WrongEncoder where the encoder is another, IndexFolderError where there is
        no such store.
        """
        said = persisting.read(persist_path, fs)
        settings = {**said.settings, **changed}
        if index is not None:
            return cls(index, encoder, **settings)
        with said.vectors() as folder:
            kept = cls(folder=str(folder), encoder=encoder, **settings)
            if not said.in_memory:
                return kept
            index = MemoryIndex()
            copy_passages(kept.index, index)
            kept.index.close()
        return cls(index, kept.encoder, **settings)

    @property
    def client(self) -> Index:
        """The index itself."""
        return self.index

    @property
    def index(self) -> Index:
        """Where the nodes are."""
        if self._index is None:
            self._index = MemoryIndex() if self.folder is None else LocalIndex.open(self.folder, self.encoder)
        return self._index

    @property
    def recent(self) -> Recent:
        """What M3Embedding made of late beside its embeddings, which waits here for `add` and `query`."""
        if self._recent is None:
            self._recent = self._wanted()
        return self._recent

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Keep nodes; one whose id is there is replaced. Embeddings that they have are kept, others are made.

        Raises WrongDimension for an embedding of another width, ValueError for metadata that JSON cannot say.
        """
        _refuse("add", kwargs)
        for start in range(0, len(nodes), _AT_ONCE):
            self._add(nodes[start : start + _AT_ONCE])
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Forget every node of a document; one that is not there is passed over."""
        _refuse("delete", delete_kwargs)
        self.index.delete(self.index.ids(Condition(REF_DOC_ID, "==", ref_doc_id)))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Forget these nodes, or of them those that pass the filters. Raises ValueError where neither is given."""
        _refuse("delete_nodes", delete_kwargs)
        if node_ids is None and filters is None:
            raise ValueError("delete_nodes takes node_ids, filters, or both; call clear() to forget every node")
        self.index.delete(self._chosen(node_ids, where_of(filters)))

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """These nodes, or of them those that pass the filters, in this order; all, ordered by id, where none is named.

        Ids that are not there are passed over.
        """
        return [node_of(each) for each in self.index.passages(self._chosen(node_ids, where_of(filters)))]

    def clear(self) -> None:
        """Forget every node."""
        self.index.delete(self.index.ids())

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The best nodes for a question, best first; fewer only where fewer match.

        Takes mmr_threshold, in the query or beside it. Raises ValueError for a query mode that is none of ours and
        where the mode needs a text that is not given, UnsupportedFilter, WrongDimension.
        """
        return self._answer(query, kwargs)

    def persist(self, persist_path: str, fs: fsspec.AbstractFileSystem | None = None) -> None:
        """Write what `from_persist_path` reads: the settings, and where they are in memory, the nodes beside them.

        A LocalIndex is in its folder already, which is only named; an index of another kind keeps itself.
        """
        settings = {name: getattr(self, name) for name in type(self).model_fields if name != "folder"}
        persisting.write(persist_path, fs, settings, self.index, self.encoder)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings, which find the nodes again in their folder. Raises ValueError where there is none."""
        self._require_folder("a dict")
        return super().to_dict(**kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self._require_folder("a pickle")
        bare = self.model_copy()
        bare._index = bare._recent = None
        return super(M3VectorStore, bare).__getstate__()

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await on_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        await on_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        await on_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return await on_thread(self.get_nodes, node_ids, filters)

    async def aclear(self) -> None:
        await on_thread(self.clear)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`; lexical questions that are awaited at the same time share a pass, as M3Embedding's do."""
        if query.mode not in LEXICAL or query.query_str is None or "sparse" not in self.encoder.modes:
            return await on_thread(self._answer, query, kwargs)
        return await on_thread(self._answer, query, kwargs, await gathered(self._lexical, query.query_str))

    @property
    def _kept(self) -> frozenset[Mode]:
        return (self.index.modes or frozenset(self.modes or self.encoder.modes)) & self.encoder.modes

    def _wanted(self) -> Recent:
        return wanted_from(self.encoder, self._kept, self.waiting_bytes)

    def _add(self, nodes: Sequence[BaseNode]) -> None:
        passages = [passage_of(node) for node in nodes]
        texts, embeddings = [each.text for each in passages], [node.embedding for node in nodes]
        self.index.add(passages, complete_passages(self.encoder, self.recent, texts, embeddings, self._kept))
        for text, embedding in zip(texts, embeddings, strict=True):
            if embedding is not None:
                self.recent.passages.forget(text, embedding)

    def _answer(
        self, query: VectorStoreQuery, settings: Mapping[str, Any], question: Encoded | None = None
    ) -> VectorStoreQueryResult:
        """What `query` answers. question: the query, where it is encoded already."""
        _refuse("query", {name: value for name, value in settings.items() if name != "mmr_threshold"})
        ask = ask_of(query, self.weights or self.encoder.weights, self.candidates)
        if query.mode != VectorStoreQueryMode.MMR:
            return _result(self._matches(query, question, ask, ask.k))
        stated = (query.mmr_threshold, settings.get("mmr_threshold"), _BALANCE)
        balance = next(each for each in stated if each is not None)
        matches = self._matches(query, question, ask, max(ask.k, self.candidates))
        return _result(diversify(self.index, matches, ask.k, balance))

    def _matches(self, query: VectorStoreQuery, question: Encoded | None, ask: Ask, k: int) -> list[Match]:
        if len(self.index) == 0:
            return []
        where = where_of_query(self._unbound(query))
        retriever = Retriever(self.encoder, self.index, ask.plan)
        text, dense = query.query_str, query.query_embedding
        asked = question or complete_query(self.encoder, self.recent, text, dense, retriever.modes)
        return retriever.retrieve_encoded(asked, k, where, candidates=ask.candidates)[0]

    def _lexical(self, texts: list[str]) -> list[Encoded]:
        encoded = self.encoder.encode_queries(texts, _SPARSE)
        return [encoded.take([i]) for i in range(len(texts))]

    def _unbound(self, query: VectorStoreQuery) -> VectorStoreQuery:
        # Of a store that keeps text, VectorStoreIndex knows the image and index nodes alone, and as_retriever() passes
        # just these as node_ids: taken at its word, it would never find a text beside them.
        pointers = self.index.ids(_POINTERS) if query.node_ids else []
        return replace(query, node_ids=None) if query.node_ids and set(query.node_ids) == set(pointers) else query

    def _chosen(self, node_ids: Sequence[str] | None, where: Where | None) -> list[str]:
        if node_ids is None:
            return self.index.ids(where)
        there = self.index.content_hashes(node_ids) if where is None else frozenset(self.index.ids(where))
        return [id for id in node_ids if id in there]

    def _require_folder(self, what: str) -> None:
        if self.folder is None:
            raise ValueError(
                f"{what} cannot carry the nodes of this M3VectorStore, which are not in a folder; call "
                "persist(path) and M3VectorStore.from_persist_path(path), or make it with folder='my-index'"
            )


def _result(matches: Sequence[Match]) -> VectorStoreQueryResult:
    nodes = [node_of(match.passage) for match in matches]
    return VectorStoreQueryResult(
        nodes=nodes,
        similarities=[match.score for match in matches],
        ids=[match.passage.id for match in matches],
    )


def _refuse(call: str, settings: Mapping[str, Any]) -> None:
    if settings:
        raise TypeError(f"M3VectorStore.{call} takes no {', '.join(sorted(settings))}; leave it out")

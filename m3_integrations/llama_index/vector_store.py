"""M3VectorStore: a LlamaIndex vector store with dense, sparse and hybrid queries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import fsspec  # type: ignore[import-untyped]  # it ships no types
import numpy as np
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

from m3_integrations.adapters.embedding_cache import (
    RequestedModes,
    check_query_text,
    complete_query,
    fill_missing_modes,
    request_modes,
)
from m3_integrations.adapters.encoder_registry import check_index_encoder
from m3_integrations.core.concurrency import micro_batched, to_thread
from m3_integrations.core.encoded import DENSE, Encoded, Mode
from m3_integrations.core.errors import NotPicklable, UnknownId
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.encoders.base import Encoder, has_content
from m3_integrations.index.base import Index
from m3_integrations.index.copying import copy_index
from m3_integrations.index.filters import Field as Condition, Where
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.llama_index import persistence
from m3_integrations.llama_index.convert import REF_DOC_ID, to_node, to_passage, to_where
from m3_integrations.llama_index.query_modes import (
    LEXICAL,
    MMR_OPTIONS,
    QueryRequest,
    drop_default_node_ids,
    mmr_settings,
    query_to_where,
    to_request,
)
from m3_integrations.llama_index.settings import LlamaIndexEncoderSettings
from m3_integrations.retrieval.mmr import mmr_rerank
from m3_integrations.retrieval.retriever import Match, Retriever, default_plan

_BATCH_SIZE = 512
_SPARSE: tuple[Mode, ...] = ("sparse",)


class M3VectorStore(LlamaIndexEncoderSettings, BasePydanticVectorStore):
    """Vector store over a MemoryIndex, a LocalIndex or any other Index.

    All query modes except those of learners are supported: DEFAULT and MMR search by dense vectors, SPARSE and
    TEXT_SEARCH by sparse weights, HYBRID by both; SEMANTIC_HYBRID adds multi-vector (late-interaction) scores of the
    candidates. `to_request` documents `alpha` and the `top_k` numbers of a query. Scores are inner products, hybrid
    scores their weighted sum, and MMR scores the marginal relevance of each node.

    Use the same encoder here and in M3Embedding, or none in both: then each text is encoded once, as the sparse and
    multi-vector embeddings computed with the dense vector are cached until `add`. A node keeps an embedding computed
    elsewhere (a cache, another process, NUDGE), and only its other modes are encoded.

    Args:
        index: Index of the nodes; default a LocalIndex in `folder`, or a MemoryIndex without `folder`.
        encoder: Encoder of the vectors in the index; default that of `model_name`.
        model_name: "m3-mini" (default), a local folder or a hub id.
        settings: The fields below, and the other fields of M3Embedding.

    Raises:
        CheckpointError: If the model cannot be loaded.
        WrongEncoder: If another encoder filled the index.
    """

    model_config = ConfigDict(extra="forbid")

    stores_text: bool = True
    folder: str | None = Field(default=None, description="Folder of a LocalIndex; None for any other index.")
    modes: tuple[Mode, ...] | None = Field(
        default=None, description="Modes stored in an empty index; None stores all modes of the encoder."
    )
    weights: dict[Mode, float] | None = Field(default=None, description="Weights of a hybrid query; None: the index's.")
    candidates: int = Field(default=100, gt=0, description="Candidates per mode of a hybrid query.")
    waiting_bytes: int = Field(
        default=4 << 30, gt=0, description="Bound on the embeddings cached between M3Embedding and add."
    )
    _index: Index | None = PrivateAttr(default=None)
    _recent: RequestedModes | None = PrivateAttr(default=None)

    def __init__(
        self,
        index: Index | None = None,
        encoder: Encoder | None = None,
        *,
        model_name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model_name, encoder=encoder, **settings)
        if index is not None and self.folder is not None:
            raise ValueError(f"index and folder={self.folder!r} are both given; leave one of them out")
        if index is not None:
            check_index_encoder(index, self.encoder)
        if isinstance(index, LocalIndex):
            self.folder = str(index.folder)
        self._index = index
        self._recent = self._request_modes()

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex serializes the component."""
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
        **overrides: Any,
    ) -> M3VectorStore:
        """Load the store written by `StorageContext.persist(persist_dir)`.

        Args:
            persist_dir: Folder of the storage context.
            namespace: Namespace of the store in the folder.
            fs: See `from_persist_path`.
            encoder: See `from_persist_path`.
            index: See `from_persist_path`.
            **overrides: See `from_persist_path`.

        Returns:
            The store.
        """
        path = f"{persist_dir}/{namespace}__{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(path, fs, encoder=encoder, index=index, **overrides)

    @classmethod
    def from_persist_path(
        cls,
        persist_path: str,
        fs: fsspec.AbstractFileSystem | None = None,
        *,
        encoder: Encoder | None = None,
        index: Index | None = None,
        **overrides: Any,
    ) -> M3VectorStore:
        """Load the store written by `persist`, without unpickling.

        Args:
            persist_path: Path of the settings file.
            fs: File system of the file; default the local one.
            encoder: Required if the store was made with a loaded encoder.
            index: Required if the nodes are neither in memory nor in a LocalIndex.
            **overrides: Fields that replace the persisted ones.

        Returns:
            The store.

        Raises:
            IndexFolderError: If there is no such store.
            WrongEncoder: If another encoder filled the index.
        """
        persisted = persistence.read(persist_path, fs)
        settings = {**persisted.settings, **overrides}
        if index is not None:
            return cls(index, encoder, **settings)
        with persisted.local_folder() as folder:
            store = cls(folder=str(folder), encoder=encoder, **settings)
            if not persisted.is_in_memory:
                return store
            index = MemoryIndex()
            copy_index(store.index, index)
            store.index.close()
        return cls(index, store.encoder, **settings)

    @property
    def client(self) -> Index:
        """The index, as LlamaIndex calls it."""
        return self.index

    @property
    def index(self) -> Index:
        """Index of the nodes, opened at the first use."""
        if self._index is None:
            self._index = MemoryIndex() if self.folder is None else LocalIndex.open(self.folder, self.encoder)
        return self._index

    @property
    def recent(self) -> RequestedModes:
        """Embeddings computed by M3Embedding, cached for `add` and `query`."""
        if self._recent is None:
            self._recent = self._request_modes()
        return self._recent

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes, replacing nodes with the same ids.

        Args:
            nodes: Nodes to add; those without an embedding are encoded.
            **kwargs: None is supported.

        Returns:
            The ids of the nodes.

        Raises:
            WrongDimension: If an embedding has another dimension than the encoder's.
            ValueError: If metadata cannot be represented in JSON.
        """
        _reject_unknown("add", kwargs)
        for start in range(0, len(nodes), _BATCH_SIZE):
            self._add(nodes[start : start + _BATCH_SIZE])
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete all nodes of a document; an unknown document is ignored.

        Args:
            ref_doc_id: Id of the document.
            **delete_kwargs: `purge=True` removes the nodes from every file too, as `Index.delete` does.
        """
        purge = bool(delete_kwargs.pop("purge", False))
        _reject_unknown("delete", delete_kwargs)
        self.index.delete(self.index.ids(Condition(REF_DOC_ID, "==", ref_doc_id)), purge=purge)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by id, by filters, or by both; without either, delete nothing. Unknown ids are ignored.

        Args:
            node_ids: Ids of the nodes.
            filters: Filters that they match.
            **delete_kwargs: `purge=True` removes the nodes from every file too, as `Index.delete` does.
        """
        purge = bool(delete_kwargs.pop("purge", False))
        _reject_unknown("delete_nodes", delete_kwargs)
        if node_ids is None and filters is None:
            return
        self.index.delete(self._select_ids(node_ids, to_where(filters)), purge=purge)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return nodes by id, by filters, or by both; unknown ids are ignored.

        Args:
            node_ids: Ids of nodes; None does not restrict them.
            filters: Metadata filters; None does not restrict the nodes.

        Returns:
            The nodes with their embeddings, in the order of `node_ids`, or of their ids if `node_ids` is None.
        """
        return self._to_nodes(self.index.passages(self._select_ids(node_ids, to_where(filters))))

    def clear(self) -> None:
        """Delete every node."""
        self.index.delete(self.index.ids())

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search the nodes.

        Args:
            query: The query; the class documents the supported modes. Without text and embedding, the nodes that pass
                its filters, in the order of their ids and without similarities. `doc_ids=[]` and `node_ids=[]` select
                nothing.
            **kwargs: `mmr_threshold`, `mmr_prefetch_k` and `mmr_prefetch_factor`, see `mmr_settings`.

        Returns:
            The best nodes with their embeddings, best first; fewer than asked for only if fewer match.

        Raises:
            ValueError: If the mode is not supported, or needs a `query_str` and there is none.
            UnsupportedFilter: If a filter has no equivalent.
            WrongDimension: If the embedding of the query has another dimension than the encoder's.
        """
        return self._query(drop_default_node_ids(query), kwargs)

    def persist(self, persist_path: str, fs: fsspec.AbstractFileSystem | None = None) -> None:
        """Write the store for `from_persist_path`.

        The nodes of a MemoryIndex are written next to the settings. A LocalIndex is referred to by its folder. Any
        other index must be passed to `from_persist_path`.

        Args:
            persist_path: Path of the settings file.
            fs: File system to write to; default the local one.
        """
        settings = {name: getattr(self, name) for name in type(self).model_fields if name != "folder"}
        persistence.write(persist_path, fs, settings, self.index, self.encoder)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the settings, including the folder of the nodes.

        Args:
            **kwargs: Ignored.

        Raises:
            ValueError: If the nodes are not in a folder.
        """
        self._require_folder("a dict")
        return super().to_dict(**kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self._require_folder("a pickle", NotPicklable)
        bare = self._without_cache()
        bare._index = None
        return super(M3VectorStore, bare).__getstate__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> M3VectorStore:
        return super(M3VectorStore, self._without_cache()).__deepcopy__(memo)

    def _without_cache(self) -> M3VectorStore:
        bare = self.model_copy()
        bare._recent = None
        return bare

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        await to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        await to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return await to_thread(self.get_nodes, node_ids, filters)

    async def aclear(self) -> None:
        await to_thread(self.clear)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search the nodes as `query` does; concurrent sparse queries are micro-batched."""
        query = drop_default_node_ids(query)
        if query.mode not in LEXICAL or query.query_str is None or "sparse" not in self.encoder.modes:
            return await to_thread(self._query, query, kwargs)
        return await to_thread(self._query, query, kwargs, await micro_batched(self._encode_sparse, query.query_str))

    @property
    def _stored_modes(self) -> frozenset[Mode]:
        return (self.index.modes or frozenset(self.modes or self.encoder.modes)) & self.encoder.modes

    def _request_modes(self) -> RequestedModes:
        return request_modes(self.encoder, self._stored_modes, self.waiting_bytes)

    def _add(self, nodes: Sequence[BaseNode]) -> None:
        passages = [to_passage(node) for node in nodes]
        texts, embeddings = [each.text for each in passages], [node.embedding for node in nodes]
        self.index.add(passages, fill_missing_modes(self.encoder, self.recent, texts, embeddings, self._stored_modes))
        for text, embedding in zip(texts, embeddings, strict=True):
            if embedding is not None:
                self.recent.passages.discard(text, embedding)

    def _query(
        self, query: VectorStoreQuery, kwargs: Mapping[str, Any], encoded: Encoded | None = None
    ) -> VectorStoreQueryResult:
        _reject_unknown("query", {name: value for name, value in kwargs.items() if name not in MMR_OPTIONS})
        request = to_request(query, self._sum_of, self.candidates)
        where = query_to_where(query)
        if query.query_str is None and query.query_embedding is None and where is not None:
            return self._to_result(self.index.passages(self.index.ids(where)[: request.k]), None)
        if query.mode == VectorStoreQueryMode.MMR:
            count, threshold = mmr_settings(query, kwargs)
            matches = self._search(query, encoded, request, count, where)
            matches = mmr_rerank(self.index, matches, request.k, threshold)
        else:
            matches = self._search(query, encoded, request, request.k, where)
        return self._to_result([each.passage for each in matches], [each.score for each in matches])

    def _search(
        self, query: VectorStoreQuery, encoded: Encoded | None, request: QueryRequest, k: int, where: Where | None
    ) -> list[Match]:
        text, dense = query.query_str, query.query_embedding
        if len(self.index) == 0:
            weights = request.plan.weights or {}
            check_query_text(text, dense, frozenset((*request.plan.propose, *weights)) & self.encoder.modes)
            return []
        retriever = Retriever(self.encoder, self.index, request.plan)
        if text is not None and self._is_empty_query(text, dense):
            return []
        encoded = encoded or complete_query(self.encoder, self.recent, text, dense, retriever.modes)
        return retriever.retrieve_encoded(encoded, k, where, candidates=request.candidates)[0]

    def _is_empty_query(self, text: str, dense: Sequence[float] | None) -> bool:
        """Return whether a query has no content: neither in its text nor in an embedding of something else."""
        if has_content(self.encoder, [text])[0]:
            return False
        return dense is None or np.allclose(dense, self.encoder.encode_queries([text], DENSE).dense[0], atol=1e-3)

    def _sum_of(self, modes: Collection[Mode]) -> SearchPlan:
        if self.weights:
            return SearchPlan(weights=self.weights)
        return default_plan(self.encoder, self.index, self._stored_modes & frozenset(modes))

    def _encode_sparse(self, texts: list[str]) -> list[Encoded]:
        encoded = self.encoder.encode_queries(texts, _SPARSE)
        return [encoded.take([i]) for i in range(len(texts))]

    def _to_nodes(self, passages: Sequence[Passage]) -> list[BaseNode]:
        nodes = [to_node(each) for each in passages]
        for node, embedding in zip(nodes, self._embeddings([each.id for each in passages]), strict=True):
            node.embedding = embedding
        return nodes

    def _embeddings(self, ids: Sequence[str]) -> Sequence[list[float] | None]:
        if ids and "dense" in self.index.modes:
            with suppress(UnknownId):  # deleted since the search
                embeddings: list[list[float] | None] = self.index.vectors(ids, DENSE).dense.tolist()
                return embeddings
        return [None] * len(ids)

    def _to_result(self, passages: Sequence[Passage], scores: list[float] | None) -> VectorStoreQueryResult:
        ids = [each.id for each in passages]
        return VectorStoreQueryResult(nodes=self._to_nodes(passages), similarities=scores, ids=ids)

    def _select_ids(self, node_ids: Sequence[str] | None, where: Where | None) -> list[str]:
        if node_ids is None:
            return self.index.ids(where)
        present = self.index.content_hashes(node_ids) if where is None else frozenset(self.index.ids(where))
        return [id for id in node_ids if id in present]

    def _require_folder(self, what: str, error: type[Exception] = ValueError) -> None:
        if self.folder is None:
            raise error(
                f"{what} cannot hold the nodes of this M3VectorStore, which are not in a folder; call "
                "persist(path) and M3VectorStore.from_persist_path(path), or create it with folder='my-index'"
            )


def _reject_unknown(method: str, kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"M3VectorStore.{method} takes no {', '.join(sorted(kwargs))}; leave it out")

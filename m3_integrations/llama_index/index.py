"""M3Index: a LlamaIndex index over all three modes, with the constructor of BGEM3Index."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.utils import embed_nodes
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.storage.docstore.types import (
    DEFAULT_PERSIST_FNAME as DOCSTORE_FNAME,
    BaseDocumentStore,
    RefDocInfo,
)
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, SimpleVectorStore
from llama_index.core.vector_stores.types import DEFAULT_PERSIST_FNAME, MetadataFilters, VectorStoreQuery

from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.core.errors import IndexFolderError, M3Warning
from m3_integrations.core.types import SearchPlan
from m3_integrations.encoders.base import Encoder
from m3_integrations.encoders.m3 import M3Encoder
from m3_integrations.index.base import Index
from m3_integrations.index.filters import Where, all_of
from m3_integrations.llama_index.convert import to_where
from m3_integrations.llama_index.embedding import M3Embedding
from m3_integrations.llama_index.persistence import is_m3_store
from m3_integrations.llama_index.query_modes import query_to_where
from m3_integrations.llama_index.retriever import M3Retriever
from m3_integrations.llama_index.vector_store import M3VectorStore

ModeWeights: TypeAlias = Sequence[float] | Mapping[Mode, float]
_BATCH_SIZE = 256


class M3Index(BaseIndex[IndexDict]):
    """Index of nodes in an M3VectorStore, a replacement for BGEM3Index.

    Args:
        nodes: Nodes to index.
        objects: IndexNodes to index; retrieval continues in their objects.
        index_struct: Structure of an index that exists already, instead of nodes.
        storage_context: If it holds an M3VectorStore, the model and the vectors are those of that store. Default: a new
            context with an M3VectorStore.
        model_name: "m3-mini" (default), a local folder or a hub id. The default of BGEM3Index is "BAAI/bge-m3".
        index_name: Name of the index in the storage context.
        show_progress: Show progress bars.
        pooling_method: Accepted if it is the checkpoint's.
        normalize_embeddings: Accepted if it is the checkpoint's.
        use_fp16: Run the model in float16.
        batch_size: Accepted and ignored; batches are bounded by tokens.
        doc_maxlen: Tokens read of a text; default all that the model reads.
        query_maxlen: Accepted if it is not below `doc_maxlen`.
        weights_for_different_modes: Weights of the dense, sparse and multi-vector scores, divided by their sum as in
            BGEM3Index, or a mapping mode -> weight used as given. Default: the model's.
        encoder: A loaded encoder, instead of `model_name`.
        index: Index that stores the vectors, for example a LocalIndex; default a MemoryIndex.
        candidates: Candidates per mode; default that of M3VectorStore.
        callback_manager: See BaseIndex.
        transformations: See BaseIndex.

    Raises:
        ValueError: If an argument contradicts the checkpoint or the storage context.
        WrongEncoder: If another encoder filled the index.
    """

    index_struct_cls = IndexDict

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        objects: Sequence[IndexNode] | None = None,
        index_struct: IndexDict | None = None,
        storage_context: StorageContext | None = None,
        model_name: str | None = None,
        index_name: str = "",
        show_progress: bool = False,
        pooling_method: str | None = None,
        normalize_embeddings: bool = True,
        use_fp16: bool = False,
        batch_size: int | None = None,
        doc_maxlen: int | None = None,
        query_maxlen: int | None = None,
        weights_for_different_modes: ModeWeights | None = None,
        *,
        encoder: Encoder | None = None,
        index: Index | None = None,
        candidates: int | None = None,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        **build_settings: Any,
    ) -> None:
        _check_max_lengths(doc_maxlen, query_maxlen)
        context = storage_context or StorageContext.from_defaults()
        self.store = _resolve_store(
            context,
            model_name=model_name,
            encoder=encoder,
            index=index,
            dtype="float16" if use_fp16 else None,
            max_length=doc_maxlen,
            weights=normalize_weights(weights_for_different_modes),
            candidates=candidates,
        )
        _check_checkpoint(self.store.encoder, pooling_method, normalize_embeddings)
        events = callback_manager or Settings.callback_manager
        self._embed_model = M3Embedding(self.store.model_name, encoder=self.store.encoder, callback_manager=events)
        nodes, objects = nodes and list(nodes), objects and list(objects)
        settings = (index_struct, context, events, transformations, show_progress)
        super().__init__(nodes, objects, *settings, **build_settings)
        if index_name and self.index_id != index_name:
            self.set_index_id(index_name)

    @classmethod
    def load_from_disk(
        cls,
        persist_dir: str,
        model_name: str | None = None,
        index_name: str = "",
        weights_for_different_modes: ModeWeights | None = None,
        *,
        encoder: Encoder | None = None,
        index: Index | None = None,
    ) -> M3Index:
        """Load an index written by `persist`, without unpickling.

        A folder of BGEM3Index is read from its JSON, and its texts are encoded again; `persist` then writes it in the
        new format.

        Args:
            persist_dir: Folder of the index.
            model_name: Replaces the persisted name. Required for a folder of BGEM3Index, which does not record it.
            index_name: Name of the index, if the folder holds several.
            weights_for_different_modes: Replaces the persisted weights.
            encoder: A loaded encoder; required if the index was built with one.
            index: Index that stores the vectors; required if they are neither in memory nor in a LocalIndex.

        Returns:
            The index, with its model and weights.

        Raises:
            IndexFolderError: If the folder holds no index, or several and `index_name` is not given.
            WrongEncoder: If another model filled the index.
        """
        weights = normalize_weights(weights_for_different_modes)
        if not is_m3_store(f"{persist_dir}/default__{DEFAULT_PERSIST_FNAME}"):
            nodes, docstore = _read_other_index(persist_dir, model_name, encoder)
            return cls(
                nodes,
                storage_context=StorageContext.from_defaults(docstore=docstore),
                model_name=model_name,
                index_name=index_name,
                weights_for_different_modes=weights,
                encoder=encoder,
                index=index,
            )
        overrides = _given(model_name=model_name, weights=weights)
        store = M3VectorStore.from_persist_dir(persist_dir, encoder=encoder, index=index, **overrides)
        context = StorageContext.from_defaults(persist_dir=persist_dir, vector_store=store)
        return cls(index_struct=_find_struct(context, index_name), storage_context=context)

    def persist(self, persist_dir: str) -> None:
        """Write the index for `load_from_disk`; unrelated files of the folder are kept.

        Args:
            persist_dir: Folder to write.
        """
        self._storage_context.persist(persist_dir=persist_dir)

    @property
    def index_name(self) -> str:
        """Name of the index in its storage context."""
        return self.index_id

    @property
    def encoder(self) -> Encoder:
        """Encoder of the index, with all its modes."""
        return self.store.encoder

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """Documents with nodes in the index, by document id."""
        nodes = self.docstore.get_nodes(list(self.index_struct.nodes_dict.values()))
        documents = dict.fromkeys(node.ref_doc_id for node in nodes if node.ref_doc_id is not None)
        found = {document: self.docstore.get_ref_doc_info(document) for document in documents}
        return {document: info for document, info in found.items() if info is not None}

    def as_retriever(
        self,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: MetadataFilters | Where | None = None,
        node_ids: list[str] | None = None,
        doc_ids: list[str] | None = None,
        plan: SearchPlan | None = None,
        object_map: dict[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
        **_: Any,
    ) -> M3Retriever:
        """Return a retriever by the hybrid score.

        Args:
            similarity_top_k: Number of nodes to return.
            filters: MetadataFilters or a `Where`.
            node_ids: Search only these nodes.
            doc_ids: Search only the nodes of these documents.
            plan: Search plan; default that of the index.
            object_map: Objects of IndexNodes by `index_id`, in addition to those of the index.
            callback_manager: Default that of the index.
            verbose: Print the retrieved nodes.
            **_: Ignored; `as_query_engine` passes the arguments of the engine here as well.
        """
        restricted = query_to_where(VectorStoreQuery(node_ids=node_ids, doc_ids=doc_ids))
        conditions = [each for each in (to_where(filters), restricted) if each is not None]
        return M3Retriever(
            self.store.index,
            self.encoder,
            similarity_top_k,
            plan or self._plan(),
            all_of(*conditions) if conditions else None,
            callback_manager or self._callback_manager,
            verbose,
            {**self._object_map, **(object_map or {})},
        )

    def _plan(self) -> SearchPlan | None:
        """Return what the store states of the plan of the index; None if it states nothing."""
        weights, candidates = self.store.weights, self.store.candidates
        plan = self.store.index.plan or SearchPlan()
        if candidates != SearchPlan().candidates:
            plan = replace(plan, candidates=candidates)
        if weights is not None:
            plan = replace(plan, weights=weights, modes=None, sparse_score=None, fusion="sum")
        return None if plan == (self.store.index.plan or SearchPlan()) else plan

    def query(self, query_str: str, top_k: int = 10) -> list[NodeWithScore]:
        """Retrieve the `top_k` best nodes, as `BGEM3Index.query` does.

        Args:
            query_str: The question.
            top_k: Number of nodes.

        Returns:
            The nodes with their scores, best first.
        """
        return self.as_retriever(similarity_top_k=top_k).retrieve(query_str)

    def delete_nodes(self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Delete nodes in one call; unknown ids are ignored.

        Args:
            node_ids: Ids of the nodes.
            delete_from_docstore: Delete them from the docstore, too.
            **delete_kwargs: `purge=True` removes the nodes from every file of the store too.
        """
        self.store.delete_nodes(list(node_ids), **delete_kwargs)
        for node_id in node_ids:
            self._index_struct.nodes_dict.pop(node_id, None)
            if delete_from_docstore:
                self.docstore.delete_document(node_id, raise_error=False)
        self._storage_context.index_store.add_index_struct(self._index_struct)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Async form of `insert_nodes`.

        Args:
            nodes: Nodes to add.
            **insert_kwargs: Passed on to `insert_nodes`.
        """
        await to_thread(self.insert_nodes, nodes, **insert_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        await to_thread(self.delete_nodes, node_ids, delete_from_docstore, **delete_kwargs)

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> IndexDict:
        struct = IndexDict()
        self._add_nodes(struct, nodes, **build_kwargs)
        return struct

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        self._add_nodes(self._index_struct, nodes, **insert_kwargs)

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        self.delete_nodes([node_id], **delete_kwargs)

    def _add_nodes(self, struct: IndexDict, nodes: Sequence[BaseNode], **settings: Any) -> None:
        if settings:
            raise TypeError(f"M3Index takes no {', '.join(sorted(settings))}; leave it out")
        for start in range(0, len(nodes), _BATCH_SIZE):
            batch = nodes[start : start + _BATCH_SIZE]
            embeddings = embed_nodes(batch, self._embed_model, show_progress=self._show_progress)
            self.store.add([node.model_copy(update={"embedding": embeddings[node.node_id]}) for node in batch])
            for node in batch:
                struct.add_node(node)


def normalize_weights(weights: ModeWeights | None) -> dict[Mode, float] | None:
    """Convert weights to a mapping mode -> weight.

    Args:
        weights: A mapping, returned unchanged, or the weights of the dense, sparse and multi-vector scores, which are
            divided by their sum as in BGEM3Index.

    Raises:
        ValueError: If there are not three weights, or not at least one positive one.
    """
    if weights is None or isinstance(weights, Mapping):
        return None if weights is None else dict(weights)
    if len(weights) != len(MODES):
        raise ValueError(f"weights_for_different_modes must be {len(MODES)} numbers, for {list(MODES)}; got {weights}")
    plan = SearchPlan(weights=dict(zip(MODES, weights, strict=True)))
    return {mode: weight / sum(weights) for mode, weight in (plan.weights or {}).items()}


def _resolve_store(context: StorageContext, **settings: Any) -> M3VectorStore:
    """Return the M3VectorStore of a context; it replaces an empty SimpleVectorStore."""
    store, given = context.vector_store, _given(**settings)
    if isinstance(store, M3VectorStore):
        if given:
            raise ValueError(
                f"the M3VectorStore of the storage context has its own {sorted(given)}; set them in M3VectorStore(...)"
            )
        return store
    if not isinstance(store, SimpleVectorStore) or store.data.embedding_dict:
        raise ValueError(
            f"M3Index needs an M3VectorStore, but the storage context has a {type(store).__name__}; write "
            "StorageContext.from_defaults(vector_store=M3VectorStore(...)), or pass no storage context"
        )
    store = M3VectorStore(**given)
    context.add_vector_store(store, DEFAULT_VECTOR_STORE)
    return store


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _find_struct(context: StorageContext, index_name: str) -> IndexDict:
    structs = [each for each in context.index_store.index_structs() if isinstance(each, IndexDict)]
    found = [each for each in structs if each.index_id == index_name] if index_name else structs
    if len(found) == 1:
        return found[0]
    raise IndexFolderError(
        f"the folder has {len(found)} indexes for index_name={index_name!r}; pass index_name, one of "
        f"{[each.index_id for each in structs]}"
    )


def _read_other_index(
    folder: str, model_name: str | None, encoder: Encoder | None
) -> tuple[list[BaseNode], BaseDocumentStore]:
    """Read the nodes of another class's index from its JSON."""
    if not (Path(folder) / DOCSTORE_FNAME).exists():
        raise IndexFolderError(f"{folder} holds no index; pass the folder that persist() wrote")
    if model_name is None and encoder is None:
        raise IndexFolderError(
            f"{folder} was not written by M3Index and does not record its model; pass model_name='BAAI/bge-m3', the "
            "default of BGEM3Index, or another"
        )
    context = StorageContext.from_defaults(persist_dir=folder)
    nodes = context.docstore.get_nodes(list(_find_struct(context, "").nodes_dict.values()))
    warnings.warn(
        f"{folder} was written by another class: its {len(nodes)} texts are encoded again; call persist() to save the "
        "result",
        M3Warning,
        stacklevel=3,
    )
    return nodes, context.docstore


def _check_max_lengths(doc_maxlen: int | None, query_maxlen: int | None) -> None:
    if query_maxlen is not None and (doc_maxlen is None or query_maxlen < doc_maxlen):
        raise ValueError(
            f"queries and passages are read to the same length, got query_maxlen={query_maxlen} and "
            f"doc_maxlen={doc_maxlen}; leave query_maxlen out"
        )


def _check_checkpoint(encoder: Encoder, pooling: str | None, normalize: bool) -> None:
    """Raise ValueError if pooling or normalization differ from the checkpoint's."""
    if not isinstance(encoder, M3Encoder):
        return
    config = encoder.conventions
    if pooling is not None and pooling != config.pooling:
        raise ValueError(f"{encoder.name!r} pools by {config.pooling!r}, not {pooling!r}; leave pooling_method out")
    if normalize != config.normalise:
        raise ValueError(f"{encoder.name!r} has normalize_embeddings={config.normalise}; leave it out")

"""M3Index: documents in, questions answered by all three modes, as a LlamaIndex index of its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.utils import embed_nodes
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.storage.docstore.types import DEFAULT_PERSIST_FNAME as DOCSTORE_FNAME
from llama_index.core.storage.docstore.types import BaseDocumentStore, RefDocInfo
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, SimpleVectorStore
from llama_index.core.vector_stores.types import DEFAULT_PERSIST_FNAME, MetadataFilters, VectorStoreQuery

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.core.encoder import Encoder, M3Encoder
from m3_integrations.core.errors import IndexFolderError, M3Warning
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.threads import on_thread
from m3_integrations.index.base import Index
from m3_integrations.index.where import Where, all_of
from m3_integrations.llama_index.convert import where_of
from m3_integrations.llama_index.embedding import M3Embedding
from m3_integrations.llama_index.persisting import is_ours
from m3_integrations.llama_index.query_modes import where_of_query
from m3_integrations.llama_index.retriever import M3Retriever
from m3_integrations.llama_index.vector_store import M3VectorStore

ModeWeights: TypeAlias = Sequence[float] | Mapping[Mode, float]
_AT_ONCE = 256


class M3Index(BaseIndex[IndexDict]):
    """An index of nodes in an M3VectorStore, with the constructor of BGEM3Index, which it takes the place of.

    model_name: m3-mini where none is said; BGEM3Index's own was "BAAI/bge-m3". encoder: one that is loaded already.
    index: where the vectors are kept, a LocalIndex for instance; None is memory. A storage context that has an
    M3VectorStore brings model and index with it.
    weights_for_different_modes: dense, sparse and multi-vector as BGEM3Index takes them, divided by their sum, or
    mode -> weight as they are; None takes the model's own. candidates: what each mode puts forward.
    doc_maxlen: the tokens read of a text, question or passage; query_maxlen may not be lower. use_fp16: float16.
    pooling_method and normalize_embeddings are the checkpoint's and may not differ from it; batch_size has no effect
    on what comes out, and what a pass holds is bounded in tokens.
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
        _require_one_length(doc_maxlen, query_maxlen)
        context = storage_context or StorageContext.from_defaults()
        self.store = _store_in(
            context,
            model_name=model_name,
            encoder=encoder,
            index=index,
            dtype="float16" if use_fp16 else None,
            max_length=doc_maxlen,
            weights=weights_of(weights_for_different_modes),
            candidates=candidates,
        )
        _require_reading(self.store.encoder, pooling_method, normalize_embeddings)
        self._embed_model = M3Embedding(
            self.store.model_name,
            encoder=self.store.encoder,
            callback_manager=callback_manager or Settings.callback_manager,
        )
        super().__init__(
            nodes=None if nodes is None else list(nodes),
            objects=None if objects is None else list(objects),
            index_struct=index_struct,
            storage_context=context,
            show_progress=show_progress,
            callback_manager=callback_manager,
            transformations=transformations,
            **build_settings,
        )
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
        """What `persist` wrote, with all its settings but those given here. Nothing is unpickled.

        index: needed where the vectors are on a server. Of a folder that BGEM3Index wrote, the JSON is read, and the
        texts are encoded once more: name the model, which such a folder does not; `persist` then writes it as ours.
        Raises WrongEncoder where another model filled it, IndexFolderError where it is no index.
        """
        weights = weights_of(weights_for_different_modes)
        if not is_ours(f"{persist_dir}/default__{DEFAULT_PERSIST_FNAME}"):
            nodes, docstore = _nodes_of_another(persist_dir, model_name, encoder)
            context = StorageContext.from_defaults(docstore=docstore)
            return cls(
                nodes,
                storage_context=context,
                model_name=model_name,
                index_name=index_name,
                weights_for_different_modes=weights,
                encoder=encoder,
                index=index,
            )
        changed = _given(model_name=model_name, weights=weights)
        store = M3VectorStore.from_persist_dir(persist_dir, encoder=encoder, index=index, **changed)
        context = StorageContext.from_defaults(persist_dir=persist_dir, vector_store=store)
        return cls(index_struct=_struct_of(context, index_name), storage_context=context)

    def persist(self, persist_dir: str) -> None:
        """Write what `load_from_disk` reads; other files in the folder stay."""
        self._storage_context.persist(persist_dir=persist_dir)

    @property
    def index_name(self) -> str:
        """The name among the indices of a storage context."""
        return self.index_id

    @property
    def encoder(self) -> Encoder:
        """The model behind it, in all its modes."""
        return self.store.encoder

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The documents whose nodes are here, by their ids."""
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
        """A retriever by all three modes, or as the plan says; filters, nodes and documents bound what it finds.

        What an engine is given besides, and LlamaIndex passes here as well, is passed over.
        """
        asked = VectorStoreQuery(node_ids=node_ids, doc_ids=doc_ids)
        bounds = [each for each in (where_of(filters), where_of_query(asked)) if each is not None]
        return M3Retriever(
            self.store.index,
            self.encoder,
            similarity_top_k,
            plan or SearchPlan(candidates=self.store.candidates, weights=self.store.weights),
            all_of(*bounds) if bounds else None,
            callback_manager or self._callback_manager,
            verbose,
            {**self._object_map, **(object_map or {})},
        )

    def query(self, query_str: str, top_k: int = 10) -> list[NodeWithScore]:
        """The best nodes for a question, as BGEM3Index answers it."""
        return self.as_retriever(similarity_top_k=top_k).retrieve(query_str)

    def delete_nodes(self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Forget nodes, all at once; ids that are not there are passed over."""
        self.store.delete_nodes(list(node_ids), **delete_kwargs)
        for node_id in node_ids:
            self._index_struct.nodes_dict.pop(node_id, None)
            if delete_from_docstore:
                self.docstore.delete_document(node_id, raise_error=False)
        self._storage_context.index_store.add_index_struct(self._index_struct)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        await on_thread(self.insert_nodes, nodes, **insert_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        await on_thread(self.delete_nodes, node_ids, delete_from_docstore, **delete_kwargs)

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> IndexDict:
        struct = IndexDict()
        self._keep(struct, nodes, **build_kwargs)
        return struct

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        self._keep(self._index_struct, nodes, **insert_kwargs)

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        self.delete_nodes([node_id], **delete_kwargs)

    def _keep(self, struct: IndexDict, nodes: Sequence[BaseNode], **settings: Any) -> None:
        if settings:
            raise TypeError(f"M3Index takes no {', '.join(sorted(settings))}; leave it out")
        for start in range(0, len(nodes), _AT_ONCE):
            some = nodes[start : start + _AT_ONCE]
            embeddings = embed_nodes(some, self._embed_model, show_progress=self._show_progress)
            self.store.add([node.model_copy(update={"embedding": embeddings[node.node_id]}) for node in some])
            for node in some:
                struct.add_node(node)


def weights_of(weights: ModeWeights | None) -> dict[Mode, float] | None:
    """Mode -> weight: a mapping as it is, BGEM3Index's three numbers divided by their sum, as it divides the score."""
    if weights is None or isinstance(weights, Mapping):
        return None if weights is None else dict(weights)
    if len(weights) != len(MODES):
        raise ValueError(f"weights_for_different_modes are {len(MODES)}, one for each of {list(MODES)}, got {weights}")
    plan = SearchPlan(weights=dict(zip(MODES, weights, strict=True)))
    return {mode: weight / sum(weights) for mode, weight in (plan.weights or {}).items()}


def _store_in(context: StorageContext, **settings: Any) -> M3VectorStore:
    """The context's M3VectorStore; one of these settings in place of the empty SimpleVectorStore of a new context."""
    kept, given = context.vector_store, _given(**settings)
    if isinstance(kept, M3VectorStore):
        if given:
            raise ValueError(
                f"the storage context's M3VectorStore was made with its own {sorted(given)}; set them there"
            )
        return kept
    if not isinstance(kept, SimpleVectorStore) or kept.data.embedding_dict:
        raise ValueError(
            f"M3Index keeps its vectors in an M3VectorStore, and the storage context has a {type(kept).__name__}; "
            "write StorageContext.from_defaults(vector_store=M3VectorStore(...)), or give no storage context"
        )
    store = M3VectorStore(**given)
    context.add_vector_store(store, DEFAULT_VECTOR_STORE)
    return store


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _struct_of(context: StorageContext, index_name: str) -> IndexDict:
    structs = [each for each in context.index_store.index_structs() if isinstance(each, IndexDict)]
    named = [each for each in structs if each.index_id == index_name]
    found = named if index_name else structs
    if len(found) == 1:
        return found[0]
    raise IndexFolderError(
        f"no one index {index_name!r} is in that folder; pass index_name, of {[each.index_id for each in structs]}"
    )


def _nodes_of_another(
    folder: str, model_name: str | None, encoder: Encoder | None
) -> tuple[list[BaseNode], BaseDocumentStore]:
    """The nodes of an index that another class wrote, from its JSON."""
    if not (Path(folder) / DOCSTORE_FNAME).exists():
        raise IndexFolderError(f"{folder} holds no index; name the folder that persist() wrote")
    if model_name is None and encoder is None:
        raise IndexFolderError(
            f"{folder} was not written by M3Index and does not say which model to read it with; pass "
            "model_name='BAAI/bge-m3', which was BGEM3Index's own, or another"
        )
    written = StorageContext.from_defaults(persist_dir=folder)
    nodes = written.docstore.get_nodes(list(_struct_of(written, "").nodes_dict.values()))
    warnings.warn(
        f"{folder} was written by another class: its {len(nodes)} texts are encoded once more; call persist() to keep "
        "what comes out",
        M3Warning,
        stacklevel=3,
    )
    return nodes, written.docstore


def _require_one_length(doc_maxlen: int | None, query_maxlen: int | None) -> None:
    if query_maxlen is not None and (doc_maxlen is None or query_maxlen < doc_maxlen):
        raise ValueError(
            f"questions are read to the length of passages, got query_maxlen={query_maxlen} and "
            f"doc_maxlen={doc_maxlen}; leave query_maxlen out"
        )


def _require_reading(encoder: Encoder, pooling: str | None, normalise: bool) -> None:
    """Raises ValueError where vectors are to be made otherwise than the checkpoint states."""
    if not isinstance(encoder, M3Encoder):
        return
    stated = encoder.conventions
    if pooling is not None and pooling != stated.pooling:
        raise ValueError(f"{encoder.name!r} pools by {stated.pooling!r}, not {pooling!r}; leave pooling_method out")
    if normalise != stated.normalise:
        raise ValueError(f"{encoder.name!r} has normalize_embeddings={stated.normalise}; leave it out")

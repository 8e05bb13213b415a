"""M3Retriever: hybrid retrieval over any of our indexes as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from m3_integrations.core.encoded import Encoded
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.sharing import EncoderOptions
from m3_integrations.core.threads import on_thread
from m3_integrations.index.base import Index, Where
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.llama_index import events
from m3_integrations.llama_index.convert import nodes_of, passage_of, where_of
from m3_integrations.llama_index.settings import require_filler
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Retriever


class M3Retriever(BaseRetriever):
    """Nodes by dense, lexical and late-interaction score, as the plan weighs them.

    encoder: the one that filled the index, else WrongEncoder is raised; None is m3-mini. filters: MetadataFilters,
    nested as you like, or a Where. A QueryBundle's own `embedding` takes the place of the dense vector; several
    `custom_embedding_strs` ask as one. Questions that are awaited at the same time share a pass.
    object_map: what IndexNodes point at, by their index_id; `from_nodes` gathers it.
    """

    def __init__(
        self,
        index: Index,
        encoder: Encoder | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        plan: SearchPlan | None = None,
        filters: MetadataFilters | Where | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
        object_map: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager, object_map=object_map, verbose=verbose)
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.retriever = Retriever(encoder or EncoderOptions().load(), index, plan)
        require_filler(index, self.retriever.encoder)

    @classmethod
    def from_nodes(
        cls,
        nodes: Sequence[BaseNode],
        encoder: Encoder | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        plan: SearchPlan | None = None,
        filters: MetadataFilters | Where | None = None,
        show_progress: bool = False,
    ) -> M3Retriever:
        """Encode nodes into an index in memory, and retrieve from it."""
        encoder, index = encoder or EncoderOptions().load(), MemoryIndex()
        ingest(encoder, index, map(passage_of, nodes), show_progress=show_progress)
        objects = {node.index_id: node.obj for node in nodes if isinstance(node, IndexNode) and node.obj is not None}
        return cls(index, encoder, similarity_top_k, plan, filters, object_map=objects)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        encoder: Encoder | None = None,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        plan: SearchPlan | None = None,
        filters: MetadataFilters | Where | None = None,
    ) -> M3Retriever:
        """Retrieve from a LocalIndex folder. Raises WrongEncoder where another encoder filled it."""
        encoder = encoder or EncoderOptions().load()
        return cls(LocalIndex.open(folder, encoder), encoder, similarity_top_k, plan, filters)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        texts = _phrasings(query_bundle)
        with events.embedding(self.callback_manager, self._model(), texts) as done:
            encoded = self.retriever.encode(texts)
            done(encoded)
        return self._search(_merged(query_bundle, encoded))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        texts = _phrasings(query_bundle)
        with events.embedding(self.callback_manager, self._model(), texts) as done:
            first, *others = await asyncio.gather(*map(self.retriever.aencode, texts))
            encoded = first.join(*others)
            done(encoded)
        return await on_thread(self._search, _merged(query_bundle, encoded))

    def _search(self, query: Encoded) -> list[NodeWithScore]:
        matches = self.retriever.retrieve_encoded(query, self.similarity_top_k, where_of(self.filters))
        return nodes_of(matches[0])

    def _model(self) -> dict[str, str]:
        """What events say of the model."""
        return {"class_name": type(self).__name__, "model_name": repr(self.retriever.encoder)}


def _phrasings(bundle: QueryBundle) -> list[str]:
    return bundle.embedding_strs or [bundle.query_str]


def _merged(bundle: QueryBundle, phrasings: Encoded) -> Encoded:
    """The phrasings as one question, with the bundle's own embedding in place of the dense vector."""
    merged, given = phrasings.merged(), bundle.embedding
    return merged if given is None or "dense" not in merged.modes else merged.with_dense([given])

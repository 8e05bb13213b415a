"""M3Retriever: hybrid retrieval over an index as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # not in __all__
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from m3_integrations.adapters.encoder_registry import check_index_encoder, get_encoder
from m3_integrations.core.concurrency import to_thread
from m3_integrations.core.encoded import Encoded
from m3_integrations.core.types import SearchPlan
from m3_integrations.encoders.base import Encoder, has_content
from m3_integrations.index.base import Index
from m3_integrations.index.filters import Where
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.llama_index.convert import to_nodes, to_passage, to_where
from m3_integrations.llama_index.query_modes import check_top_k
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Retriever

dispatcher = get_dispatcher(__name__)


class M3Retriever(BaseRetriever):
    """Retriever of nodes by a weighted sum of dense, sparse and multi-vector scores.

    A QueryBundle's `embedding` replaces the dense vector of the query. Several `custom_embedding_strs` are searched as
    one query. Concurrent async queries are micro-batched into one forward pass. If the index is calibrated
    (`m3 calibrate`, `calibrate_plan`), scores are probabilities of relevance, so that
    `SimilarityPostprocessor(similarity_cutoff=0.5)` can leave nothing.

    Args:
        index: The index to search.
        encoder: The encoder whose vectors the index holds; default m3-mini.
        similarity_top_k: Number of nodes to return.
        plan: Search plan; default that of the index.
        filters: MetadataFilters, possibly nested, or a `Where`.
        callback_manager: Receives the retrieval and embedding events.
        verbose: Print the retrieved nodes.
        object_map: Objects of IndexNodes by `index_id`; `from_nodes` collects them.

    Raises:
        WrongEncoder: If another encoder filled the index.
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
        self.retriever = Retriever(encoder or get_encoder(), index, plan)
        check_index_encoder(index, self.retriever.encoder)

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
        """Encode nodes into a MemoryIndex.

        Args:
            nodes: Nodes to encode and retrieve from.
            encoder: See the class.
            similarity_top_k: See the class.
            plan: See the class.
            filters: See the class.
            show_progress: Show a progress bar while encoding.

        Returns:
            The retriever.
        """
        encoder, index = encoder or get_encoder(), MemoryIndex()
        ingest(encoder, index, map(to_passage, nodes), show_progress=show_progress)
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
        """Retrieve from the folder of a LocalIndex.

        Args:
            folder: Folder of the index.
            encoder: See the class.
            similarity_top_k: See the class.
            plan: See the class.
            filters: See the class.

        Returns:
            The retriever.

        Raises:
            WrongEncoder: If another encoder filled the folder.
        """
        encoder = encoder or get_encoder()
        return cls(LocalIndex.open(folder, encoder), encoder, similarity_top_k, plan, filters)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        check_top_k("similarity_top_k", self.similarity_top_k)
        texts = self._texts_with_content(query_bundle)
        if not texts:
            return []
        with self._embedding_events(texts) as on_end:
            encoded = self.retriever.encode(texts)
            on_end(encoded)
        return self._search(_merge(query_bundle, encoded))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        check_top_k("similarity_top_k", self.similarity_top_k)
        texts = await to_thread(self._texts_with_content, query_bundle)
        if not texts:
            return []
        with self._embedding_events(texts) as on_end:
            first, *others = await asyncio.gather(*map(self.retriever.aencode, texts))
            encoded = first.join(*others)
            on_end(encoded)
        return await to_thread(self._search, _merge(query_bundle, encoded))

    def _texts_with_content(self, query_bundle: QueryBundle) -> list[str]:
        """Return the texts to embed, without those that have no content unless there is an embedding."""
        texts = _embedding_strs(query_bundle)
        if query_bundle.embedding is not None:
            return texts
        encoder = self.retriever.encoder
        return [text for text, full in zip(texts, has_content(encoder, texts), strict=True) if full]

    def _search(self, query: Encoded) -> list[NodeWithScore]:
        (matches,) = self.retriever.retrieve_encoded(query, self.similarity_top_k, to_where(self.filters))
        return to_nodes(matches, self.retriever.calibration)

    @contextmanager
    def _embedding_events(self, texts: list[str]) -> Iterator[Callable[[Encoded], None]]:
        """Emit the start event of LlamaIndex, and yield a function to emit the end event."""
        model = {"class_name": type(self).__name__, "model_name": repr(self.retriever.encoder)}
        dispatcher.event(EmbeddingStartEvent(model_dict=model))
        with self.callback_manager.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: model}) as event:

            def on_end(encoded: Encoded) -> None:
                embeddings = encoded.dense.tolist() if "dense" in encoded.modes else []
                event.on_end(payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: embeddings})
                dispatcher.event(EmbeddingEndEvent(chunks=texts, embeddings=embeddings))

            yield on_end


def _embedding_strs(bundle: QueryBundle) -> list[str]:
    return list(bundle.embedding_strs or [bundle.query_str])


def _merge(bundle: QueryBundle, encoded: Encoded) -> Encoded:
    """Merge the encoded texts of a query; the bundle's embedding is its dense vector."""
    merged, given = encoded.merge_queries(), bundle.embedding
    return merged if given is None or "dense" not in merged.modes else merged.with_dense([given])

"""M3SparseEmbedding: the lexical mode as token weights, for any store that takes sparse vectors."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.errors import MissingExtra
from m3_integrations.core.microbatch import gathered
from m3_integrations.core.threads import on_thread
from m3_integrations.llama_index.settings import EncoderSettings

_SPARSE: tuple[Mode, ...] = ("sparse",)


class M3SparseEmbedding(EncoderSettings, BaseSparseEmbedding):  # type: ignore[misc]  # two serializers, one meaning
    """Token weights as {token id: weight} of "m3-mini", of a local folder, or of a hub id such as "BAAI/bge-m3".

    The score of two texts is the inner product of their weights; `similarity`, which is LlamaIndex's, takes the cosine.
    LlamaIndex's Qdrant store takes `sparse_doc_fn=sparse.sparse_doc_fn, sparse_query_fn=sparse.sparse_query_fn`, its
    Milvus store `sparse_embedding_function=sparse.for_milvus()`. Raises MissingMode where the model has no such head.
    What travels in a copy, and what does not: see EncoderSettings.
    """

    model_config = ConfigDict(extra="forbid")

    embed_batch_size: int = Field(
        default=256, gt=0, le=2048, description="Texts a call; what a forward pass holds is bounded by batch_tokens."
    )

    def __init__(self, model_name: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        super().__init__(model_name, encoder=encoder, **settings)

    @classmethod
    def class_name(cls) -> str:
        return "M3SparseEmbedding"

    def sparse_doc_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and weights of each text to be found, as LlamaIndex's Qdrant store takes them."""
        return _columns(self._get_text_embeddings(texts))

    def sparse_query_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and weights of each question, likewise."""
        return _columns(self._get_query_embeddings(texts))

    def for_milvus(self) -> Any:
        """This embedding as the `BaseSparseEmbeddingFunction` of LlamaIndex's Milvus store."""
        try:
            milvus = import_module("llama_index.vector_stores.milvus.utils")
        except ModuleNotFoundError as error:
            raise MissingExtra(
                "LlamaIndex's Milvus store is not installed; run: pip install llama-index-vector-stores-milvus"
            ) from error
        return _milvus_function(milvus.BaseSparseEmbeddingFunction)(self)

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        return self._get_query_embeddings([query])[0]

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    def _get_query_embeddings(self, queries: list[str]) -> list[SparseEmbedding]:
        return _weights(self.encoder.encode_queries(queries, modes=_SPARSE))

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return _weights(self.encoder.encode_passages(texts, modes=_SPARSE))

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        return await gathered(self._get_query_embeddings, query)

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return await on_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return await on_thread(self._get_text_embeddings, texts)


def _weights(encoded: Encoded) -> list[SparseEmbedding]:
    rows = encoded.sparse
    indices, weights = rows.indices.tolist(), rows.data.tolist()
    return [
        dict(zip(indices[begin:end], weights[begin:end], strict=True)) for begin, end in pairwise(rows.indptr.tolist())
    ]


def _columns(embeddings: list[SparseEmbedding]) -> tuple[list[list[int]], list[list[float]]]:
    return [list(each) for each in embeddings], [list(each.values()) for each in embeddings]


def _milvus_function(base: Any) -> Any:
    class M3MilvusFunction(base):  # type: ignore[misc]  # Milvus' store asks for its own class, which may not be here
        def __init__(self, embedding: M3SparseEmbedding) -> None:
            self.embedding = embedding

        def encode_queries(self, queries: list[str]) -> list[SparseEmbedding]:
            return self.embedding._get_query_embeddings(queries)

        def encode_documents(self, documents: list[str]) -> list[SparseEmbedding]:
            return self.embedding._get_text_embeddings(documents)

        async def async_encode_queries(self, queries: list[str]) -> list[SparseEmbedding]:
            return await on_thread(self.encode_queries, queries)

        async def async_encode_documents(self, documents: list[str]) -> list[SparseEmbedding]:
            return await on_thread(self.encode_documents, documents)

    return M3MilvusFunction

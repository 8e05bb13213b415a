"""M3Embedding and M3SparseEmbedding: the dense and the sparse mode as LlamaIndex embedding models."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.node_parser import SentenceSplitter

from m3_integrations.adapters.embedding_cache import dense_of_passages, dense_of_queries
from m3_integrations.adapters.text_length import count_tokens, resolve_chunk_size
from m3_integrations.core.concurrency import micro_batched, to_thread
from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.errors import MissingExtra
from m3_integrations.encoders.base import Encoder
from m3_integrations.llama_index.settings import LlamaIndexEncoderSettings


class M3Embedding(LlamaIndexEncoderSettings, BaseEmbedding):
    """Dense embeddings of "m3-mini" (bundled, offline), a local folder, or a hub id such as "BAAI/bge-m3".

    Options are those of `M3Encoder.from_pretrained`. `encoder` is the encoder behind the embeddings, for hybrid
    retrieval with the same weights. While an M3VectorStore with the same model exists, the forward pass of an embedding
    computes the store's other modes as well. Concurrent async queries are micro-batched, waiting at most 2 ms. Copies
    hold the options, not the weights: see `EncoderSettings`.
    """

    model_config = ConfigDict(extra="forbid")

    embed_batch_size: int = Field(
        default=256, gt=0, le=2048, description="Texts per call; batch_tokens bounds a forward pass."
    )

    def __init__(self, model_name: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        super().__init__(model_name, encoder=encoder, **settings)

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex serializes the component."""
        return "M3Embedding"

    def node_parser(
        self, chunk_size: int | None = None, chunk_overlap: int | None = None, **kwargs: Any
    ) -> SentenceSplitter:
        """Return a node parser that counts in tokens of this model, so that no node is truncated.

        Args:
            chunk_size: Most tokens of a node with its metadata; default the most that the model reads.
            chunk_overlap: Tokens shared by consecutive nodes; default a tenth of `chunk_size`.
            **kwargs: Other arguments of SentenceSplitter, such as `paragraph_separator`.

        Raises:
            ValueError: If the model would truncate nodes of `chunk_size` tokens.
        """
        size = resolve_chunk_size(self.encoder, chunk_size)
        overlap = size // 10 if chunk_overlap is None else chunk_overlap
        return SentenceSplitter(chunk_size=size, chunk_overlap=overlap, tokenizer=self._tokens_of, **kwargs)

    def _tokens_of(self, text: str) -> list[int]:
        return list(range(count_tokens(self.encoder, text)))

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._get_query_embeddings([query])[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_query_embeddings(self, queries: list[str]) -> list[Embedding]:
        embeddings: list[Embedding] = dense_of_queries(self.encoder, queries).tolist()
        return embeddings

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        embeddings: list[Embedding] = dense_of_passages(self.encoder, texts).tolist()
        return embeddings

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await micro_batched(self._get_query_embeddings, query)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await to_thread(self._get_text_embeddings, texts)


_SPARSE: tuple[Mode, ...] = ("sparse",)


class M3SparseEmbedding(LlamaIndexEncoderSettings, BaseSparseEmbedding):  # type: ignore[misc]  # two serializers that agree
    """Sparse embeddings as {token id: weight}, of "m3-mini", a local folder, or a hub id such as "BAAI/bge-m3".

    The score of two texts is the inner product of their weights; LlamaIndex's `similarity` is the cosine.
    LlamaIndex's Qdrant store takes `sparse_doc_fn=sparse.sparse_doc_fn, sparse_query_fn=sparse.sparse_query_fn`, its
    Milvus store `sparse_embedding_function=sparse.for_milvus()`. Copies hold the options, not the weights: see
    `EncoderSettings`.

    Raises:
        MissingMode: On first use, if the model has no sparse head.
    """

    model_config = ConfigDict(extra="forbid")

    embed_batch_size: int = Field(
        default=256, gt=0, le=2048, description="Texts per call; batch_tokens bounds a forward pass."
    )

    def __init__(self, model_name: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        super().__init__(model_name, encoder=encoder, **settings)

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex serializes the component."""
        return "M3SparseEmbedding"

    def sparse_doc_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Return the token ids and the weights of each passage, as LlamaIndex's Qdrant store takes them.

        Args:
            texts: Passages.
        """
        return _columns(self._get_text_embeddings(texts))

    def sparse_query_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Return the token ids and the weights of each query.

        Args:
            texts: Queries.
        """
        return _columns(self._get_query_embeddings(texts))

    def for_milvus(self) -> Any:
        """Return this embedding as the `BaseSparseEmbeddingFunction` of LlamaIndex's Milvus store.

        Raises:
            MissingExtra: If LlamaIndex's Milvus store is not installed.
        """
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
        return await micro_batched(self._get_query_embeddings, query)

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return await to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return await to_thread(self._get_text_embeddings, texts)


def _weights(encoded: Encoded) -> list[SparseEmbedding]:
    rows = encoded.sparse
    indices, weights = rows.indices.tolist(), rows.data.tolist()
    return [
        dict(zip(indices[begin:end], weights[begin:end], strict=True)) for begin, end in pairwise(rows.indptr.tolist())
    ]


def _columns(embeddings: list[SparseEmbedding]) -> tuple[list[list[int]], list[list[float]]]:
    return [list(each) for each in embeddings], [list(each.values()) for each in embeddings]


def _milvus_function(base: Any) -> Any:
    class M3MilvusFunction(base):  # type: ignore[misc]  # Milvus' store asks for its own class, which is optional
        def __init__(self, embedding: M3SparseEmbedding) -> None:
            self.embedding = embedding

        def encode_queries(self, queries: list[str]) -> list[SparseEmbedding]:
            return self.embedding._get_query_embeddings(queries)

        def encode_documents(self, documents: list[str]) -> list[SparseEmbedding]:
            return self.embedding._get_text_embeddings(documents)

        async def async_encode_queries(self, queries: list[str]) -> list[SparseEmbedding]:
            return await to_thread(self.encode_queries, queries)

        async def async_encode_documents(self, documents: list[str]) -> list[SparseEmbedding]:
            return await to_thread(self.encode_documents, documents)

    return M3MilvusFunction

"""M3Embedding: the dense mode as a LlamaIndex embedding model."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field

from m3_integrations.core.encoder import Encoder
from m3_integrations.core.microbatch import gathered
from m3_integrations.core.recent import dense_of_passages, dense_of_queries
from m3_integrations.core.threads import on_thread
from m3_integrations.llama_index.settings import EncoderSettings


class M3Embedding(EncoderSettings, BaseEmbedding):
    """Dense vectors of "m3-mini" (embedded, offline), of a local folder, or of a hub id such as "BAAI/bge-m3".

    `encoder` gives the model behind it, for hybrid retrieval over the same weights. While an M3VectorStore over the
    same model is alive, the forward pass that makes an embedding makes what the store keeps besides, too. Questions
    that are awaited at the same time share a pass: one waits at most 2 ms for others. What travels in a copy, and what
    does not: see EncoderSettings.
    """

    model_config = ConfigDict(extra="forbid")

    embed_batch_size: int = Field(
        default=256, gt=0, le=2048, description="Texts a call; what a forward pass holds is bounded by batch_tokens."
    )

    def __init__(self, model_name: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        super().__init__(model_name, encoder=encoder, **settings)

    @classmethod
    def class_name(cls) -> str:
        return "M3Embedding"

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
        return await gathered(self._get_query_embeddings, query)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await on_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await on_thread(self._get_text_embeddings, texts)

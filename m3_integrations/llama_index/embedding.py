"""M3Embedding: the dense mode as a LlamaIndex embedding model."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr

from m3_integrations.core.encoded import DENSE
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.sharing import EncoderOptions, name_of
from m3_integrations.core.threads import on_thread


class M3Embedding(BaseEmbedding):
    """Dense vectors of "m3-mini" (embedded, offline), of a local folder, or of a hub id such as "BAAI/bge-m3".

    The model is read when it is first needed; embeddings with equal options share it, and copies that are pickled or
    made `from_dict` read it anew. `encoder` gives it, for hybrid retrieval over the same weights. An encoder that is
    passed in is used as it is and does not travel: copies read what `model_name` says, and without one they raise
    CheckpointError.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(default="m3-mini", description="m3-mini, a local folder, or a hub id.")
    embed_batch_size: int = Field(
        default=256, gt=0, le=2048, description="Texts a call; what a forward pass holds is bounded by batch_tokens."
    )
    device: str | None = Field(default=None, description="cuda, mps or cpu; None takes the best there is.")
    dtype: str | None = Field(default=None, description="float32, bfloat16 or float16; None is float32.")
    max_length: int | None = Field(default=None, description="Tokens read of a text; None is all the model reads.")
    batch_tokens: int | None = Field(default=None, description="Padded tokens in a forward pass; bounds memory.")
    query_prefix: str | None = Field(default=None, description="None keeps what the checkpoint states.")
    passage_prefix: str | None = Field(default=None, description="None keeps what the checkpoint states.")
    revision: str | None = Field(default=None, description="The revision of a hub id.")
    _encoder: Encoder | None = PrivateAttr(default=None)

    def __init__(self, model_name: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        super().__init__(model_name=model_name or name_of(encoder), **settings)
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        return "M3Embedding"

    @property
    def encoder(self) -> Encoder:
        """The encoder behind this embedding, in all its modes."""
        if self._encoder is None:
            self._encoder = self._options().load()
        return self._encoder

    def _options(self) -> EncoderOptions:
        return EncoderOptions(
            model=self.model_name,
            device=self.device,
            dtype=self.dtype,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            query_prefix=self.query_prefix,
            passage_prefix=self.passage_prefix,
            revision=self.revision,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Weights do not travel: the copy reads them where it wakes up. Other threads go on with those of this one.
        bare = self.model_copy()
        bare._encoder = None
        return super(M3Embedding, bare).__getstate__()

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._get_query_embeddings([query])[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_query_embeddings(self, queries: list[str]) -> list[Embedding]:
        embeddings: list[Embedding] = self.encoder.encode_queries(queries, modes=DENSE).dense.tolist()
        return embeddings

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        embeddings: list[Embedding] = self.encoder.encode_passages(texts, modes=DENSE).dense.tolist()
        return embeddings

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await on_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await on_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await on_thread(self._get_text_embeddings, texts)

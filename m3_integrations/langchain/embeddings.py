"""M3Embeddings: the dense mode as LangChain embeddings."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, PrivateAttr

from m3_integrations.core.encoded import DENSE
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.sharing import EncoderOptions, name_of
from m3_integrations.core.threads import on_thread


class M3Embeddings(BaseModel, Embeddings):
    """Dense vectors of "m3-mini" (embedded, offline), of a local folder, or of a hub id such as "BAAI/bge-m3".

    The model is read when it is first needed, and shared by embeddings with equal options; `encoder` gives it, for
    hybrid retrieval over the same weights. The options are those of `M3Encoder.from_pretrained`. An encoder that is
    passed in does not travel: copies read what `model` says, and without one they raise CheckpointError.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = "m3-mini"
    device: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    batch_tokens: int | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    revision: str | None = None
    _encoder: Encoder | None = PrivateAttr(default=None)

    def __init__(self, model: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        super().__init__(model=model or name_of(encoder), **settings)
        self._encoder = encoder

    @property
    def encoder(self) -> Encoder:
        """The encoder behind these embeddings, in all its modes."""
        if self._encoder is None:
            self._encoder = EncoderOptions(**self.model_dump()).load()
        return self._encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.encoder.encode_passages(texts, modes=DENSE).dense.tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self.encoder.encode_queries([text], modes=DENSE).dense[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await on_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        return await on_thread(self.embed_query, text)

    def __getstate__(self) -> dict[Any, Any]:
        # Weights do not travel: the copy reads them where it wakes up. Other threads go on with those of this one.
        bare = self.model_copy()
        bare._encoder = None
        return super(M3Embeddings, bare).__getstate__()

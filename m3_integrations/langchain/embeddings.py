"""M3Embeddings: the dense mode as LangChain embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.embeddings import Embeddings

from m3_integrations.core.encoded import DENSE
from m3_integrations.core.microbatch import gathered
from m3_integrations.core.threads import on_thread
from m3_integrations.langchain.settings import EncoderSettings


class M3Embeddings(EncoderSettings, Embeddings):
    """Dense vectors of "m3-mini" (embedded, offline), of a local folder, or of a hub id such as "BAAI/bge-m3".

    `encoder` gives the model behind them, for hybrid retrieval over the same weights. Questions that are awaited at
    the same time share a forward pass. What travels in a copy, and what does not: see EncoderSettings.
    """

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.encoder.encode_passages(texts, modes=DENSE).dense.tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self._embed_queries([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await on_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        return await gathered(self._embed_queries, text)

    def _embed_queries(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.encoder.encode_queries(texts, modes=DENSE).dense.tolist()
        return vectors

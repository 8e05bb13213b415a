"""The lexical mode under langchain-milvus's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_milvus.utils.sparse import BaseSparseEmbedding  # type: ignore[import-not-found, unused-ignore]  # optional

if TYPE_CHECKING:
    from m3_integrations.langchain.sparse import M3SparseEmbeddings, SparseRow


class MilvusSparse(BaseSparseEmbedding):  # type: ignore[misc, unused-ignore]  # Any where the package is absent
    """Sparse rows as `Milvus(embedding_function=[...])` takes them, which tells them by their class from dense ones."""

    def __init__(self, sparse: M3SparseEmbeddings) -> None:
        self.sparse = sparse

    def embed_documents(self, texts: list[str]) -> list[SparseRow]:
        return self.sparse.embed_documents(texts)

    def embed_query(self, query: str) -> SparseRow:
        return self.sparse.embed_query(query)

    async def aembed_documents(self, texts: list[str]) -> list[SparseRow]:
        return await self.sparse.aembed_documents(texts)

    async def aembed_query(self, query: str) -> SparseRow:
        return await self.sparse.aembed_query(query)

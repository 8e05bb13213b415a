"""The lexical mode under langchain-qdrant's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_qdrant import SparseEmbeddings, SparseVector  # type: ignore[import-not-found, unused-ignore]  # optional

if TYPE_CHECKING:
    from m3_integrations.langchain.sparse import M3SparseEmbeddings, SparseRow


class QdrantSparse(SparseEmbeddings):  # type: ignore[misc, unused-ignore]  # Any where the package is absent
    """Sparse vectors as `QdrantVectorStore(sparse_embedding=...)` takes them."""

    def __init__(self, sparse: M3SparseEmbeddings) -> None:
        self.sparse = sparse

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        return [_vector(row) for row in self.sparse.embed_documents(texts)]

    def embed_query(self, text: str) -> SparseVector:
        return _vector(self.sparse.embed_query(text))

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        return [_vector(row) for row in await self.sparse.aembed_documents(texts)]

    async def aembed_query(self, text: str) -> SparseVector:
        return _vector(await self.sparse.aembed_query(text))


def _vector(row: SparseRow) -> SparseVector:
    return SparseVector(indices=list(row), values=list(row.values()))

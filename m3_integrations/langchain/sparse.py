"""M3SparseEmbeddings: the lexical mode, for the vector stores that keep sparse vectors beside dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.errors import MissingExtra
from m3_integrations.core.microbatch import gathered
from m3_integrations.core.threads import on_thread
from m3_integrations.langchain.settings import EncoderSettings

if TYPE_CHECKING:
    from m3_integrations.langchain.milvus_sparse import MilvusSparse
    from m3_integrations.langchain.qdrant_sparse import QdrantSparse

_SPARSE: tuple[Mode, ...] = ("sparse",)
SparseRow = dict[int, float]


class M3SparseEmbeddings(EncoderSettings):
    """Lexical weights, token id -> weight, from the model that M3Embeddings reads with.

    LangChain has no interface for sparse vectors; each partner package has one of its own, under the same method
    names and with other answers. `for_qdrant()` is what `QdrantVectorStore(sparse_embedding=...)` takes,
    `for_milvus()` what stands in `Milvus(embedding_function=[M3Embeddings(), ...])`. Compare by inner product.
    """

    def embed_documents(self, texts: list[str]) -> list[SparseRow]:
        return _rows(self.encoder.encode_passages(texts, modes=_SPARSE))

    def embed_query(self, text: str) -> SparseRow:
        return self._embed_queries([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[SparseRow]:
        return await on_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> SparseRow:
        """Questions that are awaited at the same time share a forward pass."""
        return await gathered(self._embed_queries, text)

    def for_qdrant(self) -> QdrantSparse:
        """These embeddings as langchain-qdrant wants them. Raises MissingExtra where it is not installed."""
        _require("langchain-qdrant")
        from m3_integrations.langchain.qdrant_sparse import QdrantSparse

        return QdrantSparse(self)

    def for_milvus(self) -> MilvusSparse:
        """These embeddings as langchain-milvus wants them. Raises MissingExtra where it is not installed."""
        _require("langchain-milvus")
        from m3_integrations.langchain.milvus_sparse import MilvusSparse

        return MilvusSparse(self)

    def _embed_queries(self, texts: Sequence[str]) -> list[SparseRow]:
        return _rows(self.encoder.encode_queries(texts, modes=_SPARSE))


def _rows(encoded: Encoded) -> list[SparseRow]:
    rows = encoded.sparse
    bounds = zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
    return [dict(zip(rows.indices[a:b].tolist(), rows.data[a:b].tolist(), strict=True)) for a, b in bounds]


def _require(partner: str) -> None:
    if find_spec(partner.replace("-", "_")) is None:
        raise MissingExtra(f"{partner!r} is not installed; run: pip install {partner}")

"""M3SparseEmbeddings: the sparse mode, with the interfaces of langchain-qdrant and langchain-milvus."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NoReturn, TypeAlias

from m3_integrations.core.concurrency import micro_batched, to_thread
from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.errors import MissingExtra, WrongSparseFormat
from m3_integrations.langchain.settings import LangChainEncoderSettings

_SPARSE: tuple[Mode, ...] = ("sparse",)
SparseRow: TypeAlias = dict[int, float]


class _Row(SparseRow):
    """A sparse row that refuses to be read as langchain-qdrant's SparseVector."""

    @property
    def indices(self) -> NoReturn:
        raise WrongSparseFormat(
            "langchain-qdrant reads another form of sparse embeddings; write "
            "QdrantVectorStore(sparse_embedding=M3SparseEmbeddings(...).for_qdrant(), ...)"
        )


class M3SparseEmbeddings(LangChainEncoderSettings):
    """Sparse embeddings as {token id: weight}, of the same models as M3Embeddings; compare by inner product.

    LangChain has no interface for sparse embeddings, and each partner package has its own: pass `for_qdrant()` to
    `QdrantVectorStore(sparse_embedding=...)`, and this object or `for_milvus()` to
    `Milvus(embedding_function=[M3Embeddings(), ...])`.
    """

    def model_post_init(self, context: Any, /) -> None:
        """Make these embeddings known to langchain-milvus, once the fields are validated.

        Args:
            context: Context of pydantic's validation.
        """
        super().model_post_init(context)
        _register_for_milvus()

    def embed_documents(self, texts: list[str]) -> list[SparseRow]:
        """Embed passages.

        Args:
            texts: The passages.

        Returns:
            Their weighted tokens.
        """
        _register_for_milvus()  # the package may have been imported since
        return _to_rows(self.encoder.encode_passages(texts, modes=_SPARSE))

    def embed_query(self, text: str) -> SparseRow:
        """Embed a query.

        Args:
            text: The query.

        Returns:
            Its weighted tokens.
        """
        return self._embed_queries([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[SparseRow]:
        return await to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> SparseRow:
        """Embed a query; concurrent calls are micro-batched, waiting at most 2 ms."""
        return await micro_batched(self._embed_queries, text)

    def for_qdrant(self) -> Any:
        """Return these embeddings as a `langchain_qdrant.SparseEmbeddings`.

        Raises:
            MissingExtra: If langchain-qdrant is not installed.
        """
        return _qdrant_class()(self)

    def for_milvus(self) -> Any:
        """Return these embeddings as a `langchain_milvus.utils.sparse.BaseSparseEmbedding`.

        Raises:
            MissingExtra: If langchain-milvus is not installed.
        """
        return _milvus_class()(self)

    def _embed_queries(self, texts: Sequence[str]) -> list[SparseRow]:
        return _to_rows(self.encoder.encode_queries(texts, modes=_SPARSE))


def _register_for_milvus() -> None:
    """Register M3SparseEmbeddings as a sparse embedding of langchain-milvus, if that is imported."""
    milvus = sys.modules.get("langchain_milvus.utils.sparse")
    if milvus is not None:
        milvus.BaseSparseEmbedding.register(M3SparseEmbeddings)


@cache
def _qdrant_class() -> Any:
    qdrant = _import_partner("langchain-qdrant", "langchain_qdrant")

    def to_vector(row: SparseRow) -> Any:
        return qdrant.SparseVector(indices=list(row), values=list(row.values()))

    class QdrantSparse(qdrant.SparseEmbeddings):  # type: ignore[misc, name-defined]  # optional, so unknown to mypy
        def __init__(self, sparse: M3SparseEmbeddings) -> None:
            self.sparse = sparse

        def embed_documents(self, texts: list[str]) -> list[Any]:
            return [to_vector(row) for row in self.sparse.embed_documents(texts)]

        def embed_query(self, text: str) -> Any:
            return to_vector(self.sparse.embed_query(text))

        async def aembed_documents(self, texts: list[str]) -> list[Any]:
            return [to_vector(row) for row in await self.sparse.aembed_documents(texts)]

        async def aembed_query(self, text: str) -> Any:
            return to_vector(await self.sparse.aembed_query(text))

        def __reduce__(self) -> tuple[Any, ...]:
            return M3SparseEmbeddings.for_qdrant, (self.sparse,)

    return QdrantSparse


@cache
def _milvus_class() -> Any:
    milvus = _import_partner("langchain-milvus", "langchain_milvus.utils.sparse")

    class MilvusSparse(milvus.BaseSparseEmbedding):  # type: ignore[misc, name-defined]  # optional, so unknown to mypy
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

        def __reduce__(self) -> tuple[Any, ...]:
            return M3SparseEmbeddings.for_milvus, (self.sparse,)

    return MilvusSparse


def _import_partner(package: str, module: str) -> Any:
    if find_spec(package.replace("-", "_")) is None:
        raise MissingExtra(f"{package!r} is not installed; run: pip install {package}")
    return import_module(module)


def _to_rows(encoded: Encoded) -> list[SparseRow]:
    rows = encoded.sparse
    columns, weights = rows.indices.tolist(), rows.data.tolist()
    return [
        _Row(zip(columns[start:end], weights[start:end], strict=True)) for start, end in pairwise(rows.indptr.tolist())
    ]

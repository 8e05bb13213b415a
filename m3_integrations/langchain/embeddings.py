"""M3Embeddings: the dense mode as LangChain embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings
from pydantic import Field

from m3_integrations.adapters.text_length import count_tokens, resolve_chunk_size
from m3_integrations.core.concurrency import micro_batched, to_thread
from m3_integrations.core.encoded import DENSE
from m3_integrations.core.errors import WrongDimension
from m3_integrations.encoders.base import Encoder
from m3_integrations.langchain.settings import LangChainEncoderSettings

if TYPE_CHECKING:
    from langchain_text_splitters import RecursiveCharacterTextSplitter


class M3Embeddings(LangChainEncoderSettings, Embeddings):
    """Dense embeddings of "m3-mini" (bundled, offline), a local folder, or a hub id such as "BAAI/bge-m3".

    Options are those of `M3Encoder.from_pretrained`. `encoder` is the encoder behind the embeddings, for hybrid
    retrieval with the same weights. Concurrent async queries are micro-batched, waiting at most 2 ms. Copies hold the
    options, not the weights: see `EncoderSettings`.

    Attributes:
        dimensions: Expected number of dimensions. Vectors are not truncated: another number than the model's raises
            WrongDimension at the first use.
    """

    dimensions: int | None = Field(default=None, gt=0)

    @property
    def encoder(self) -> Encoder:
        """The encoder in all its modes, loaded when it is first used.

        Raises:
            WrongDimension: If its vectors do not have `dimensions` dimensions.
        """
        encoder = super().encoder
        if self.dimensions not in (None, encoder.dense_dim):
            raise WrongDimension(
                f"dimensions={self.dimensions} is not available: {encoder!r} gives {encoder.dense_dim} dimensions and "
                "does not truncate them; leave dimensions out, name a model of that dimension, or set truncate_dim for "
                "a model that is trained for it"
            )
        return encoder

    def text_splitter(
        self, chunk_size: int | None = None, chunk_overlap: int | None = None, **kwargs: Any
    ) -> RecursiveCharacterTextSplitter:
        """Return a text splitter that counts in tokens of this model, so that no chunk is truncated.

        Args:
            chunk_size: Most tokens of a chunk; default the most that the model reads.
            chunk_overlap: Tokens shared by consecutive chunks; default a tenth of `chunk_size`.
            **kwargs: Other arguments of RecursiveCharacterTextSplitter, such as `separators`.

        Raises:
            ValueError: If the model would truncate chunks of `chunk_size` tokens.
        """
        from langchain_text_splitters import RecursiveCharacterTextSplitter  # slow to import

        size = resolve_chunk_size(self.encoder, chunk_size)
        overlap = size // 10 if chunk_overlap is None else chunk_overlap
        return RecursiveCharacterTextSplitter(
            chunk_size=size, chunk_overlap=overlap, length_function=self._count_tokens, **kwargs
        )

    def _count_tokens(self, text: str) -> int:
        return count_tokens(self.encoder, text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages.

        Args:
            texts: The passages.

        Returns:
            Their dense vectors.
        """
        vectors: list[list[float]] = self.encoder.encode_passages(texts, modes=DENSE).dense.tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a query.

        Args:
            text: The query.

        Returns:
            Its dense vector.
        """
        return self._embed_queries([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        return await micro_batched(self._embed_queries, text)

    def _embed_queries(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.encoder.encode_queries(texts, modes=DENSE).dense.tolist()
        return vectors

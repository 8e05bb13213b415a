"""NudgedEmbedding: an embedding model with the moved vectors of a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llama_index.core.async_utils import asyncio_run, run_jobs
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from m3_integrations.adapters.store_vectors import to_matrix
from m3_integrations.core.encoded import Array
from m3_integrations.core.errors import WrongDimension


class NudgedEmbedding(BaseEmbedding):
    """Embedding model with the moved vectors of corpus texts.

    A text equal to a corpus text has its moved vector; of equal corpus texts the first one counts. All other texts and
    all queries, even one equal to a corpus text, have the vector of the model. `NudgeFinetuneEngine.nodes` and
    `.write` go by id instead.

    A pickle contains the moved vectors. `to_dict` identifies them by a hash, for the caches of ingestion pipelines, and
    `from_dict` is not supported.

    Args:
        embed_model: The model that embeds all other texts.
        texts: Texts of the corpus.
        vectors: Their vectors, shape (texts, dim).
        settings: Fields of BaseEmbedding; default those of `embed_model`.

    Raises:
        WrongDimension: If there is not one vector for each text.
    """

    embed_model: BaseEmbedding = Field(exclude=True, description="The model that embeds all other texts.")
    texts: list[str] = Field(exclude=True, description="The texts of the corpus.")
    vectors: Any = Field(exclude=True, description="Their vectors, shape (texts, dim).")
    _row: dict[str, int] = PrivateAttr(default_factory=dict)

    def __init__(self, embed_model: BaseEmbedding, texts: Sequence[str], vectors: Any, **settings: Any) -> None:
        rows = to_matrix(vectors)
        if len(rows) != len(texts):
            raise WrongDimension(
                f"got {len(texts)} texts and vectors of shape {rows.shape}; pass one vector for each text"
            )
        inherited = {name: getattr(embed_model, name) for name in ("model_name", "embed_batch_size", "num_workers")}
        own = {"embed_model": embed_model, "texts": list(texts), "vectors": rows}
        super().__init__(**{**inherited, **settings, **own})
        self._row = {text: row for row, text in reversed(list(enumerate(self.texts)))}

    @classmethod
    def class_name(cls) -> str:
        return "NudgedEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the fields of the model, and a hash of texts and vectors."""
        digest = hashlib.sha256("\0".join(self.texts).encode("utf-8", "surrogatepass"))
        digest.update(self.vectors.tobytes())
        return {**super().to_dict(**kwargs), "embed_model": self.embed_model.to_dict(), "moved": digest.hexdigest()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> NudgedEmbedding:  # noqa: ARG003  # never supported
        """Raise ValueError, as a dict does not contain the moved vectors."""
        raise ValueError(
            "a dict does not contain the moved vectors of a NudgedEmbedding; pickle it, write the vectors into a store "
            "with NudgeFinetuneEngine.write(index), or call finetune() and get_finetuned_model() again"
        )

    def _get_query_embedding(self, query: str) -> Embedding:
        return self.embed_model.get_query_embedding(query)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await self.embed_model.aget_query_embedding(query)

    def _get_query_embeddings(self, queries: list[str]) -> list[Embedding]:
        embeddings: list[Embedding] = embed_queries(self.embed_model, queries).tolist()
        return embeddings

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        other = self._other_texts(texts)
        return self._merge(texts, other, other and self.embed_model.get_text_embedding_batch(other))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        other = self._other_texts(texts)
        return self._merge(texts, other, other and await self.embed_model.aget_text_embedding_batch(other))

    def _other_texts(self, texts: Sequence[str]) -> list[Any]:
        return [text for text in dict.fromkeys(texts) if text not in self._row]

    def _merge(self, texts: Sequence[str], other: Sequence[str], embeddings: Sequence[Embedding]) -> list[Embedding]:
        embedded = dict(zip(other, embeddings, strict=True))
        return [embedded[text] if text in embedded else self.vectors[self._row[text]].tolist() for text in texts]


def embed_texts(model: BaseEmbedding, texts: Sequence[str], *, show_progress: bool = False) -> Array:
    """Embed passages in the batches of the model.

    Args:
        model: The embedding model.
        texts: Texts of the passages.
        show_progress: Show a progress bar.

    Returns:
        Vectors, shape (texts, dim).
    """
    return to_matrix(model.get_text_embedding_batch(list(texts), show_progress=show_progress))


def embed_queries(model: BaseEmbedding, texts: Sequence[str]) -> Array:
    """Embed queries in batches, concurrently or one by one.

    LlamaIndex has no batch method for queries. Models with a `_get_query_embeddings(list)`, such as M3Embedding, are
    given batches; of others, `num_workers` queries run concurrently, by default one.

    Args:
        model: The embedding model.
        texts: Texts of the queries.

    Returns:
        Vectors, shape (texts, dim).
    """
    batched: Callable[[list[str]], list[Embedding]] | None = getattr(model, "_get_query_embeddings", None)
    if batched is not None:
        size = model.embed_batch_size
        batches = [batched(list(texts[start : start + size])) for start in range(0, len(texts), size)]
        return to_matrix([embedding for batch in batches for embedding in batch])
    if (model.num_workers or 1) > 1:
        jobs = [model.aget_query_embedding(text) for text in texts]
        return to_matrix(asyncio_run(run_jobs(jobs, workers=model.num_workers or 1)))
    return to_matrix([model.get_query_embedding(text) for text in texts])


def concatenate(*parts: Array) -> Array:
    """Concatenate arrays of vectors, shape (n, dim); empty ones are skipped.

    Raises:
        WrongDimension: If the dimensions differ.
    """
    dims = sorted({part.shape[1] for part in parts if len(part)})
    if len(dims) > 1:
        raise WrongDimension(f"vectors have different dimensions: {dims}; embed all texts with one model")
    return np.concatenate([part for part in parts if len(part)] or [np.zeros((0, 0), np.float32)])

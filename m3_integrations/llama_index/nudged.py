"""NudgedEmbedding: an embedding model that knows where a nudge moved the texts of a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llama_index.core.async_utils import asyncio_run, run_jobs
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from m3_integrations.core.encoded import Array
from m3_integrations.core.errors import WrongDimension
from m3_integrations.nudging.by_id import rows_of


class NudgedEmbedding(BaseEmbedding):
    """The embedding model that was given, in whose place it stands, with the moved vectors of a corpus.

    A text that is one of the corpus, letter for letter, has its moved vector; every other text, and every query, has
    what the model says, even a query that reads like a text. Of texts that are equal the first that moved counts; where
    that matters, `NudgeFinetuneEngine.nodes` and `.write` go by id.
    A pickle carries the moved vectors, and of the model what its own pickle carries. `to_dict` describes them by a
    hash, for the caches of pipelines, and `from_dict` raises ValueError: a dict is no place for a corpus.
    """

    embed_model: BaseEmbedding = Field(exclude=True, description="The model that embeds all other texts.")
    texts: list[str] = Field(exclude=True, description="The texts of the corpus.")
    vectors: Any = Field(exclude=True, description="Their vectors (texts, dim).")
    _row: dict[str, int] = PrivateAttr(default_factory=dict)

    def __init__(self, embed_model: BaseEmbedding, texts: Sequence[str], vectors: Any, **settings: Any) -> None:
        """Raises WrongDimension unless there is one vector a text."""
        rows = rows_of(vectors)
        if len(rows) != len(texts):
            raise WrongDimension(f"one vector a text: got {len(texts)} texts and vectors of shape {rows.shape}")
        named = {name: getattr(embed_model, name) for name in ("model_name", "embed_batch_size", "num_workers")}
        own = {"embed_model": embed_model, "texts": list(texts), "vectors": rows}
        super().__init__(**{**named, **settings, **own})
        self._row = {text: row for row, text in reversed(list(enumerate(self.texts)))}

    @classmethod
    def class_name(cls) -> str:
        return "NudgedEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The model's own dict, and a hash of texts and vectors."""
        known = hashlib.sha256("\0".join(self.texts).encode("utf-8", "surrogatepass"))
        known.update(self.vectors.tobytes())
        return {**super().to_dict(**kwargs), "embed_model": self.embed_model.to_dict(), "moved": known.hexdigest()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> NudgedEmbedding:  # noqa: ARG003  # it refuses, whatever is given
        raise ValueError(
            "a dict does not carry the moved vectors of a NudgedEmbedding; pickle it, keep the vectors in a store by "
            "NudgeFinetuneEngine.write(index), or call finetune() and get_finetuned_model() again"
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
        strangers = self._strangers(texts)
        return self._together(texts, strangers, strangers and self.embed_model.get_text_embedding_batch(strangers))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        strangers = self._strangers(texts)
        embedded = strangers and await self.embed_model.aget_text_embedding_batch(strangers)
        return self._together(texts, strangers, embedded)

    def _strangers(self, texts: Sequence[str]) -> list[Any]:
        return [text for text in dict.fromkeys(texts) if text not in self._row]

    def _together(
        self, texts: Sequence[str], strangers: Sequence[str], embedded: Sequence[Embedding]
    ) -> list[Embedding]:
        others = dict(zip(strangers, embedded, strict=True))
        return [others[text] if text in others else self.vectors[self._row[text]].tolist() for text in texts]


def embed_texts(model: BaseEmbedding, texts: Sequence[str], *, show_progress: bool = False) -> Array:
    """The vectors of passages (texts, dim), by the model's own batches."""
    return rows_of(model.get_text_embedding_batch(list(texts), show_progress=show_progress))


def embed_queries(model: BaseEmbedding, texts: Sequence[str]) -> Array:
    """The vectors of questions (texts, dim).

    LlamaIndex knows no batch of questions. M3Embedding, and every model that has a `_get_query_embeddings(list)` as
    M3Embedding has, takes batches; of others, `num_workers` says how many questions are awaited at once, and where it
    says nothing they are asked one after the other.
    """
    batched: Callable[[list[str]], list[Embedding]] | None = getattr(model, "_get_query_embeddings", None)
    if batched is not None:
        size = model.embed_batch_size
        batches = [batched(list(texts[start : start + size])) for start in range(0, len(texts), size)]
        return rows_of([embedding for batch in batches for embedding in batch])
    if (model.num_workers or 1) > 1:
        jobs = [model.aget_query_embedding(text) for text in texts]
        return rows_of(asyncio_run(run_jobs(jobs, workers=model.num_workers or 1)))
    return rows_of([model.get_query_embedding(text) for text in texts])


def same_dimension(*parts: Array) -> Array:
    """Vectors one after the other; parts without vectors are passed over. Raises WrongDimension for two widths."""
    widths = sorted({part.shape[1] for part in parts if len(part)})
    if len(widths) > 1:
        raise WrongDimension(f"vectors of different widths: {widths}; embed all texts with one model")
    return np.concatenate([part for part in parts if len(part)] or [np.zeros((0, 0), np.float32)])

"""LangChain embeddings as an encoder with the dense mode only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from m3_integrations.core.encoded import DENSE, Encoded, Mode, Modes, check_modes

_MODEL_SETTINGS = (
    "model",
    "model_name",
    "model_id",
    "repo_id",
    "deployment",
    "dimensions",
    "size",
    "encoder",
    "normalize",
)


class DenseOnlyEncoder:
    """Encoder over any LangChain embeddings.

    Vectors are normalized to length 1, so scores are cosines. The fingerprint depends on the class of the embeddings,
    on their settings that name a model and on the dimension.

    Args:
        embeddings: The embeddings.
    """

    modes: frozenset[Mode] = frozenset(DENSE)
    multi_vector_dim = 0
    vocab_size = 0

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings
        self.weights: Mapping[Mode, float] = {"dense": 1.0}

    def weights_for(self, modes: Modes) -> Mapping[Mode, float]:
        return {mode: weight for mode, weight in self.weights.items() if mode in modes}

    @cached_property
    def dense_dim(self) -> int:
        """Dimension of the vectors, found by embedding a text."""
        return len(self.embeddings.embed_query("dimension"))

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the vectors, 64 hex digits."""
        # Index folders record this hash, so the text keeps the former name of this class.
        return hashlib.sha256(f"EmbeddingsEncoder({_describe(self.embeddings)}) {self.dense_dim}".encode()).hexdigest()

    def encode_queries(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        check_modes(modes or DENSE, DENSE)
        return self.encoded([self.embeddings.embed_query(text) for text in texts])

    def encode_passages(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        check_modes(modes or DENSE, DENSE)
        return self.encoded(self.embeddings.embed_documents(list(texts)))

    async def aencode_query(self, text: str) -> Encoded:
        """Encode a query with the async method of the embeddings."""
        return self.encoded([await self.embeddings.aembed_query(text)])

    def encoded(self, vectors: Sequence[npt.ArrayLike]) -> Encoded:
        """Normalize vectors of these embeddings to length 1; zero vectors are unchanged.

        Args:
            vectors: One vector per text, shape (dim,).
        """
        dense = np.array(vectors, np.float32) if len(vectors) else np.zeros((0, self.dense_dim), np.float32)
        return Encoded(dense=dense / np.maximum(np.linalg.norm(dense, axis=-1, keepdims=True), 1e-12))

    def __repr__(self) -> str:
        return f"DenseOnlyEncoder({_describe(self.embeddings)})"


def _describe(embeddings: Any) -> str:
    """Describe embeddings, or the cached ones, by class and model settings, without keys."""
    inner = getattr(embeddings, "underlying_embeddings", None)
    if inner is not None:
        return _describe(inner)
    kind = type(embeddings)
    settings = {name: getattr(embeddings, name, None) for name in _MODEL_SETTINGS}
    shown = [f"{name}={value!r}" for name, value in settings.items() if isinstance(value, (str, int, float))]
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(shown)})"

"""Any LangChain embeddings as an encoder that has the dense mode alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from m3_integrations.core.encoded import DENSE, Encoded, Mode, check_modes

_NAMING = ("model", "model_name", "model_id", "repo_id", "deployment", "dimensions", "size", "encoder", "normalize")


class EmbeddingsEncoder:
    """An Encoder over embeddings of any make. Vectors are brought to length 1, so that scores are cosines.

    Its fingerprint is made of the class of the embeddings, of their settings that name a model, and of their dimension.
    """

    modes: frozenset[Mode] = frozenset(DENSE)
    width = 0
    vocab_size = 0

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings
        self.weights: Mapping[Mode, float] = {"dense": 1.0}

    @cached_property
    def dim(self) -> int:
        """The width of a vector; asks for one."""
        return len(self.embeddings.embed_query("dimension"))

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self!r} {self.dim}".encode()).hexdigest()

    def encode_queries(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        check_modes(modes or DENSE, DENSE)
        return self.encoded([self.embeddings.embed_query(text) for text in texts])

    def encode_passages(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        check_modes(modes or DENSE, DENSE)
        return self.encoded(self.embeddings.embed_documents(list(texts)))

    async def aencode_query(self, text: str) -> Encoded:
        """Encode a question by the embeddings' own async call."""
        return self.encoded([await self.embeddings.aembed_query(text)])

    def encoded(self, vectors: Sequence[npt.ArrayLike]) -> Encoded:
        """Vectors of these embeddings as dense ones of length 1; a zero vector stays."""
        dense = np.array(vectors, np.float32) if len(vectors) else np.zeros((0, self.dim), np.float32)
        return Encoded(dense=dense / np.maximum(np.linalg.norm(dense, axis=-1, keepdims=True), 1e-12))

    def __repr__(self) -> str:
        return f"EmbeddingsEncoder({_named(self.embeddings)})"


def _named(embeddings: Any) -> str:
    """The embeddings by what changes their vectors; a cache is known by what it caches, and no key is shown."""
    inner = getattr(embeddings, "underlying_embeddings", None)
    if inner is not None:
        return _named(inner)
    kind = type(embeddings)
    found = {name: getattr(embeddings, name, None) for name in _NAMING}
    stated = [f"{name}={value!r}" for name, value in found.items() if isinstance(value, (str, int, float))]
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(stated)})"

"""An encoder without a model, for tests to stand on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, MultiVectors, check_modes


class HashEncoder:
    """An Encoder whose words are hashes: the same text gives the same vectors on every machine, with no model to load.

    Texts that share words score high in every mode. dim, width, vocab_size: as in Encoder; seed makes another encoder.
    """

    def __init__(
        self,
        dim: int = 32,
        width: int = 16,
        vocab_size: int = 4096,
        *,
        modes: Collection[Mode] = MODES,
        seed: int = 0,
        weights: Mapping[Mode, float] | None = None,
    ) -> None:
        self.dim = dim
        self.width = width
        self.vocab_size = vocab_size
        self.modes = check_modes(modes, MODES)
        self.seed = seed
        self.weights: Mapping[Mode, float] = weights or {mode: 1.0 for mode in MODES if mode in self.modes}
        self._direction = lru_cache(maxsize=65536)(self._hashed_direction)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def encode_queries(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        return self._encode(texts, modes)

    def encode_passages(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        return self._encode(texts, modes)

    def _encode(self, texts: Sequence[str], modes: Collection[Mode] | None) -> Encoded:
        asked = self.modes if modes is None else check_modes(modes, self.modes)
        words = [text.lower().split() for text in texts]
        return Encoded(
            dense=self._dense(words) if "dense" in asked else None,
            sparse=self._sparse(words) if "sparse" in asked else None,
            multi_vector=self._multi_vector(words) if "multi_vector" in asked else None,
        )

    def _dense(self, texts: Sequence[Sequence[str]]) -> Array:
        # The empty word is in every text, so that no text is without a direction.
        sums = [np.sum([self._direction(word, self.dim) for word in (*words, "")], axis=0) for words in texts]
        return _unit(np.array(sums, np.float32).reshape(len(texts), self.dim))

    def _sparse(self, texts: Sequence[Sequence[str]]) -> scipy.sparse.csr_array:
        rows = [sorted({self._hash(word) % self.vocab_size for word in words}) for words in texts]
        columns = np.array([column for row in rows for column in row], np.int64)
        weights = (0.1 + (columns * 2654435761 % 1009) / 1009).astype(np.float32)
        offsets = np.cumsum([0, *(len(row) for row in rows)])
        return scipy.sparse.csr_array((weights, columns, offsets), shape=(len(texts), self.vocab_size))

    def _multi_vector(self, texts: Sequence[Sequence[str]]) -> MultiVectors:
        vectors = [[self._direction(word, self.width) for word in (*words, "")] for words in texts]
        return MultiVectors.of([np.array(each, np.float32) for each in vectors], width=self.width)

    def _hashed_direction(self, word: str, dim: int) -> Array:
        direction: Array = _unit(np.random.default_rng(self._hash(word)).standard_normal((1, dim), np.float32))[0]
        return direction

    def _hash(self, word: str) -> int:
        said = f"{self.seed}:{word}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")

    def __repr__(self) -> str:
        modes = [mode for mode in MODES if mode in self.modes]
        return f"HashEncoder({self.dim}, {self.width}, {self.vocab_size}, modes={modes}, seed={self.seed})"


def _unit(vectors: Array) -> Array:
    lengths: Array = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths

"""Deterministic encoder without a model, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, Modes, MultiVectors, SparseScore, check_modes
from m3_integrations.encoders.base import weights_of_modes


class HashEncoder:
    """Encoder by hashes of words, the same on every machine.

    Texts with shared words have high scores in every mode.
    """

    def __init__(
        self,
        dense_dim: int = 32,
        multi_vector_dim: int = 16,
        vocab_size: int = 4096,
        *,
        modes: Modes = MODES,
        seed: int = 0,
        weights: Mapping[Mode, float] | None = None,
        sparse_score: SparseScore = "sum",
    ) -> None:
        """Create an encoder.

        Args:
            dense_dim: Dimensions of dense vectors.
            multi_vector_dim: Dimensions of multi-vectors.
            vocab_size: Number of sparse dimensions.
            modes: Modes of the encoder; default all.
            seed: Seed of the hashes; different seeds give different encoders.
            weights: Recommended weights of the modes; default 1 each.
            sparse_score: Convention for sparse scores, as in `SearchPlan`.
        """
        self.dense_dim = dense_dim
        self.multi_vector_dim = multi_vector_dim
        self.vocab_size = vocab_size
        self.modes = check_modes(modes, MODES)
        self.seed = seed
        self.weights: Mapping[Mode, float] = weights or {mode: 1.0 for mode in MODES if mode in self.modes}
        self.sparse_score = sparse_score
        self._direction = lru_cache(maxsize=65536)(self._hash_direction)

    def weights_for(self, modes: Modes) -> Mapping[Mode, float]:
        """Return the recommended weights of a sum of these modes.

        Args:
            modes: The modes.
        """
        return weights_of_modes(self.modes & frozenset(modes), self.weights)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the encoder's parameters."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def encode_queries(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode queries in the given modes; None for all."""
        return self._encode(texts, modes).with_sparse_score(self.sparse_score)

    def encode_passages(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode passages in the given modes; None for all."""
        return self._encode(texts, modes)

    def _encode(self, texts: Sequence[str], modes: Modes | None) -> Encoded:
        checked = self.modes if modes is None else check_modes(modes, self.modes)
        words = [text.lower().split() for text in texts]
        return Encoded(
            dense=self._dense(words) if "dense" in checked else None,
            sparse=self._sparse(words) if "sparse" in checked else None,
            multi_vector=self._multi_vector(words) if "multi_vector" in checked else None,
        )

    def _dense(self, texts: Sequence[Sequence[str]]) -> Array:
        # Every text contains the empty word, so that no vector is zero.
        sums = [np.sum([self._direction(word, self.dense_dim) for word in (*words, "")], axis=0) for words in texts]
        return _unit(np.array(sums, np.float32).reshape(len(texts), self.dense_dim))

    def _sparse(self, texts: Sequence[Sequence[str]]) -> scipy.sparse.csr_array:
        rows = [sorted({self._hash(word) % self.vocab_size for word in words}) for words in texts]
        columns = np.array([column for row in rows for column in row], np.int64)
        weights = (0.1 + (columns * 2654435761 % 1009) / 1009).astype(np.float32)
        offsets = np.cumsum([0, *(len(row) for row in rows)])
        return scipy.sparse.csr_array((weights, columns, offsets), shape=(len(texts), self.vocab_size))

    def _multi_vector(self, texts: Sequence[Sequence[str]]) -> MultiVectors:
        vectors = [[self._direction(word, self.multi_vector_dim) for word in (*words, "")] for words in texts]
        return MultiVectors.of([np.array(each, np.float32) for each in vectors], width=self.multi_vector_dim)

    def _hash_direction(self, word: str, dim: int) -> Array:
        direction: Array = _unit(np.random.default_rng(self._hash(word)).standard_normal((1, dim), np.float32))[0]
        return direction

    def _hash(self, word: str) -> int:
        salted = f"{self.seed}:{word}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(salted, digest_size=8).digest(), "big")

    def __repr__(self) -> str:
        modes = [mode for mode in MODES if mode in self.modes]
        dims = f"{self.dense_dim}, {self.multi_vector_dim}, {self.vocab_size}"
        return f"HashEncoder({dims}, modes={modes}, seed={self.seed})"


def _unit(vectors: Array) -> Array:
    norms: Array = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / norms

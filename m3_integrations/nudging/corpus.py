"""The passages that a nudge over several modes looks at: whole where rows are short, a few at a time where not."""

from __future__ import annotations

from typing import Protocol

import scipy.sparse

from m3_integrations.core.encoded import Array, Encoded, Mode, MultiVectors
from m3_integrations.nudging.judged import Ints


class Corpus(Protocol):
    """n passages by row, as they were encoded."""

    @property
    def modes(self) -> frozenset[Mode]: ...

    @property
    def dense(self) -> Array:
        """(n, dim)."""

    @property
    def sparse(self) -> scipy.sparse.csr_array:
        """(n, vocab)."""

    def multi_vector(self, rows: Ints) -> MultiVectors:
        """The multi-vectors of these passages, in this order."""

    def __len__(self) -> int: ...


class EncodedCorpus:
    """Passages that are all there."""

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded

    @property
    def modes(self) -> frozenset[Mode]:
        return self.encoded.modes

    @property
    def dense(self) -> Array:
        return self.encoded.dense

    @property
    def sparse(self) -> scipy.sparse.csr_array:
        return self.encoded.sparse

    def multi_vector(self, rows: Ints) -> MultiVectors:
        return self.encoded.multi_vector.take(rows)

    def __len__(self) -> int:
        return len(self.encoded)

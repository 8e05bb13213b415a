"""Read access to passage vectors as originally encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Ints as TokenIds, Mode, MultiVectors
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.core.scoring import inverse_document_frequency
from m3_integrations.index.base import Index
from m3_integrations.nudging.judged import Ints
from m3_integrations.nudging.method.late_interaction import MovedVectors

_ONLY: Mapping[Mode, tuple[Mode, ...]] = {mode: (mode,) for mode in MODES}


class Corpus(Protocol):
    """Passages by row with their original vectors."""

    @property
    def modes(self) -> frozenset[Mode]: ...

    @property
    def dense(self) -> Array:
        """Dense vectors, shape (n, dim)."""

    @property
    def sparse(self) -> scipy.sparse.csr_array:
        """Sparse rows, shape (n, vocab)."""

    def multi_vector(self, rows: Ints) -> MultiVectors:
        """Return the multi-vectors of these passages, in this order."""

    def each_multi_vector(self, rows: Ints) -> Iterable[Array]:
        """Return the vectors of each of these passages, which are not copied if they are in memory."""

    def __len__(self) -> int: ...


class EncodedCorpus:
    """Passages in memory."""

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

    def each_multi_vector(self, rows: Ints) -> Iterable[Array]:
        return (self.encoded.multi_vector[row] for row in rows.tolist())

    def __len__(self) -> int:
        return len(self.encoded)


class OriginalVectors(NamedTuple):
    """Original vectors of the rows that a nudge moved; `values` as in ModeUpdate."""

    rows: Ints
    values: Array | scipy.sparse.csr_array | MovedVectors


class IndexCorpus:
    """Passages of an index with their original vectors.

    Args:
        index: The index.
        ids: The passages, row by row.
        originals: By mode, the original vectors of rows that moved in the index.
        hashes: Content hash of each passage, by id.
    """

    def __init__(
        self,
        index: Index,
        ids: Sequence[str],
        originals: Mapping[Mode, OriginalVectors],
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        self.index, self.ids, self.originals, self.hashes = index, ids, originals, hashes or {}

    @property
    def modes(self) -> frozenset[Mode]:
        return self.index.modes

    @cached_property
    def dense(self) -> Array:
        dense = self.index.vectors(self.ids, _ONLY["dense"]).dense
        known = self.originals.get("dense")
        if known is None:
            return dense
        dense = np.array(dense)
        dense[known.rows] = known.values
        return dense

    @cached_property
    def sparse(self) -> scipy.sparse.csr_array:
        sparse = self.index.vectors(self.ids, _ONLY["sparse"]).sparse
        known = self.originals.get("sparse")
        return sparse if known is None else replace_rows(sparse, known.rows, known.values)

    def idf(self, tokens: TokenIds) -> Array:
        """Return the inverse document frequency of tokens among the original rows.

        A search after a nudge counts the terms that were added to sparse rows too, which a fit cannot know in advance.
        """
        counts = np.bincount(self.sparse.indices, minlength=self.sparse.shape[1])
        return inverse_document_frequency(counts[tokens], len(self))

    def multi_vector(self, rows: Ints) -> MultiVectors:
        vectors = self.index.vectors([self.ids[row] for row in rows], _ONLY["multi_vector"]).multi_vector
        known = self.originals.get("multi_vector")
        if known is None or not isinstance(known.values, MovedVectors):
            return vectors
        moved = known.values.among(rows)
        counts = np.zeros(len(self.ids), np.int64)
        counts[rows] = vectors.counts
        if np.any(moved.places >= np.repeat(counts[moved.rows], np.diff(moved.offsets))):
            raise DamagedFolder(
                "the ledger records original multi-vectors at positions that their passages do not have; put back a "
                "copy of the ledger and the index"
            )
        return moved.put_into(vectors, rows)

    def each_multi_vector(self, rows: Ints) -> Iterable[Array]:
        return self.multi_vector(rows)

    def __len__(self) -> int:
        return len(self.ids)


def replace_rows(every: scipy.sparse.csr_array, rows: Ints, values: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Return the matrix with these rows replaced."""
    order = np.arange(every.shape[0])
    order[rows] = every.shape[0] + np.arange(len(rows))
    return scipy.sparse.csr_array(scipy.sparse.vstack([every, values], format="csr")[order])

"""The passages that a nudge over several modes looks at: whole where rows are short, a few at a time where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, MultiVectors
from m3_integrations.index.base import Index
from m3_integrations.nudging.judged import Ints
from m3_integrations.nudging.late import MovedVectors

_ONLY: Mapping[Mode, tuple[Mode, ...]] = {mode: (mode,) for mode in MODES}


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


class Originals(NamedTuple):
    """What a nudge moved, as it was before. rows: ascending; values: as in `Moved`, of one mode."""

    rows: Ints
    values: Array | scipy.sparse.csr_array | MovedVectors


class IndexCorpus:
    """The passages of an index as they were encoded, whatever was moved since.

    ids: the passages, row by row; originals: by mode, the vectors that are not in the index just now.
    """

    def __init__(self, index: Index, ids: Sequence[str], originals: Mapping[Mode, Originals]) -> None:
        self.index, self.ids, self.originals = index, ids, originals

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
        return sparse if known is None else with_rows(sparse, known.rows, known.values)

    def multi_vector(self, rows: Ints) -> MultiVectors:
        vectors = self.index.vectors([self.ids[row] for row in rows], _ONLY["multi_vector"]).multi_vector
        known = self.originals.get("multi_vector")
        if known is None or not isinstance(known.values, MovedVectors):
            return vectors
        return known.values.among(rows).put_into(vectors, rows)

    def __len__(self) -> int:
        return len(self.ids)


def with_rows(every: scipy.sparse.csr_array, rows: Ints, values: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """`every` with these rows in the place of its own."""
    order = np.arange(every.shape[0])
    order[rows] = every.shape[0] + np.arange(len(rows))
    return scipy.sparse.csr_array(scipy.sparse.vstack([every, values], format="csr")[order])

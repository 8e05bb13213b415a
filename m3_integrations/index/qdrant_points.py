"""Rows of `Encoded` as the named vectors of Qdrant points, and back, to the bit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
from qdrant_client import models

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, MultiVectors

_NUMBERS_AT_ONCE = 1 << 19  # some 6 MB as JSON; a server takes 32 MB by default
_POINTS_AT_ONCE = 512


def vectors_of(encoded: Encoded) -> list[dict[str, Any]]:
    """The named vectors of each row."""
    return [{mode: vector_of(mode, encoded, row) for mode in encoded.modes} for row in range(len(encoded))]


def vector_of(mode: Mode, encoded: Encoded, row: int) -> Any:
    """One row as Qdrant takes it."""
    if mode == "dense":
        return encoded.dense[row].tolist()
    if mode == "sparse":
        kept = slice(encoded.sparse.indptr[row], encoded.sparse.indptr[row + 1])
        return models.SparseVector(
            indices=encoded.sparse.indices[kept].tolist(), values=encoded.sparse.data[kept].tolist()
        )
    return _of_none(encoded.multi_vector[row]).tolist()


def encoded_of(vectors: Sequence[Mapping[str, Any]], widths: Mapping[Mode, int], modes: Collection[Mode]) -> Encoded:
    """The vectors of points in these modes, row by row. widths: of each mode."""
    wanted = [mode for mode in MODES if mode in modes]
    return Encoded(**{mode: _JOIN[mode]([each[mode] for each in vectors], widths[mode]) for mode in wanted})


def batches(encoded: Encoded) -> Iterator[range]:
    """Rows that go into one request together."""
    start, numbers = 0, 0
    for row, count in enumerate(_numbers(encoded).tolist()):
        if row > start and (numbers + count > _NUMBERS_AT_ONCE or row - start == _POINTS_AT_ONCE):
            yield range(start, row)
            start, numbers = row, 0
        numbers += count
    if start < len(encoded):
        yield range(start, len(encoded))


def _numbers(encoded: Encoded) -> Any:
    """(rows,) how many numbers each row holds."""
    counts = np.zeros(len(encoded), np.int64)
    for mode in encoded.modes:
        if mode == "dense":
            counts += encoded.dense.shape[1]
        elif mode == "sparse":
            counts += 2 * np.diff(encoded.sparse.indptr)
        else:
            counts += encoded.multi_vector.counts * encoded.multi_vector.width
    return counts


def _of_none(vectors: Array) -> Array:
    # Qdrant keeps no text without vectors. One vector of negative zeros scores 0 with every query, as none at all does,
    # and no encoder gives one.
    return vectors if len(vectors) else np.full((1, vectors.shape[1]), -0.0, np.float32)


def _or_none(vectors: Array) -> Array:
    none = len(vectors) == 1 and not vectors.any() and bool(np.signbit(vectors).all())
    return vectors[:0] if none else vectors


def _join_dense(rows: Sequence[Any], width: int) -> Array:
    return np.array(rows, np.float32).reshape(len(rows), width)


def _join_sparse(rows: Sequence[Any], width: int) -> scipy.sparse.csr_array:
    indptr = np.cumsum([0, *(len(row.indices) for row in rows)])
    columns = np.fromiter((column for row in rows for column in row.indices), np.int64, indptr[-1])
    weights = np.fromiter((weight for row in rows for weight in row.values), np.float32, indptr[-1])
    return scipy.sparse.csr_array((weights, columns, indptr), shape=(len(rows), width))


def _join_multi_vector(rows: Sequence[Any], width: int) -> MultiVectors:
    return MultiVectors.of([_or_none(np.array(row, np.float32).reshape(-1, width)) for row in rows], width)


_JOIN: Mapping[Mode, Any] = {"dense": _join_dense, "sparse": _join_sparse, "multi_vector": _join_multi_vector}

"""Vectors between an index and its ledger: updates to write, original vectors and queries as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, MultiVectors, vector_arrays
from m3_integrations.index.base import Index
from m3_integrations.nudging.corpus import IndexCorpus, OriginalVectors, replace_rows
from m3_integrations.nudging.judged import Ints
from m3_integrations.nudging.method.late_interaction import MovedVectors
from m3_integrations.nudging.optimize.hybrid import ModeUpdate
from m3_integrations.nudging.selection.score_grids import blocks


class OriginalVector(NamedTuple):
    """Original vectors of one passage in one mode.

    Attributes:
        content: Content hash of the passage.
        places: Columns of a sparse row, or positions of the multi-vectors that are stored; empty for dense.
        vectors: The values as float32 bytes.
    """

    content: str
    places: Ints
    vectors: bytes


class Dimensions(NamedTuple):
    """Dimensions of an encoder's embeddings."""

    dim: int
    vocab: int
    width: int


def vector_updates(corpus: IndexCorpus, moved: Mapping[Mode, ModeUpdate]) -> dict[Mode, tuple[list[str], Encoded]]:
    """Return the vectors to write by mode: those that move, and originals of those that no longer do."""
    updates: dict[Mode, tuple[list[str], Encoded]] = {}
    for mode in MODES:
        known, new = corpus.originals.get(mode), moved.get(mode)
        rows = np.union1d(known.rows if known else [], new.rows if new else []).astype(np.int64)
        if len(rows):
            updates[mode] = [corpus.ids[row] for row in rows], _vectors(corpus, mode, rows, new)
    return updates


def _vectors(corpus: IndexCorpus, mode: Mode, rows: Ints, moved: ModeUpdate | None) -> Encoded:
    """Return the vectors of these rows: moved where they move, original elsewhere."""
    at = np.searchsorted(rows, moved.rows) if moved is not None else np.empty(0, np.int64)
    if mode == "dense":
        dense = np.array(corpus.dense[rows])
        if moved is not None:
            dense[at] = moved.values
        return Encoded(dense=dense)
    if mode == "sparse":
        sparse = scipy.sparse.csr_array(corpus.sparse[rows])
        return Encoded(sparse=sparse if moved is None else replace_rows(sparse, at, moved.values))
    late = corpus.multi_vector(rows)
    if moved is not None and isinstance(moved.values, MovedVectors):
        late = moved.values.put_into(late, rows)
    return Encoded(multi_vector=late)


def pack(corpus: IndexCorpus, mode: Mode, moved: ModeUpdate, hashes: Mapping[str, str]) -> dict[str, OriginalVector]:
    """Return the original vectors of passages that move, by id; `hashes` are their content hashes."""
    ids = [corpus.ids[row] for row in moved.rows]
    if mode == "dense":
        rows = corpus.dense[moved.rows]
        return {id: OriginalVector(hashes[id], _NO_POSITIONS, row.tobytes()) for id, row in zip(ids, rows, strict=True)}
    if mode == "sparse":
        return {id: _pack_sparse(corpus, row, hashes[id]) for id, row in zip(ids, moved.rows.tolist(), strict=True)}
    return _pack_multi_vector(corpus, moved, hashes)


_NO_POSITIONS = np.empty(0, np.int64)


def _pack_sparse(corpus: IndexCorpus, row: int, content: str) -> OriginalVector:
    span = slice(corpus.sparse.indptr[row], corpus.sparse.indptr[row + 1])
    weights = corpus.sparse.data[span].astype(np.float32)
    return OriginalVector(content, corpus.sparse.indices[span].astype(np.int64), weights.tobytes())


def _pack_multi_vector(corpus: IndexCorpus, moved: ModeUpdate, hashes: Mapping[str, str]) -> dict[str, OriginalVector]:
    """Pack the vectors of each passage that move now or moved before."""
    assert isinstance(moved.values, MovedVectors)
    known = corpus.originals.get("multi_vector")
    before = {} if known is None or not isinstance(known.values, MovedVectors) else known.values.by_row()
    by_row, found = moved.values.by_row(), {}
    for block in blocks(moved.rows):
        for row, passage in zip(block.tolist(), corpus.multi_vector(block), strict=True):
            every = np.union1d(by_row[row][0], before[row][0] if row in before else _NO_POSITIONS)
            id = corpus.ids[row]
            found[id] = OriginalVector(hashes[id], every, passage[every].tobytes())
    return found


def unpack(mode: Mode, recorded: Sequence[tuple[int, OriginalVector]], width: int) -> OriginalVectors:
    """Build OriginalVectors from (row, original), rows ascending; `width` is the dimension or the number of columns."""
    rows = np.array([row for row, _ in recorded], np.int64)
    blobs = [np.frombuffer(each.vectors, np.float32) for _, each in recorded]
    if mode == "dense":
        return OriginalVectors(rows, np.concatenate(blobs).reshape(-1, width))
    if mode == "sparse":
        offsets = np.cumsum([0, *(len(blob) for blob in blobs)])
        columns = np.concatenate([each.places for _, each in recorded])
        return OriginalVectors(
            rows, scipy.sparse.csr_array((np.concatenate(blobs), columns, offsets), shape=(len(rows), width))
        )
    parts = [(row, each.places, blob.reshape(-1, width)) for (row, each), blob in zip(recorded, blobs, strict=True)]
    return OriginalVectors(rows, MovedVectors.of(parts, width))


def digest(index: Index, touched: Mapping[Mode, Sequence[str]]) -> str:
    """Return the SHA-256 of the vectors that the index holds now, as 64 hex digits."""
    hashed = hashlib.sha256()
    for mode in sorted(touched):
        ids = touched[mode]
        for start in range(0, len(ids), 1024):
            part = ids[start : start + 1024]
            hashed.update("\0".join([mode, *part]).encode("utf-8", "surrogatepass"))
            for array in vector_arrays(index.vectors(part, (mode,)), mode):
                hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def pack_query(encoded: Encoded, i: int) -> tuple[bytes | None, bytes | None, bytes | None, bytes | None]:
    """Return the embeddings of one query as the columns dense, tokens, weights and vectors."""
    dense = encoded.dense[i].tobytes() if "dense" in encoded.modes else None
    vectors = encoded.multi_vector[i].tobytes() if "multi_vector" in encoded.modes else None
    if "sparse" not in encoded.modes:
        return dense, None, None, vectors
    row = slice(encoded.sparse.indptr[i], encoded.sparse.indptr[i + 1])
    return dense, encoded.sparse.indices[row].astype(np.int32).tobytes(), encoded.sparse.data[row].tobytes(), vectors


def unpack_queries(rows: Sequence[Sequence[bytes]], modes: Sequence[Mode], dimensions: Dimensions) -> Encoded:
    """Return the embeddings of queries from rows of these columns."""
    parts: dict[str, Any] = {}
    if "dense" in modes:
        parts["dense"] = _floats(row[0] for row in rows).reshape(-1, dimensions.dim)
    if "sparse" in modes:
        tokens = np.frombuffer(b"".join(row[1] for row in rows), np.int32)
        offsets = np.cumsum([0, *(len(row[1]) // 4 for row in rows)])
        weights = _floats(row[2] for row in rows)
        parts["sparse"] = scipy.sparse.csr_array((weights, tokens, offsets), shape=(len(rows), dimensions.vocab))
    if "multi_vector" in modes:
        offsets = np.cumsum([0, *(len(row[3]) // 4 // dimensions.width for row in rows)])
        parts["multi_vector"] = MultiVectors(_floats(row[3] for row in rows).reshape(-1, dimensions.width), offsets)
    return Encoded(**parts)


def _floats(blobs: Iterable[bytes]) -> Array:
    return np.frombuffer(b"".join(blobs), np.float32)

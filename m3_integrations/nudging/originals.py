"""Vectors on their way between an index and its ledger: what is to be written, and what it was before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Encoded, Mode
from m3_integrations.index.base import Index
from m3_integrations.nudging.corpus import IndexCorpus, Originals, with_rows
from m3_integrations.nudging.hybrid import Moved
from m3_integrations.nudging.judged import Ints
from m3_integrations.nudging.ladders import blocks
from m3_integrations.nudging.late import MovedVectors
from m3_integrations.nudging.ledger import Original


def changes(corpus: IndexCorpus, moved: Mapping[Mode, Moved]) -> dict[Mode, tuple[list[str], Encoded]]:
    """What to write, by mode: what moves, and the originals of what was moved before and no longer is."""
    found: dict[Mode, tuple[list[str], Encoded]] = {}
    for mode in MODES:
        known, new = corpus.originals.get(mode), moved.get(mode)
        rows = np.union1d(known.rows if known else [], new.rows if new else []).astype(np.int64)
        if len(rows):
            found[mode] = [corpus.ids[row] for row in rows], _vectors(corpus, mode, rows, new)
    return found


def _vectors(corpus: IndexCorpus, mode: Mode, rows: Ints, moved: Moved | None) -> Encoded:
    """The vectors of these rows, where they were encoded but for those that moved."""
    at = np.searchsorted(rows, moved.rows) if moved is not None else np.empty(0, np.int64)
    if mode == "dense":
        dense = np.array(corpus.dense[rows])
        if moved is not None:
            dense[at] = moved.values
        return Encoded(dense=dense)
    if mode == "sparse":
        sparse = scipy.sparse.csr_array(corpus.sparse[rows])
        return Encoded(sparse=sparse if moved is None else with_rows(sparse, at, moved.values))
    late = corpus.multi_vector(rows)
    if moved is not None and isinstance(moved.values, MovedVectors):
        late = moved.values.put_into(late, rows)
    return Encoded(multi_vector=late)


def packed(corpus: IndexCorpus, mode: Mode, moved: Moved, hashes: Mapping[str, str]) -> dict[str, Original]:
    """The originals of what moves, by passage id. hashes: of the passages' contents."""
    ids = [corpus.ids[row] for row in moved.rows]
    if mode == "dense":
        rows = corpus.dense[moved.rows]
        return {id: Original(hashes[id], _NOWHERE, row.tobytes()) for id, row in zip(ids, rows, strict=True)}
    if mode == "sparse":
        return {id: _packed_sparse(corpus, row, hashes[id]) for id, row in zip(ids, moved.rows.tolist(), strict=True)}
    return _packed_late(corpus, moved, hashes)


_NOWHERE = np.empty(0, np.int64)


def _packed_sparse(corpus: IndexCorpus, row: int, content: str) -> Original:
    span = slice(corpus.sparse.indptr[row], corpus.sparse.indptr[row + 1])
    weights = corpus.sparse.data[span].astype(np.float32)
    return Original(content, corpus.sparse.indices[span].astype(np.int64), weights.tobytes())


def _packed_late(corpus: IndexCorpus, moved: Moved, hashes: Mapping[str, str]) -> dict[str, Original]:
    """Of each passage the vectors that move now, and those that moved before."""
    assert isinstance(moved.values, MovedVectors)
    known = corpus.originals.get("multi_vector")
    before = {} if known is None or not isinstance(known.values, MovedVectors) else known.values.by_row()
    by_row, found = moved.values.by_row(), {}
    for block in blocks(moved.rows):
        for row, passage in zip(block.tolist(), corpus.multi_vector(block), strict=True):
            every = np.union1d(by_row[row][0], before[row][0] if row in before else _NOWHERE)
            id = corpus.ids[row]
            found[id] = Original(hashes[id], every, passage[every].tobytes())
    return found


def unpacked(mode: Mode, kept: Sequence[tuple[int, Original]], width: int) -> Originals:
    """From (row, original), rows ascending. width: of the vectors, in sparse the number of columns."""
    rows = np.array([row for row, _ in kept], np.int64)
    blobs = [np.frombuffer(each.vectors, np.float32) for _, each in kept]
    if mode == "dense":
        return Originals(rows, np.concatenate(blobs).reshape(-1, width))
    if mode == "sparse":
        offsets = np.cumsum([0, *(len(blob) for blob in blobs)])
        columns = np.concatenate([each.places for _, each in kept])
        return Originals(
            rows, scipy.sparse.csr_array((np.concatenate(blobs), columns, offsets), shape=(len(rows), width))
        )
    parts = [(row, each.places, blob.reshape(-1, width)) for (row, each), blob in zip(kept, blobs, strict=True)]
    return Originals(rows, MovedVectors.of(parts, width))


def digest(index: Index, touched: Mapping[Mode, Sequence[str]]) -> str:
    """64 hex digits over the vectors that the index holds just now, by mode and passage."""
    hashed = hashlib.sha256()
    for mode in sorted(touched):
        ids = touched[mode]
        for start in range(0, len(ids), 1024):
            part = ids[start : start + 1024]
            hashed.update("\0".join([mode, *part]).encode("utf-8", "surrogatepass"))
            for array in _arrays(index.vectors(part, (mode,)), mode):
                hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def _arrays(encoded: Encoded, mode: Mode) -> Sequence[np.ndarray]:
    if mode == "dense":
        return (encoded.dense,)
    if mode == "sparse":
        return (encoded.sparse.data, encoded.sparse.indices.astype(np.int64), encoded.sparse.indptr.astype(np.int64))
    return (encoded.multi_vector.values, encoded.multi_vector.offsets)

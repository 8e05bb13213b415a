"""Passages and Encoded rows to Qdrant points and back, without loss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import scipy.sparse
from qdrant_client import models

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, Modes, MultiVectors
from m3_integrations.core.types import Passage
from m3_integrations.index.qdrant.filter_fields import (
    EXACT_BELOW,
    FACTS,
    FIELDS,
    filter_keywords,
    is_valid_unicode,
    ordered_fields,
)
from m3_integrations.index.records import PassageRecord, from_json, to_json

ID, TEXT, METADATA, HASH = "id", "text", "metadata", "hash"
PASSAGE = [ID, TEXT, METADATA]
_AS_JSON = "json:"
_SHORT = 15  # decimal digits that every parser reads back exactly


def point_id(id: str) -> str:
    """Return the point id of a passage: a UUID made of a 128-bit hash of its id."""
    return str(UUID(bytes=hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()))


def payload(record: PassageRecord) -> dict[str, Any]:
    """Return the payload of a passage: id, text, metadata, content hash, and filter fields.

    Values that Qdrant might change (lone surrogates, long numbers) are stored as a string that begins with 'json:'.
    """
    return {
        ID: _encode_text(record.id),
        TEXT: _encode_text(record.text),
        METADATA: record.metadata if _round_trips(record.metadata) else _as_json(record.metadata),
        HASH: record.hash,
        FACTS: filter_keywords(record.metadata),
        FIELDS: ordered_fields(record.metadata),
    }


def passage(fields: Mapping[str, Any]) -> Passage:
    """Return the passage of a payload; the inverse of `payload`."""
    metadata = fields[METADATA]
    metadata = _decode_text(metadata) if isinstance(metadata, str) else metadata
    return Passage(passage_id(fields), _decode_text(fields[TEXT]), metadata)


def passage_id(fields: Mapping[str, Any]) -> str:
    """Return the passage id of a payload."""
    id: str = _decode_text(fields[ID])
    return id


def _encode_text(text: str) -> str:
    return text if is_valid_unicode(text) and not text.startswith(_AS_JSON) else _as_json(text)


def _decode_text(text: str) -> Any:
    return from_json(text[len(_AS_JSON) :].encode("latin-1")) if text.startswith(_AS_JSON) else text


def _as_json(value: Any) -> str:
    # One character per byte: JSON's own escapes would join two lone surrogates to one character.
    return _AS_JSON + to_json(value).decode("latin-1")


def _round_trips(value: Any) -> bool:
    if isinstance(value, str):
        return is_valid_unicode(value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return abs(value) < EXACT_BELOW
    if isinstance(value, float):
        return len(repr(abs(value)).replace(".", "")) <= _SHORT and "e" not in repr(value)
    if isinstance(value, dict):
        return all(is_valid_unicode(key) and _round_trips(each) for key, each in value.items())
    return all(map(_round_trips, value))


_NUMBERS_AT_ONCE = 1 << 19  # about 6 MB as JSON; a server accepts 32 MB by default
_POINTS_AT_ONCE = 512


def vectors_of(encoded: Encoded) -> list[dict[str, Any]]:
    """Return the named vectors of each row."""
    return [{mode: vector_of(mode, encoded, row) for mode in encoded.modes} for row in range(len(encoded))]


def vector_of(mode: Mode, encoded: Encoded, row: int) -> Any:
    """Return one row in the form that Qdrant takes."""
    if mode == "dense":
        return encoded.dense[row].tolist()
    if mode == "sparse":
        span = slice(encoded.sparse.indptr[row], encoded.sparse.indptr[row + 1])
        indices, values = encoded.sparse.indices[span], encoded.sparse.data[span]
        return models.SparseVector(indices=indices.tolist(), values=values.tolist())
    return _empty_marker(encoded.multi_vector[row]).tolist()


def encoded_of(vectors: Sequence[Mapping[str, Any]], widths: Mapping[Mode, int], modes: Modes) -> Encoded:
    """Build an Encoded from the vectors of points; `widths` are dimensions by mode."""
    wanted = [mode for mode in MODES if mode in modes]
    return Encoded(**{mode: _JOIN[mode]([each[mode] for each in vectors], widths[mode]) for mode in wanted})


def batches(encoded: Encoded) -> Iterator[range]:
    """Yield ranges of rows that fit into one request."""
    start, numbers = 0, 0
    for row, count in enumerate(_numbers(encoded).tolist()):
        if row > start and (numbers + count > _NUMBERS_AT_ONCE or row - start == _POINTS_AT_ONCE):
            yield range(start, row)
            start, numbers = row, 0
        numbers += count
    if start < len(encoded):
        yield range(start, len(encoded))


def _numbers(encoded: Encoded) -> Any:
    """Return how many numbers each row holds, shape (rows,)."""
    counts = np.zeros(len(encoded), np.int64)
    for mode in encoded.modes:
        if mode == "dense":
            counts += encoded.dense.shape[1]
        elif mode == "sparse":
            counts += 2 * np.diff(encoded.sparse.indptr)
        else:
            counts += encoded.multi_vector.counts * encoded.multi_vector.width
    return counts


def _empty_marker(vectors: Array) -> Array:
    # Qdrant needs at least one vector. One of negative zeros scores 0 with every query, and no encoder returns one.
    return vectors if len(vectors) else np.full((1, vectors.shape[1]), -0.0, np.float32)


def _unwrap_empty(vectors: Array) -> Array:
    is_marker = len(vectors) == 1 and not vectors.any() and bool(np.signbit(vectors).all())
    return vectors[:0] if is_marker else vectors


def _join_dense(rows: Sequence[Any], width: int) -> Array:
    return np.array(rows, np.float32).reshape(len(rows), width)


def _join_sparse(rows: Sequence[Any], width: int) -> scipy.sparse.csr_array:
    indptr = np.cumsum([0, *(len(row.indices) for row in rows)])
    columns = np.fromiter((column for row in rows for column in row.indices), np.int64, indptr[-1])
    weights = np.fromiter((weight for row in rows for weight in row.values), np.float32, indptr[-1])
    return scipy.sparse.csr_array((weights, columns, indptr), shape=(len(rows), width))


def _join_multi_vector(rows: Sequence[Any], width: int) -> MultiVectors:
    return MultiVectors.of([_unwrap_empty(np.array(row, np.float32).reshape(-1, width)) for row in rows], width)


_JOIN: Mapping[Mode, Any] = {"dense": _join_dense, "sparse": _join_sparse, "multi_vector": _join_multi_vector}

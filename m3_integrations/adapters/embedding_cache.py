"""Bounded cache of the sparse and multi-vector embeddings computed with a dense vector, until a store collects them.

Frameworks hand a store the dense vector of a text and nothing else. A store that needs other modes calls
`request_modes`; from then on `dense_of_passages` and `dense_of_queries` compute them in the same forward pass and cache
them by text and dense vector, so that an entry is only found with the vector of its own pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import DENSE, MODES, Array, Encoded, Mode, Modes
from m3_integrations.core.errors import M3Warning, WrongDimension
from m3_integrations.core.forking import ForkSafeLock
from m3_integrations.encoders.base import Encoder

Vector: TypeAlias = npt.ArrayLike
_Key: TypeAlias = tuple[str, bytes]
_PASSAGE_CACHE_BYTES = 4 << 30
_QUERY_CACHE_BYTES = 64 << 20
_requests: WeakValueDictionary[str, RequestedModes] = WeakValueDictionary()
_lock = ForkSafeLock()


class EmbeddingCache:
    """Encoded texts, the newest up to a number of bytes; safe to use from several threads.

    Args:
        limit: Bytes to hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.dropped = 0
        self._lock = ForkSafeLock()
        self._rows: dict[_Key, Encoded] = {}
        self._bytes = 0

    def put(self, texts: Sequence[str], encoded: Encoded) -> None:
        """Cache row i of `encoded` for texts[i], and drop the oldest entries beyond the limit."""
        rows = [encoded.take([i]) for i in range(len(texts))]
        with self._lock:
            for text, row in zip(texts, rows, strict=True):
                self._put(_key(text, row.dense[0]), row)
            while self._bytes > self.limit:
                self._remove(next(iter(self._rows)))
                self.dropped += 1

    def get(self, text: str, dense: Vector) -> Encoded | None:
        """Return the row that was computed with this dense vector of this text; None if it is not cached."""
        with self._lock:
            return self._rows.get(_key(text, dense))

    def discard(self, text: str, dense: Vector) -> None:
        """Drop a row that has been stored."""
        with self._lock:
            self._remove(_key(text, dense))

    def __len__(self) -> int:
        return len(self._rows)

    def _put(self, key: _Key, row: Encoded) -> None:
        self._remove(key)
        self._rows[key] = row
        self._bytes += _size(row)

    def _remove(self, key: _Key) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self._bytes -= _size(row)


class RequestedModes:
    """Modes that stores request of one encoder, and the caches of its rows; alive while a store holds it."""

    def __init__(self) -> None:
        self.modes: frozenset[Mode] = frozenset(DENSE)
        self.passages = EmbeddingCache(_PASSAGE_CACHE_BYTES)
        self.queries = EmbeddingCache(_QUERY_CACHE_BYTES)


def request_modes(encoder: Encoder, modes: Modes, limit: int | None = None) -> RequestedModes:
    """Request modes that every forward pass of this encoder for a dense vector computes as well.

    Args:
        encoder: Encoder, identified by its fingerprint.
        modes: Modes; those that the encoder does not have are ignored.
        limit: Bytes of passages to cache; None leaves the limit unchanged, initially 4 GiB.

    Returns:
        The caches; the request holds as long as a reference to them does.
    """
    with _lock:
        requested = _requests.get(encoder.fingerprint)
        if requested is None:
            requested = _requests[encoder.fingerprint] = RequestedModes()
        requested.modes |= encoder.modes & frozenset(modes)
        requested.passages.limit = requested.passages.limit if limit is None else limit
        return requested


def dense_of_passages(encoder: Encoder, texts: Sequence[str]) -> Array:
    """Encode passages to dense vectors, shape (n, dim), and cache the modes that stores request."""
    requested = _requested_of(encoder)
    encoded = encoder.encode_passages(texts, DENSE if requested is None else requested.modes)
    if requested is not None:
        requested.passages.put(texts, encoded)
    return encoded.dense


def dense_of_queries(encoder: Encoder, texts: Sequence[str]) -> Array:
    """Encode queries, as `dense_of_passages` encodes passages."""
    requested = _requested_of(encoder)
    encoded = encoder.encode_queries(texts, DENSE if requested is None else requested.modes)
    if requested is not None:
        requested.queries.put(texts, encoded)
    return encoded.dense


def fill_missing_modes(
    encoder: Encoder,
    requested: RequestedModes,
    texts: Sequence[str],
    dense: Sequence[Vector | None],
    modes: Modes,
) -> Encoded:
    """Combine given dense vectors with the other modes, from the cache or else from one forward pass.

    Args:
        encoder: Encoder of the store.
        requested: Its caches.
        texts: Passages.
        dense: Dense vector of each passage, shape (dim,); None to compute it.
        modes: Modes to return.

    Raises:
        WrongDimension: If a given vector has another shape than the encoder's.
    """
    _check_shape(encoder, texts, dense)
    given = [each for each in dense if each is not None]
    if frozenset(modes) == frozenset(DENSE) and 0 < len(given) == len(texts):
        return Encoded(dense=np.array(given, np.float32))
    rows = [_cached(requested.passages, text, each, modes) for text, each in zip(texts, dense, strict=True)]
    missing = [i for i, row in enumerate(rows) if row is None]
    _warn_dropped(requested, [dense[i] for i in missing])
    if len(missing) == len(texts):
        return _encode(encoder, texts, dense, modes)
    if missing:
        encoded = _encode(encoder, [texts[i] for i in missing], [dense[i] for i in missing], modes)
        for j, i in enumerate(missing):
            rows[i] = encoded.take([j])
    first, *others = [row for row in rows if row is not None]
    return first.join(*others)


def complete_query(
    encoder: Encoder, requested: RequestedModes, text: str | None, dense: Vector | None, modes: Modes
) -> Encoded:
    """Combine a query's given dense vector with the other modes, from the cache or else from one forward pass.

    Raises:
        ValueError: If a mode has to be computed and there is no text.
    """
    if dense is not None and frozenset(modes) == frozenset(DENSE):
        return Encoded(dense=np.array([dense], np.float32))
    check_query_text(text, dense, modes)
    assert text is not None
    found = _cached(requested.queries, text, dense, modes)
    if found is not None:
        return found
    computed = frozenset(modes) if dense is None else frozenset(modes) - frozenset(DENSE)
    encoded = encoder.encode_queries([text], computed)
    return encoded if dense is None or "dense" not in modes else encoded.with_dense(np.array([dense], np.float32))


def check_query_text(text: str | None, dense: Vector | None, modes: Modes) -> None:
    """Check that a query has a text, if a mode has to be computed from it.

    Raises:
        ValueError: If it has none.
    """
    if text is None and (dense is None or frozenset(modes) != frozenset(DENSE)):
        raise ValueError(
            f"{[mode for mode in MODES if mode in modes]} are computed from the query's text; give query_str"
        )


def _requested_of(encoder: Encoder) -> RequestedModes | None:
    # The first fingerprint hashes all weights, which is not needed if no store requests anything.
    return _requests.get(encoder.fingerprint) if len(_requests) else None


def _key(text: str, dense: Vector) -> _Key:
    return text, np.asarray(dense, np.float32).tobytes()


def _size(row: Encoded) -> int:
    sizes: Mapping[Mode, int] = {
        "dense": row.dense.nbytes,
        "sparse": 8 * row.sparse.nnz if "sparse" in row.modes else 0,
        "multi_vector": row.multi_vector.values.nbytes if "multi_vector" in row.modes else 0,
    }
    return sum(sizes.values())


def _cached(rows: EmbeddingCache, text: str, dense: Vector | None, modes: Modes) -> Encoded | None:
    row = None if dense is None else rows.get(text, dense)
    return None if row is None or not frozenset(modes) <= row.modes else row.only(modes)


def _warn_dropped(requested: RequestedModes, missing: Sequence[Vector | None]) -> None:
    if requested.passages.dropped and any(each is not None for each in missing):
        warnings.warn(
            f"texts are encoded a second time: the embeddings of {requested.passages.dropped} of them did not fit into "
            f"the cache of {requested.passages.limit} bytes; allow more, or hand over fewer texts at once",
            M3Warning,
            stacklevel=3,
        )
        requested.passages.dropped = 0


def _encode(encoder: Encoder, texts: Sequence[str], dense: Sequence[Vector | None], modes: Modes) -> Encoded:
    """Encode passages, and put given dense vectors in place of the computed ones."""
    encoded = encoder.encode_passages(texts, modes)
    if "dense" not in encoded.modes or all(each is None for each in dense):
        return encoded
    rows = [encoded.dense[i] if each is None else each for i, each in enumerate(dense)]
    return encoded.with_dense(np.array(rows, np.float32))


def _check_shape(encoder: Encoder, texts: Sequence[str], dense: Sequence[Vector | None]) -> None:
    for text, each in zip(texts, dense, strict=True):
        if each is not None and np.shape(each) != (encoder.dense_dim,):
            raise WrongDimension(
                f"the embedding given for {text[:40]!r} has the shape {np.shape(each)}, and this encoder's have "
                f"({encoder.dense_dim},); embed with the model that the store was made with, or leave the embedding out"
            )

"""What a forward pass made beside the dense vector that was asked for, until the store that keeps it comes for it.

Frameworks hand a store the dense vector of a text and nothing else. A store that wants the other modes says so with
`wanted_from`; from then on `dense_of_passages` and `dense_of_queries` make them in the same pass and remember them,
under the text and the bytes of its dense vector: what is found is of the pass that made that vector, or is not found.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import DENSE, MODES, Array, Encoded, Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.errors import M3Warning, WrongDimension

Vector: TypeAlias = npt.ArrayLike
_Key: TypeAlias = tuple[str, bytes]
_PASSAGES = 4 << 30
_QUERIES = 64 << 20
_recent: WeakValueDictionary[str, Recent] = WeakValueDictionary()
_lock = threading.Lock()


class Rows:
    """Encoded texts, the newest up to a number of bytes. Safe to use from many threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.dropped = 0
        self._lock = threading.Lock()
        self._rows: dict[_Key, Encoded] = {}
        self._bytes = 0

    def keep(self, texts: Sequence[str], encoded: Encoded) -> None:
        """Remember row i as what texts[i] became; the oldest are dropped where they do not all fit."""
        rows = [encoded.take([i]) for i in range(len(texts))]
        with self._lock:
            for text, row in zip(texts, rows, strict=True):
                self._put(_key(text, row.dense[0]), row)
            while self._bytes > self.limit:
                self._remove(next(iter(self._rows)))
                self.dropped += 1

    def find(self, text: str, dense: Vector) -> Encoded | None:
        """The row of the pass that made this dense vector of this text, if it is here still."""
        with self._lock:
            return self._rows.get(_key(text, dense))

    def forget(self, text: str, dense: Vector) -> None:
        """Let go of a row that was kept elsewhere."""
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


class Recent:
    """The rows of one encoder's recent passes in the modes that stores want of it, alive while one of them holds it."""

    def __init__(self) -> None:
        self.modes: frozenset[Mode] = frozenset(DENSE)
        self.passages = Rows(_PASSAGES)
        self.queries = Rows(_QUERIES)


def wanted_from(encoder: Encoder, modes: Collection[Mode], limit: int | None = None) -> Recent:
    """Ask that these modes be made in every pass of this encoder for a dense vector, as long as the answer is held.

    limit: the bytes of passages that wait at once; None leaves it as it is, 4 GiB at first.
    """
    with _lock:
        recent = _recent.get(encoder.fingerprint)
        if recent is None:
            recent = _recent[encoder.fingerprint] = Recent()
        recent.modes |= encoder.modes & frozenset(modes)
        recent.passages.limit = recent.passages.limit if limit is None else limit
        return recent


def dense_of_passages(encoder: Encoder, texts: Sequence[str]) -> Array:
    """(texts, dim): the dense vectors; what stores want beside them is made in the same pass and remembered."""
    recent = _recent_of(encoder)
    encoded = encoder.encode_passages(texts, DENSE if recent is None else recent.modes)
    if recent is not None:
        recent.passages.keep(texts, encoded)
    return encoded.dense


def dense_of_queries(encoder: Encoder, texts: Sequence[str]) -> Array:
    """(texts, dim): likewise for questions."""
    recent = _recent_of(encoder)
    encoded = encoder.encode_queries(texts, DENSE if recent is None else recent.modes)
    if recent is not None:
        recent.queries.keep(texts, encoded)
    return encoded.dense


def complete_passages(
    encoder: Encoder, recent: Recent, texts: Sequence[str], dense: Sequence[Vector | None], modes: Collection[Mode]
) -> Encoded:
    """Each text in these modes with the dense vector that is given for it: remembered rows, and a pass for the rest.

    dense: (dim,) for each text, or None where the encoder is to make it. Raises WrongDimension for another width.
    """
    _require_width(encoder, texts, dense)
    given = [each for each in dense if each is not None]
    if frozenset(modes) == frozenset(DENSE) and 0 < len(given) == len(texts):
        return Encoded(dense=np.array(given, np.float32))
    kept = [_usable(recent.passages, text, each, modes) for text, each in zip(texts, dense, strict=True)]
    missing = [i for i, row in enumerate(kept) if row is None]
    _say_dropped(recent, [dense[i] for i in missing])
    if len(missing) == len(texts):
        return _made(encoder, texts, dense, modes)
    if missing:
        made = _made(encoder, [texts[i] for i in missing], [dense[i] for i in missing], modes)
        for j, i in enumerate(missing):
            kept[i] = made.take([j])
    rows = [row for row in kept if row is not None]
    return rows[0].join(*rows[1:])


def complete_query(
    encoder: Encoder, recent: Recent, text: str | None, dense: Vector | None, modes: Collection[Mode]
) -> Encoded:
    """One question in these modes, with the dense vector that is given for it, from at most one pass.

    Raises ValueError where a mode is to be made of a text, and there is none.
    """
    if dense is not None and frozenset(modes) == frozenset(DENSE):
        return Encoded(dense=np.array([dense], np.float32))
    if text is None:
        raise ValueError(f"{[mode for mode in MODES if mode in modes]} are made of the question's text; give query_str")
    found = _usable(recent.queries, text, dense, modes)
    if found is not None:
        return found
    to_make = frozenset(modes) if dense is None else frozenset(modes) - frozenset(DENSE)
    made = encoder.encode_queries([text], to_make)
    return made if dense is None or "dense" not in modes else made.with_dense(np.array([dense], np.float32))


def _recent_of(encoder: Encoder) -> Recent | None:
    # A fingerprint reads all weights, once: not asked for where nobody wants anything.
    return _recent.get(encoder.fingerprint) if len(_recent) else None


def _key(text: str, dense: Vector) -> _Key:
    return text, np.asarray(dense, np.float32).tobytes()


def _size(row: Encoded) -> int:
    sizes: Mapping[Mode, int] = {
        "dense": row.dense.nbytes,
        "sparse": 8 * row.sparse.nnz if "sparse" in row.modes else 0,
        "multi_vector": row.multi_vector.values.nbytes if "multi_vector" in row.modes else 0,
    }
    return sum(sizes.values())


def _usable(rows: Rows, text: str, dense: Vector | None, modes: Collection[Mode]) -> Encoded | None:
    row = None if dense is None else rows.find(text, dense)
    return None if row is None or not frozenset(modes) <= row.modes else row.only(modes)


def _say_dropped(recent: Recent, missing: Sequence[Vector | None]) -> None:
    if recent.passages.dropped and any(each is not None for each in missing):
        warnings.warn(
            f"texts go through the model again: what a pass made of {recent.passages.dropped} of them did not fit "
            f"into the {recent.passages.limit} bytes that may wait; allow more, or hand over fewer texts at once",
            M3Warning,
            stacklevel=3,
        )
        recent.passages.dropped = 0


def _made(encoder: Encoder, texts: Sequence[str], dense: Sequence[Vector | None], modes: Collection[Mode]) -> Encoded:
    """A pass over these passages; dense vectors that are given take the place of those made."""
    made = encoder.encode_passages(texts, modes)
    if "dense" not in made.modes or all(each is None for each in dense):
        return made
    rows = [made.dense[i] if each is None else each for i, each in enumerate(dense)]
    return made.with_dense(np.array(rows, np.float32))


def _require_width(encoder: Encoder, texts: Sequence[str], dense: Sequence[Vector | None]) -> None:
    for text, each in zip(texts, dense, strict=True):
        if each is not None and np.shape(each) != (encoder.dim,):
            raise WrongDimension(
                f"the embedding given for {text[:40]!r} has the shape {np.shape(each)}, and this encoder's have "
                f"({encoder.dim},); embed with the model that the store was made with, or leave the embedding out"
            )

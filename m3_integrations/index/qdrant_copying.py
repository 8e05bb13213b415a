"""From a folder to Qdrant and back, vectors and all, checked to the bit; begun again where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from m3_integrations.core.encoded import MODES, Encoded, Mode
from m3_integrations.core.errors import M3Error
from m3_integrations.index.base import Index
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.qdrant import QdrantIndex, WrongCollection

_AT_ONCE = 256
_QDRANT = ("qdrant", "qdrants")


class CopyDiffers(M3Error):
    """What was read back is not what was written."""


class Copied(NamedTuple):
    """total: passages of the source, all of which the target holds now. written: those that it did not hold before.

    besides: passages that the target holds and the source does not. checksum: 64 hex digits over ids, contents and
    vectors of the source, in the order of ids, which the target was read back to equal; a copy back has the same.
    """

    total: int
    written: int
    besides: int
    checksum: str


@dataclass(frozen=True)
class Remembered:
    """An encoder as an index remembers it: enough to tell that another index is of the same."""

    fingerprint: str
    label: str

    def __repr__(self) -> str:
        return self.label


def copy(source: str, target: str, api_key: str | None = None) -> Copied:
    """Copy between places: a folder, or qdrant://host:port/collection (qdrants:// with TLS, qdrant:///folder/collection
    for Qdrant's engine in a folder). The target remembers the source's encoder.

    Raises FileNotFoundError where the source is not there, WrongEncoder where the target is of another encoder,
    CopyDiffers.
    """
    with _source(source, api_key) as given, _opened(target, api_key, filled_by(given)) as taken:
        return copy_index(given, taken)


def copy_index(source: Index, target: Index) -> Copied:
    """Copy every passage with its vectors; those that the target holds already, to the bit, are not written again.

    So a copy that was broken off goes on where it was when it is begun anew. Raises CopyDiffers where what was written
    does not come back equal.
    """
    ids, hashed, written = source.ids(), hashlib.sha256(), 0
    for some in _parts(ids):
        encoded, hashes = source.vectors(some), source.content_hashes(some)
        said = _digest(some, hashes, encoded)
        if _held(target, some, encoded.modes) != said:
            target.add(source.passages(some), encoded)
            written += len(some)
            if _held(target, some, encoded.modes) != said:
                raise CopyDiffers(
                    f"of the passages from {some[0]!r} to {some[-1]!r} some did not come back as they were written; "
                    "does another process write to the target, or does it keep vectors in fewer bits?"
                )
        hashed.update(said)
    return Copied(len(ids), written, len(target) - len(ids), hashed.hexdigest())


def filled_by(index: Index) -> Remembered | None:
    """The encoder that an index remembers."""
    fingerprint, label = index.encoder if isinstance(index, (QdrantIndex, LocalIndex)) else (None, None)
    return None if fingerprint is None else Remembered(fingerprint, label or "an encoder")


def _source(place: str, api_key: str | None) -> LocalIndex | QdrantIndex:
    if not _is_qdrant(place) and not (Path(place).is_dir() and any(Path(place).iterdir())):
        raise FileNotFoundError(f"there is no index at {place}; fill one with: m3 ingest {place} FILE")
    index = _opened(place, api_key, None)
    if not index.modes:
        index.close()
        raise FileNotFoundError(f"there are no passages at {place}; name a place that holds some")
    return index


def _opened(place: str, api_key: str | None, encoder: Remembered | None) -> LocalIndex | QdrantIndex:
    if not _is_qdrant(place):
        return LocalIndex.open(place, encoder)
    url = urlsplit(place)
    before, _, collection = url.path.rpartition("/")
    if not collection or not (url.netloc or before):
        raise WrongCollection(f"{place} names no collection; write qdrant://host:6333/collection")
    where = f"{url.scheme}://{url.netloc}{before}" if url.netloc else before
    return QdrantIndex.open(where, collection, encoder, api_key=api_key)


def _is_qdrant(place: str) -> bool:
    return urlsplit(place).scheme in _QDRANT


def _held(target: Index, ids: Sequence[str], modes: frozenset[Mode]) -> bytes | None:
    """The digest of what the target holds under these ids; None where some are not there."""
    hashes = target.content_hashes(ids)
    if len(hashes) < len(ids) or not modes <= target.modes:
        return None
    return _digest(ids, hashes, target.vectors(ids, modes))


def _digest(ids: Sequence[str], hashes: dict[str, str], encoded: Encoded) -> bytes:
    hashed = hashlib.sha256("\0".join(part for id in ids for part in (id, hashes[id])).encode("utf-8", "surrogatepass"))
    for mode in MODES:
        if mode in encoded.modes:
            for array in _arrays(mode, encoded):
                hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.digest()


def _arrays(mode: Mode, encoded: Encoded) -> tuple[np.ndarray, ...]:
    if mode == "dense":
        return (encoded.dense,)
    if mode == "sparse":
        rows = encoded.sparse
        return rows.data, rows.indices.astype(np.int64), rows.indptr.astype(np.int64)
    return encoded.multi_vector.values, encoded.multi_vector.offsets


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))

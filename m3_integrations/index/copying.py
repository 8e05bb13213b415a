"""Verified, resumable copy of an index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from m3_integrations.core.encoded import MODES, Encoded, vector_arrays
from m3_integrations.core.errors import CopyDiffers
from m3_integrations.index.base import Index

_PASSAGES_AT_ONCE = 256


class CopyReport(NamedTuple):
    """Result of a copy.

    Attributes:
        total: Passages of the source, all of which the target now holds.
        written: Passages that the target did not hold before.
        extra: Passages of the target that the source does not hold.
        checksum: SHA-256 over ids, contents and vectors of the source in the order of ids, as 64 hex digits; the target
            was read back with the same checksum, and a copy back has it too.
    """

    total: int
    written: int
    extra: int
    checksum: str


def copy_index(source: Index, target: Index) -> CopyReport:
    """Copy the search plan and every passage with its vectors; what the target holds already is not written again.

    An interrupted copy resumes when it is run again.

    Args:
        source: Index to read.
        target: Index to write; ids that it holds are replaced.

    Returns:
        Counts of passages, and the checksum.

    Raises:
        CopyDiffers: If passages read back differ from those written.
    """
    ids, checksum, written = source.ids(), hashlib.sha256(), 0
    for start in range(0, len(ids), _PASSAGES_AT_ONCE):
        part = ids[start : start + _PASSAGES_AT_ONCE]
        encoded, hashes = source.vectors(part), source.content_hashes(part)
        digest = _digest(part, hashes, encoded)
        if _target_digest(target, part, encoded) != digest:
            target.add(source.passages(part), encoded)
            written += len(part)
            if _target_digest(target, part, encoded) != digest:
                raise CopyDiffers(
                    f"some passages from {part[0]!r} to {part[-1]!r} differ when read back; does another process write "
                    "to the target, or does it store vectors in fewer bits?"
                )
        checksum.update(digest)
    if source.plan is not None:
        target.plan = source.plan
    return CopyReport(len(ids), written, len(target) - len(ids), checksum.hexdigest())


def _target_digest(target: Index, ids: Sequence[str], encoded: Encoded) -> bytes | None:
    """Return the digest of these passages in the target; None if some are missing."""
    hashes = target.content_hashes(ids)
    if len(hashes) < len(ids) or not encoded.modes <= target.modes:
        return None
    return _digest(ids, hashes, target.vectors(ids, encoded.modes))


def _digest(ids: Sequence[str], hashes: dict[str, str], encoded: Encoded) -> bytes:
    keys = "\0".join(part for id in ids for part in (id, hashes[id]))
    digest = hashlib.sha256(keys.encode("utf-8", "surrogatepass"))
    for mode in MODES:
        if mode in encoded.modes:
            for array in vector_arrays(encoded, mode):
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()

"""Checksums of the rows of a catalog, which SQLite does not have; hashes are XXH3."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

_STATE = struct.Struct("<7Q")
_ROW = struct.Struct("<QII")
_MASK = (1 << 64) - 1
_LOW = (1 << 32) - 1
_METADATA_OFFSET = 12
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


class CatalogChecks(NamedTuple):
    """Checksums of the tables, stored in the row that every commit changes.

    Attributes:
        passages: Number of passages.
        slot_sum: Sum of the hashes of their slots, modulo 2^64.
        id_sum: Sum of the hashes of their ids and slots, modulo 2^64.
        modes: Hash of the rows of `modes`.
        segments: Hash of the rows of `segments`.
        plan: Hash of the rows of `plan`.
        state: Hash of the other columns of `state` and of the numbers above.
    """

    passages: int
    slot_sum: int
    id_sum: int
    modes: int
    segments: int
    plan: int
    state: int

    @classmethod
    def of(cls, members: Sequence[int], tables: Sequence[int], state: Sequence[Any]) -> CatalogChecks:
        """Return the checksums of a state.

        Args:
            members: The first three checksums.
            tables: The hashes of `modes`, `segments` and `plan`.
            state: Row of `state` without its checksums.
        """
        (passages, slot_sum, id_sum), (modes, segments, plan) = members, tables
        known = passages, slot_sum, id_sum, modes, segments, plan
        return cls(*known, state=hash_rows([(*state, *known)]))

    @classmethod
    def unpack(cls, stored: bytes) -> CatalogChecks:
        """Return the checksums that `pack` gave; `struct.error` if it did not."""
        return cls(*_STATE.unpack(stored))

    def pack(self) -> bytes:
        """Return the checksums as bytes."""
        return _STATE.pack(*self)

    def is_of_state(self, state: Sequence[Any]) -> bool:
        """Return whether they belong to this row of `state`."""
        return self.state == hash_rows([(*state, *self[:-1])])


def hash_rows(rows: Sequence[Sequence[Any]]) -> int:
    """Hash the rows of a table in order."""
    return xxhash.xxh3_64_intdigest(repr([tuple(row) for row in rows]).encode("utf-8", "surrogatepass"))


def hash_id(slot: int, id: bytes) -> int:
    """Hash an id with the slot of its passage."""
    return xxhash.xxh3_64_intdigest(id, slot)


def sum_ids(rows: Iterable[tuple[int, bytes]]) -> int:
    """Sum the hashes of slots and ids, modulo 2^64."""
    return sum(xxhash.xxh3_64_intdigest(id, slot) for slot, id in rows) & _MASK


def sum_slots(slots: npt.NDArray[np.int64]) -> int:
    """Sum the hashes of slots, modulo 2^64."""
    mixed = (slots.astype(np.uint64) + np.uint64(1)) * _ODD
    mixed = (mixed ^ (mixed >> _SHIFT)) * _ODD
    return int((mixed ^ (mixed >> _SHIFT)).sum(dtype=np.uint64))


def add_sums(first: int, *others: int) -> int:
    """Add sums modulo 2^64; a negative one is subtracted."""
    return (first + sum(others)) & _MASK


def pack_row(slot: int, id: bytes, metadata: bytes, content: str) -> bytes:
    """Return the checksums of a passage: of its id, of its content hash and of its metadata."""
    hashes = (xxhash.xxh3_64_intdigest(data, slot) & _LOW for data in (content.encode(), metadata))
    return _ROW.pack(hash_id(slot, id), *hashes)


def find_row_fault(slot: int, id: bytes, metadata: bytes, content: str, stored: bytes | None) -> str:
    """Return what differs from the stored checksums of a passage, or an empty string."""
    if stored is None:  # written before they were stored
        return ""
    expected = pack_row(slot, id, metadata, content)
    if stored == expected:
        return ""
    same = zip(_ROW.unpack(expected), _ROW.unpack(stored), strict=True) if len(stored) == _ROW.size else ()
    names = ("id", "content hash", "metadata")
    return next((name for name, (a, b) in zip(names, same, strict=False) if a != b), "checksum")


def is_id(slot: int, id: bytes, stored: bytes | None) -> bool:
    """Return whether an id fits the stored checksums of its passage."""
    return stored is None or stored[:8] == hash_id(slot, id).to_bytes(8, "little")


def is_content(slot: int, content: str, stored: bytes | None) -> bool:
    """Return whether a content hash fits the stored checksums of its passage."""
    low = xxhash.xxh3_64_intdigest(content.encode(), slot) & _LOW
    return stored is None or stored[8:_METADATA_OFFSET] == low.to_bytes(4, "little")


def all_metadata_fit(slots: Sequence[int], metadata: Sequence[bytes], stored: Sequence[bytes | None]) -> bool:
    """Return whether metadata fits the stored checksums of its passages."""
    if None in stored:
        kept = [row for row in zip(slots, metadata, stored, strict=True) if row[2] is not None]
        return not kept or all_metadata_fit(*map(list, zip(*kept, strict=True)))
    found = np.array(list(map(xxhash.xxh3_64_intdigest, metadata, slots)), np.uint64).astype(np.uint32)
    wanted = b"".join(each[_METADATA_OFFSET:] for each in stored if each is not None)
    return wanted == found.astype("<u4").tobytes()

"""Memory-mapped files of numbered sections with block checksums, written once; reading them never executes code.

A file consists of `M3ARRAY2`, the length and the XXH3 hash of the table as 8 little-endian bytes each, the table, the
sections, the checksums of their blocks, and a copy of the table with its hash, its length and `M3TABLE2`. The table is
JSON: its version, what the file is about, where the checksums are, and number, flags, offset, length, dtype, shape and
length of a block of each section. Sections start at multiples of 64 bytes; offsets count from the first. A reader
skips a section with a number that it does not know, and refuses the file if the section is flagged as required.

Files of the first format, `M3ARRAY1`, have names in place of numbers and no checksums.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from m3_integrations.core.errors import DamagedFolder, IndexFolderError
from m3_integrations.core.files import FileChecksum, open_regular_file

SECTION_NUMBERS = {
    **{"slots": 1, "written": 2, "offsets": 3, "row_checks": 4, "center": 5, "slots_copy": 6},
    **{"values": 10, "longest": 11, "copy": 12, "steps": 13, "left_out": 14, "reach": 15},
    **{"columns": 20, "weights": 21, "terms": 22, "term_offsets": 23, "posted": 24, "posted_weights": 25},
    **{"common": 26, "common_weights": 27, "numbers": 30, "scales": 31},
    **{"levels": 40, "neighbours": 41, "entry": 42, "codes": 43},
    **{"trained": 50, "coarse_centroids": 51, "cells": 52, "centroids": 53, "lengths": 54},
    **{"list_offsets": 55, "listed": 56},
}
_BLOCK_BYTES = 1 << 16
_CALLS_BEFORE_REST = 32
_MOST_OF_REST = 1 << 25  # bytes, verified in some milliseconds
_SMALL_BLOCK_BYTES = 1 << 14  # of arrays that queries read some rows of
_READ_BY_ROWS = frozenset({"values", "columns", "weights", "posted", "posted_weights", "common_weights"})
_NAMES = {number: name for name, number in SECTION_NUMBERS.items()}
_OPTIONAL = frozenset({"row_checks", "center", "slots_copy"})
_IS_REQUIRED = 1  # the first bit of a section's flags
_TABLE_VERSION = 1
_MAGIC, _MAGIC_OF_COPY, _MAGIC_BEFORE_CHECKSUMS = b"M3ARRAY2", b"M3TABLE2", b"M3ARRAY1"
_PREFIX = len(_MAGIC) + 16
_ALIGNMENT = 64
_TABLE_MULTIPLE = 256  # of its length, filled with spaces
_MAX_TABLE_LENGTH = 1 << 16
_CAN_READ_AHEAD = hasattr(mmap, "MADV_WILLNEED")
_DTYPES = ("<f4", "<f8", "<i4", "<i8", "<u2", "<u8", "|i1", "|u1")

Checksums = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


class _StoredArray(NamedTuple):
    """Where an array is in the file, in bytes, and the checksums of its blocks; none before they were stored."""

    array: npt.NDArray[Any]
    offset: int
    checksums: Checksums | None
    block: int


class MappedArrays(Mapping[str, npt.NDArray[Any]]):
    """The arrays of a mapped file, by name.

    A block is compared with its checksum before the first use of its values: by `[]` all blocks of the array, by `rows`
    and `verify` those of some rows.

    Attributes:
        about: What the writer of the file stated about it.
    """

    def __init__(self, path: Path, file: mmap.mmap | bytes) -> None:
        self.about: Mapping[str, Any] = {}
        self._path = path
        self._file = file
        self._sections: dict[str, _StoredArray] = {}
        self._unverified: dict[str, Flags] = {}
        self._calls: dict[str, int] = {}

    def add(
        self, name: str, array: npt.NDArray[Any], offset: int, checksums: Checksums | None, block: int = _BLOCK_BYTES
    ) -> None:
        """Add an array.

        Args:
            name: Its name.
            array: The array, in the mapped file.
            offset: Where it begins in the file, in bytes.
            checksums: Checksums of its blocks; None if it has none.
            block: Length of a block in bytes.
        """
        self._sections[name] = _StoredArray(array, offset, checksums, block)
        if checksums is not None and len(checksums):
            self._unverified[name] = np.ones(len(checksums), bool)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        self.verify(name)
        return self._sections[name].array

    def __iter__(self) -> Iterator[str]:
        return iter(self._sections)

    def __len__(self) -> int:
        return len(self._sections)

    def __contains__(self, name: object) -> bool:
        return name in self._sections

    @property
    def has_checksums(self) -> bool:
        """Whether the blocks have checksums; those of the first format have none."""
        return all(section.checksums is not None for section in self._sections.values())

    def unverified(self, name: str) -> npt.NDArray[Any]:
        """Return an array for its shape, or for rows that `verify` was called for."""
        return self._sections[name].array

    def is_verified(self, name: str) -> bool:
        """Return whether no block of an array is left to verify."""
        return name not in self._unverified

    def layout(self) -> dict[str, tuple[str, int]]:
        """Return dtype and number of dimensions of each array."""
        return {name: (each.array.dtype.str, each.array.ndim) for name, each in self._sections.items()}

    def rows(self, name: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return a copy of some rows of an array."""
        self.verify(name, rows, rows + 1)
        chosen: npt.NDArray[Any] = self._sections[name].array[rows]
        return chosen

    def verify(
        self, name: str, begins: npt.NDArray[np.int64] | None = None, ends: npt.NDArray[np.int64] | None = None
    ) -> None:
        """Compare blocks with their checksums, unless this was done before.

        Args:
            name: Name of the array.
            begins: First row of each range of rows; None for all rows.
            ends: End of each range.

        Raises:
            DamagedFolder: If a block differs.
            IndexError: If a range is not in the array.
        """
        unverified = self._unverified.get(name)
        if unverified is None:
            return
        if begins is None or ends is None or len(unverified) == 1:
            if self._is_as_written(name):
                self._unverified.pop(name, None)
                return
            blocks = np.flatnonzero(unverified)
        else:
            section = self._sections[name]
            blocks = _blocks_of(section.array, section.block, begins, ends, unverified)
            self._verify_rest(name, unverified, section)
        if not len(blocks):
            return
        for block in self._differing(name, blocks):
            begin, end = self._span(name, block)
            raise damaged_file_error(self._path, f"differs from what was written in bytes {begin} to {end}")
        unverified[blocks] = False
        if not unverified.any():
            self._unverified.pop(name, None)

    def _verify_rest(self, name: str, unverified: Flags, section: _StoredArray) -> None:
        """Verify an array whose rows are used often, so that later calls need not look for their blocks.

        Blocks that differ stay unverified, and are an error when they are used.
        """
        self._calls[name] = self._calls.get(name, 0) + 1
        if self._calls[name] == _CALLS_BEFORE_REST and section.array.nbytes <= _MOST_OF_REST:
            rest = np.flatnonzero(unverified)
            unverified[np.setdiff1d(rest, self._differing(name, rest))] = False
            if not unverified.any():
                self._unverified.pop(name, None)

    def offset(self, name: str) -> int:
        """Return where an array begins in the file, in bytes."""
        return self._sections[name].offset

    def without_checksums(self) -> MappedArrays:
        """Return the same arrays, whose blocks are not verified."""
        arrays = MappedArrays(self._path, self._file)
        arrays.about = self.about
        for name, (array, offset, _, _) in self._sections.items():
            arrays.add(name, array, offset, None)
        return arrays

    def damaged_blocks(self, name: str) -> list[tuple[int, int]]:
        """Compare all blocks of an array; return the first byte and the end of each that differs."""
        checksums = self._sections[name].checksums
        blocks = np.arange(0 if checksums is None else len(checksums))
        return [self._span(name, block) for block in self._differing(name, blocks)]

    def read_ahead(self, name: str, rows: slice) -> None:
        """Start reading rows of an array from disk, in one request instead of page by page."""
        array, offset, _, _ = self._sections[name]
        row_bytes = array.nbytes // max(1, len(array))
        begin, length = offset + rows.start * row_bytes, (rows.stop - rows.start) * row_bytes
        in_page = begin % mmap.PAGESIZE
        if length > 0 and _CAN_READ_AHEAD and isinstance(self._file, mmap.mmap):
            with suppress(OSError):  # a hint: a read error is reported when the rows are used
                self._file.madvise(mmap.MADV_WILLNEED, begin - in_page, length + in_page)

    def _span(self, name: str, block: int) -> tuple[int, int]:
        """Return the first byte and the end of a block in the file."""
        array, offset, _, size = self._sections[name]
        return offset + block * size, offset + min((block + 1) * size, array.nbytes)

    def _is_as_written(self, name: str) -> bool:
        """Return whether no block differs, without arrays: most sections are small."""
        array, offset, checksums, size = self._sections[name]
        data, digest = memoryview(self._file)[offset : offset + array.nbytes], xxhash.xxh3_64_intdigest
        found = [digest(data[begin : begin + size]) for begin in range(0, array.nbytes, size)]
        return checksums is not None and found == checksums.tolist()

    def _differing(self, name: str, blocks: npt.NDArray[np.int64]) -> list[int]:
        """Return which of some blocks differ from their checksums."""
        array, offset, checksums, size = self._sections[name]
        if checksums is None:
            return []
        data, digest = memoryview(self._file)[offset : offset + array.nbytes], xxhash.xxh3_64_intdigest
        begins = (blocks * size).tolist()
        found = np.array([digest(data[begin : begin + size]) for begin in begins], np.uint64)
        differing: list[int] = blocks[found != checksums[blocks]].tolist()
        return differing


def write_arrays(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any] | None = None
) -> FileChecksum:
    """Write and sync a new file; sync its folder with `sync_folder` afterwards.

    Args:
        path: The file, which must not exist.
        arrays: Arrays by name, a key of SECTION_NUMBERS.
        about: Facts about the file, as JSON.

    Returns:
        Length and checksum of the file.
    """
    stored = {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    checksums = np.concatenate([np.empty(0, np.uint64), *(_block_checksums(*each) for each in stored.items())]).astype(
        "<u8"
    )
    table = _make_table(stored, checksums, about or {})
    digest = xxhash.xxh3_64_intdigest(table).to_bytes(8, "little")
    length = len(table).to_bytes(8, "little")
    before, after = _MAGIC + length + digest + table, table + digest + length + _MAGIC_OF_COPY
    with path.open("xb") as file:
        written = _write_pieces(file, [before, *(_as_bytes(array) for array in (*stored.values(), checksums)), after])
        file.flush()
        os.fsync(file.fileno())
    return written


def map_arrays(path: Path, length: int, *, by_copy: bool = False, unverified: bool = False) -> MappedArrays:
    """Map a file of arrays into memory, read-only.

    Args:
        path: The file.
        length: Its expected length in bytes.
        by_copy: Whether to read the copy of the table at the end in place of the table.
        unverified: Whether to go without checksums of blocks if these are damaged.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFolder: If it has another length, was not written by `write_arrays`, or its table is damaged.
        IndexFolderError: If a newer version wrote it.
    """
    with open_regular_file(path) as file:
        actual = os.fstat(file.fileno()).st_size
        if actual != length:
            raise damaged_file_error(path, f"is {actual} bytes long instead of {length}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if length else b""
    arrays = MappedArrays(path, mapped)
    try:
        if mapped[: len(_MAGIC)] == _MAGIC_BEFORE_CHECKSUMS and not by_copy:
            _parse_before_checksums(arrays, mapped)
        else:
            _parse(arrays, mapped, _read_copy(mapped) if by_copy else _read_table(mapped), unverified)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise damaged_file_error(path, f"is not a file of arrays ({error})") from error
    return arrays


def damaged_file_error(path: Path, problem: str) -> DamagedFolder:
    """Return the error for a damaged file of an index folder."""
    return DamagedFolder(
        f"{path} {problem}; the index in that folder is damaged: put back a copy of the whole folder, "
        f"or save its undamaged passages in a new one: m3 repair {path.parent}"
    )


def _block_bytes(name: str) -> int:
    return _SMALL_BLOCK_BYTES if name in _READ_BY_ROWS else _BLOCK_BYTES


def _blocks_of(
    array: npt.NDArray[Any], size: int, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], unverified: Flags
) -> npt.NDArray[np.int64]:
    """Return the unverified blocks with rows of some ranges."""
    filled = ends > begins
    begins, ends = begins[filled], ends[filled]
    if not len(begins):
        return begins
    if begins.min() < 0 or ends.max() > len(array):
        raise IndexError(f"rows {begins.min()} to {ends.max()} of {len(array)}")
    row_bytes = array.nbytes // len(array)
    first, last = begins * row_bytes // size, (ends * row_bytes - 1) // size
    if (last - first).max() <= 1:
        blocks = np.concatenate([first, last])
        return np.unique(blocks[unverified[blocks]])
    changes = np.zeros(len(unverified) + 1, np.int64)
    np.add.at(changes, first, 1)
    np.subtract.at(changes, last + 1, 1)
    return np.flatnonzero((np.cumsum(changes[:-1]) > 0) & unverified)


def _block_checksums(name: str, array: npt.NDArray[Any]) -> Checksums:
    data, size = _as_bytes(array), _block_bytes(name)
    hashes = [xxhash.xxh3_64_intdigest(data[start : start + size]) for start in range(0, len(data), size)]
    return np.array(hashes, np.uint64)


def _make_table(arrays: Mapping[str, npt.NDArray[Any]], checksums: Checksums, about: Mapping[str, Any]) -> bytes:
    sections, end = [], 0
    for name, array in arrays.items():
        begin = end + -end % _ALIGNMENT
        end = begin + array.nbytes
        flags = 0 if name in _OPTIONAL else _IS_REQUIRED
        sections.append(
            [SECTION_NUMBERS[name], flags, begin, array.nbytes, array.dtype.str, array.shape, _block_bytes(name)]
        )
    begin = end + -end % _ALIGNMENT
    place = [begin, checksums.nbytes, xxhash.xxh3_64_hexdigest(_as_bytes(checksums))]
    table = {
        "version": _TABLE_VERSION,
        "about": about,
        "checksums": place,
        "sections": sections,
    }
    text = json.dumps(table, separators=(",", ":")).encode()
    return text.ljust(-(-len(text) // _TABLE_MULTIPLE) * _TABLE_MULTIPLE)


def _as_bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write_pieces(file: BinaryIO, pieces: Iterable[bytes | memoryview]) -> FileChecksum:
    """Write pieces at multiples of the alignment."""
    digest, length = hashlib.sha256(), 0
    for piece in pieces:
        for part in (bytes(-length % _ALIGNMENT), piece):
            file.write(part)
            digest.update(part)
            length += len(part)
    return FileChecksum(length, digest.hexdigest())


def _read_table(mapped: mmap.mmap | bytes) -> bytes:
    if mapped[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"it does not begin with {_MAGIC!r}")
    length = _table_length(mapped[len(_MAGIC) : _PREFIX - 8])
    return _checked_table(mapped[_PREFIX : _PREFIX + length], mapped[_PREFIX - 8 : _PREFIX])


def _read_copy(mapped: mmap.mmap | bytes) -> bytes:
    if mapped[-len(_MAGIC) :] != _MAGIC_OF_COPY:
        raise ValueError(f"it does not end with {_MAGIC_OF_COPY!r}")
    length = _table_length(mapped[-_PREFIX + 8 : -len(_MAGIC)])
    return _checked_table(mapped[-_PREFIX - length : -_PREFIX], mapped[-_PREFIX : -_PREFIX + 8])


def _table_length(stored: bytes) -> int:
    length = int.from_bytes(stored, "little")
    if length > _MAX_TABLE_LENGTH:
        raise ValueError(f"its table has {length} bytes")
    return length


def _checked_table(table: bytes, digest: bytes) -> bytes:
    if xxhash.xxh3_64_intdigest(table) != int.from_bytes(digest, "little"):
        raise ValueError("its table differs from what was written")
    return table


def _parse(arrays: MappedArrays, mapped: mmap.mmap | bytes, table: bytes, unverified: bool) -> None:
    parsed, start = json.loads(table), _PREFIX + len(table)
    arrays.about = dict(parsed["about"])
    if parsed["version"] != _TABLE_VERSION:
        raise _newer_error(f"a table of version {parsed['version']}")
    start += -start % _ALIGNMENT
    begin, length, digest = parsed["checksums"]
    checksums = _array(mapped, "<u8", (length // 8,), start + begin)
    is_intact = xxhash.xxh3_64_hexdigest(_as_bytes(checksums)) == digest
    if not is_intact and not unverified:
        raise ValueError("the checksums of its blocks differ from what was written")
    first = 0
    for number, flags, begin, length, dtype, shape, size in parsed["sections"]:
        blocks = -(-length // size)
        first += blocks
        if number not in _NAMES:
            if flags & _IS_REQUIRED:
                raise _newer_error(f"section {number}")
            continue
        array = _array(mapped, dtype, shape, start + begin)
        if array.nbytes != length or first > len(checksums):
            raise ValueError(f"section {number} has {length} bytes")
        arrays.add(_NAMES[number], array, start + begin, checksums[first - blocks : first] if is_intact else None, size)


def _parse_before_checksums(arrays: MappedArrays, mapped: mmap.mmap | bytes) -> None:
    start = len(_MAGIC) + 8
    end = start + _table_length(mapped[len(_MAGIC) : start])
    for name, dtype, shape in json.loads(mapped[start:end]):
        begin = end + -end % _ALIGNMENT
        array = _array(mapped, dtype, shape, begin)
        end = begin + array.nbytes
        arrays.add(name, array, begin, None)
    if end != len(mapped):
        raise ValueError("there are bytes after the last array")


def _array(mapped: mmap.mmap | bytes, dtype: Any, shape: Sequence[Any], offset: int) -> npt.NDArray[Any]:
    if dtype not in _DTYPES or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array has dtype {dtype} and shape {shape}")
    if offset < 0 or offset + math.prod(shape) * np.dtype(dtype).itemsize > len(mapped):
        raise ValueError("an array ends beyond the file")
    return np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)


def _newer_error(what: str) -> IndexFolderError:
    return IndexFolderError(
        f"the folder has a file with {what}, which this version cannot read; install a newer m3-integrations"
    )

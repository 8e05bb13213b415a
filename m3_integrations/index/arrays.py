"""Files of named arrays, written once, synced, and mapped into memory: no value in them is ever executed.

A file is `M3ARRAY1`, the length of the header as 8 little-endian bytes, the header as JSON (a list of name, dtype and
shape), then the arrays, each starting at a multiple of 64 bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.errors import DamagedFolder

_MAGIC = b"M3ARRAY1"
_ALIGNMENT = 64
_LONGEST_HEADER = 1 << 16
_CAN_READ_AHEAD = hasattr(mmap, "MADV_WILLNEED")
_DTYPES = ("<f4", "<f8", "<i4", "<i8", "<u2", "|i1", "|u1")

Arrays = dict[str, npt.NDArray[Any]]


class Mapped(Arrays):
    """The arrays of a mapped file, and where in it each begins."""

    def __init__(self, file: mmap.mmap | bytes) -> None:
        super().__init__()
        self._file = file
        self._begins: dict[str, int] = {}

    def add(self, name: str, dtype: str, shape: Sequence[int], begin: int) -> None:
        self[name] = np.frombuffer(self._file, dtype, math.prod(shape), begin).reshape(shape)
        self._begins[name] = begin

    def read_ahead(self, name: str, rows: slice) -> None:
        """Begin to read these rows of an array: what is not in memory then comes at once and not page by page."""
        row = self[name].nbytes // max(1, len(self[name]))
        begin, length = self._begins[name] + rows.start * row, (rows.stop - rows.start) * row
        before = begin % mmap.PAGESIZE
        if length > 0 and _CAN_READ_AHEAD and isinstance(self._file, mmap.mmap):
            with suppress(OSError):  # a hint: what cannot be read now is told of where it is touched
                self._file.madvise(mmap.MADV_WILLNEED, begin - before, length + before)


class Stamp(NamedTuple):
    """What tells whether a file is still what was written: its length in bytes and its SHA-256."""

    length: int
    checksum: str


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> Stamp:
    """Write a new file and sync it; the folder is to be synced with `sync_folder`. The file must not exist."""
    little = {name: _little(array) for name, array in arrays.items()}
    header = json.dumps([[name, array.dtype.str, array.shape] for name, array in little.items()]).encode()
    with path.open("xb") as file:
        stamp = _write_pieces(file, _MAGIC + len(header).to_bytes(8, "little") + header, little.values())
        file.flush()
        os.fsync(file.fileno())
    return stamp


def map_arrays(path: Path, length: int) -> Mapped:
    """The arrays of a file, mapped and read-only.

    Raises FileNotFoundError, and DamagedFolder where the file is not `length` bytes of what `write_arrays` writes.
    """
    with path.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != length:
            raise damaged(path, f"is {found} bytes long instead of {length}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if length else b""
    try:
        return _parsed(mapped)
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(path, f"is no file of arrays ({error})") from error


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make new names in the folder outlast a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def damaged(path: Path, what: str) -> DamagedFolder:
    return DamagedFolder(
        f"{path} {what}; the index in that folder cannot be trusted any more: put back a copy of the whole folder, "
        "or add the passages to a new one"
    )


def _write_pieces(file: BinaryIO, begin: bytes, arrays: Iterable[npt.NDArray[Any]]) -> Stamp:
    file.write(begin)
    digest, length = hashlib.sha256(begin), len(begin)
    for array in arrays:
        for piece in (bytes(-length % _ALIGNMENT), array.reshape(-1).view(np.uint8).data):
            file.write(piece)
            digest.update(piece)
            length += len(piece)
    return Stamp(length, digest.hexdigest())


def _little(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _parsed(mapped: mmap.mmap | bytes) -> Mapped:
    if mapped[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it begins otherwise")
    start = len(_MAGIC) + 8
    header_length = int.from_bytes(mapped[len(_MAGIC) : start], "little")
    if header_length > _LONGEST_HEADER:
        raise ValueError(f"a header of {header_length} bytes")
    end = start + header_length
    arrays = Mapped(mapped)
    for name, dtype, shape in json.loads(mapped[start:end]):
        if dtype not in _DTYPES or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"an array {name!r} of {dtype} and shape {shape}")
        begin = end + -end % _ALIGNMENT
        end = begin + math.prod(shape) * np.dtype(dtype).itemsize
        if end > len(mapped):
            raise ValueError(f"array {name!r} goes beyond the end")
        arrays.add(name, dtype, shape, begin)
    if end != len(mapped):
        raise ValueError("bytes after the last array")
    return arrays

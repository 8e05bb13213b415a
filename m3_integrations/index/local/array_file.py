"""Memory-mapped files of named arrays, written once; reading them never executes code.

A file consists of `M3ARRAY1`, the length of the header as 8 little-endian bytes, the header as JSON (a list of name,
dtype and shape), and the arrays, each starting at a multiple of 64 bytes.
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
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Arrays
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.core.files import FileChecksum, open_regular_file

_MAGIC = b"M3ARRAY1"
_ALIGNMENT = 64
_MAX_HEADER_LENGTH = 1 << 16
_CAN_READ_AHEAD = hasattr(mmap, "MADV_WILLNEED")
_DTYPES = ("<f4", "<f8", "<i4", "<i8", "<u2", "|i1", "|u1")


class MappedArrays(Arrays):
    """The arrays of a mapped file, by name, with the offset of each in the file."""

    def __init__(self, file: mmap.mmap | bytes) -> None:
        super().__init__()
        self._file = file
        self._offsets: dict[str, int] = {}

    def add(self, name: str, dtype: str, shape: Sequence[int], offset: int) -> None:
        """Map an array at an offset of the file, in bytes."""
        self[name] = np.frombuffer(self._file, dtype, math.prod(shape), offset).reshape(shape)
        self._offsets[name] = offset

    def read_ahead(self, name: str, rows: slice) -> None:
        """Start reading rows of an array from disk, in one request instead of page by page."""
        row_bytes = self[name].nbytes // max(1, len(self[name]))
        begin, length = self._offsets[name] + rows.start * row_bytes, (rows.stop - rows.start) * row_bytes
        in_page = begin % mmap.PAGESIZE
        if length > 0 and _CAN_READ_AHEAD and isinstance(self._file, mmap.mmap):
            with suppress(OSError):  # a hint: a read error is reported when the rows are used
                self._file.madvise(mmap.MADV_WILLNEED, begin - in_page, length + in_page)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> FileChecksum:
    """Write and sync a new file; sync its folder with `sync_folder` afterwards.

    Args:
        path: The file, which must not exist.
        arrays: Arrays by name.

    Returns:
        Length and checksum of the file.
    """
    stored = {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    header = json.dumps([[name, array.dtype.str, array.shape] for name, array in stored.items()]).encode()
    with path.open("xb") as file:
        checksum = _write_pieces(file, _MAGIC + len(header).to_bytes(8, "little") + header, stored.values())
        file.flush()
        os.fsync(file.fileno())
    return checksum


def map_arrays(path: Path, length: int) -> MappedArrays:
    """Map a file of arrays into memory, read-only.

    Args:
        path: The file.
        length: Its expected length in bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFolder: If it has another length, or was not written by `write_arrays`.
    """
    with open_regular_file(path) as file:
        actual = os.fstat(file.fileno()).st_size
        if actual != length:
            raise damaged_file_error(path, f"is {actual} bytes long instead of {length}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if length else b""
    try:
        return _parse(mapped)
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged_file_error(path, f"is not a file of arrays ({error})") from error


def damaged_file_error(path: Path, problem: str) -> DamagedFolder:
    """Return the error for a damaged file of an index folder."""
    return DamagedFolder(
        f"{path} {problem}; the index in that folder is damaged: put back a copy of the whole folder, "
        "or add the passages to a new one"
    )


def _write_pieces(file: BinaryIO, header: bytes, arrays: Iterable[npt.NDArray[Any]]) -> FileChecksum:
    file.write(header)
    digest, length = hashlib.sha256(header), len(header)
    for array in arrays:
        for piece in (bytes(-length % _ALIGNMENT), array.reshape(-1).view(np.uint8).data):
            file.write(piece)
            digest.update(piece)
            length += len(piece)
    return FileChecksum(length, digest.hexdigest())


def _parse(mapped: mmap.mmap | bytes) -> MappedArrays:
    if mapped[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"it does not begin with {_MAGIC!r}")
    start = len(_MAGIC) + 8
    header_length = int.from_bytes(mapped[len(_MAGIC) : start], "little")
    if header_length > _MAX_HEADER_LENGTH:
        raise ValueError(f"its header has {header_length} bytes")
    end = start + header_length
    arrays = MappedArrays(mapped)
    for name, dtype, shape in json.loads(mapped[start:end]):
        if dtype not in _DTYPES or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"array {name!r} has dtype {dtype} and shape {shape}")
        begin = end + -end % _ALIGNMENT
        end = begin + math.prod(shape) * np.dtype(dtype).itemsize
        if end > len(mapped):
            raise ValueError(f"array {name!r} ends beyond the file")
        arrays.add(name, dtype, shape, begin)
    if end != len(mapped):
        raise ValueError("there are bytes after the last array")
    return arrays

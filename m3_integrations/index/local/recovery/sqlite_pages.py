"""Rows in the pages of a SQLite file, read without the tree that leads to them (www.sqlite.org/fileformat2.html)."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_MAGIC = b"SQLite format 3\0"
_HEADER = 100  # bytes of the first page before its tree
_DEFAULT_PAGE = 4096
_TREE_PAGES = frozenset({0x02, 0x05, 0x0A, 0x0D})
_LEAF_OF_TABLE = 0x0D
_LOG_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_INTEGER_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_REAL = 7
_CONSTANTS = {0: None, 8: 0, 9: 1}
_FIRST_BLOB = 12
_FAILURES = (IndexError, ValueError, struct.error)


class StoredRow(NamedTuple):
    """A row as it is stored: an INTEGER PRIMARY KEY is its number, and None among its values."""

    number: int
    values: tuple[Any, ...]


class SqlitePages:
    """The pages of a database, with those that its log replaces.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            is_empty = not path.stat().st_size
            self._data: bytes | mmap.mmap = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        head = bytes(self._data[:_HEADER])
        (size,) = struct.unpack(">H", head[16:18]) if head.startswith(_MAGIC) else (0,)
        self._size = 1 << 16 if size == 1 else size or _DEFAULT_PAGE
        self._usable = self._size - (head[20] if head.startswith(_MAGIC) else 0)
        self._logged = _logged_pages(path.with_name(f"{path.name}-wal"), self._size)
        self._count = max(len(self._data) // self._size, *self._logged, 1)

    def rows(self, *, everywhere: bool = False) -> Iterator[StoredRow]:
        """Iterate over the rows of all tables; some may be damaged, or of an earlier state of the database.

        Args:
            everywhere: Whether to look for rows at every byte, as is done in pages that are no longer recognized.
        """
        free, continued, unknown = self._free_pages(), set[int](), list[int]()
        for number in range(1, self._count + 1):
            page, start = self._page(number), _HEADER if number == 1 else 0
            kind = page[start] if len(page) == self._size else None
            if number not in free and (everywhere or kind not in _TREE_PAGES):
                unknown.append(number)
            elif number not in free and kind == _LEAF_OF_TABLE:
                for place in struct.unpack_from(f">{_cells(page, start)}H", page, start + 8):
                    yield from self._row(page, place, continued)
        for number in unknown:
            if number not in continued:
                page = self._page(number)
                for place in range(len(page)):
                    yield from self._row(page, place, continued)

    def _page(self, number: int) -> bytes:
        logged = self._logged.get(number)
        return self._data[(number - 1) * self._size : number * self._size] if logged is None else logged

    def _free_pages(self) -> set[int]:
        """Return the pages on SQLite's list of free ones, without its beginning, which may be damaged."""
        free: set[int] = set()
        most = self._usable // 4 - 2
        for number in range(2, self._count + 1):
            page = self._page(number)
            following, count = struct.unpack(">2I", page[:8].ljust(8, b"\0"))
            if following <= self._count and 0 < count <= most:
                leaves = struct.unpack_from(f">{count}I", page.ljust(self._size, b"\0"), 8)
                if all(1 < leaf <= self._count for leaf in leaves) and len(set(leaves)) == count:
                    free |= {number, *leaves}
        return free

    def _row(self, page: bytes, place: int, continued: set[int]) -> Iterator[StoredRow]:
        """Yield the row of a cell of a table's leaf, if it can be read; note the pages on which it continues."""
        try:
            length, place = _varint(page, place)
            number, place = _varint(page, place)
            payload, pages = self._payload(page, place, length)
            values = _values(payload)
        except _FAILURES:
            return
        continued |= pages
        yield StoredRow(number - (1 << 64) if number >> 63 else number, values)

    def _payload(self, page: bytes, place: int, length: int) -> tuple[bytes, set[int]]:
        if not 0 < length <= self._count * self._size:
            raise ValueError
        own = length
        if length > self._usable - 35:
            least = (self._usable - 12) * 32 // 255 - 23
            own = least + (length - least) % (self._usable - 4)
            own = own if own <= self._usable - 35 else least
        payload, pages = [page[place : place + own]], set[int]()
        left = length - own
        following = struct.unpack_from(">I", page, place + own)[0] if left else 0
        while left:
            if following in pages or not 1 < following <= self._count:
                raise ValueError
            pages.add(following)
            part = self._page(following)
            payload.append(part[4 : 4 + min(left, self._usable - 4)])
            left -= min(left, self._usable - 4)
            (following,) = struct.unpack_from(">I", part)
        found = b"".join(payload)
        if len(found) != length:
            raise ValueError
        return found, pages


def _cells(page: bytes, start: int) -> int:
    (count,) = struct.unpack_from(">H", page, start + 3)
    return int(min(count, (len(page) - start - 8) // 2))


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return an integer of 1 to 9 bytes, and the place after it."""
    value = 0
    for i in range(8):
        byte = data[place + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + i + 1
    return value << 8 | data[place + 8], place + 9


def _values(record: bytes) -> tuple[Any, ...]:
    end, place = _varint(record, 0)
    if end > len(record):
        raise ValueError
    kinds, values, at = list[int](), list[Any](), end
    while place < end:
        kind, place = _varint(record, place)
        kinds.append(kind)
    for kind in kinds:
        size = _INTEGER_SIZES.get(kind, 8 if kind == _REAL else max(0, kind - _FIRST_BLOB) // 2)
        data = record[at : at + size]
        if len(data) != size:
            raise ValueError
        values.append(_value(kind, data))
        at += size
    return tuple(values)


def _value(kind: int, data: bytes) -> Any:
    if kind in _CONSTANTS:
        return _CONSTANTS[kind]
    if kind in _INTEGER_SIZES:
        return int.from_bytes(data, "big", signed=True)
    if kind == _REAL:
        return struct.unpack(">d", data)[0]
    if kind < _FIRST_BLOB:
        raise ValueError
    return data.decode() if kind % 2 else data


def _logged_pages(path: Path, size: int) -> dict[int, bytes]:
    """Return the pages in a log up to its last commit, by number."""
    committed: dict[int, bytes] = {}
    if not path.exists():
        return committed
    data, found = path.read_bytes(), dict[int, bytes]()
    if len(data) < _LOG_HEADER.size:
        return committed
    _, _, page_size, _, *salts, _, _ = _LOG_HEADER.unpack_from(data)
    step = _FRAME.size + size
    for place in range(_LOG_HEADER.size, len(data) - step + 1, step):
        number, pages_after, *stated = _FRAME.unpack_from(data, place)
        if page_size != size or stated[:2] != salts:
            break
        found[number] = data[place + _FRAME.size : place + step]
        if pages_after:
            committed |= found
    return committed

"""Disks as a power cut may leave them, rebuilt from recorded file operations.

Bytes that were synced are kept. Of the writes to a file since its last sync, each is kept, lost, or torn at sectors;
of the changes to a folder's names since its last sync, each is kept or lost.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

SECTOR = 512
CHANGES = {"open", "write", "truncate", "sync", "rename", "unlink", "mkdir"}
Lost = Callable[[], bool]


class Operation(NamedTuple):
    """One recorded call: its kind, the file handle, an offset or length, the flags of open, the path, written bytes."""

    kind: str
    handle: int
    offset: int
    flags: int
    path: str
    data: bytes


def read_trace(path: Path) -> list[Operation]:
    """Read what the shim recorded."""
    content, operations, at = path.read_bytes(), [], 0
    while at < len(content):
        end = content.index(b"\n", at)
        kind, handle, offset, length, flags, name = content[at:end].decode().split(" ", 5)
        at = end + 1 + int(length)
        operations.append(Operation(kind, int(handle), int(offset), int(flags), name, content[end + 1 : at]))
    return operations


class File:
    """The bytes of a file: those on disk, and the writes since its last sync."""

    def __init__(self, *, is_folder: bool = False) -> None:
        self.is_folder = is_folder
        self.durable = b""
        self.unsynced: list[tuple[int, bytes | None]] = []

    def live(self) -> bytes:
        return self.after(lambda: False, lambda: False)

    def after(self, is_lost: Lost, is_torn: Lost, choice: random.Random | None = None) -> bytes:
        content = bytearray(self.durable)
        for offset, data in self.unsynced:
            if is_lost():
                continue
            if data is None:
                del content[offset:]
                content.extend(bytes(offset - len(content)))
                continue
            parts = [(offset, data)] if not is_torn() or choice is None else _sectors(offset, data, choice)
            for begin, part in parts:
                content.extend(bytes(max(0, begin + len(part) - len(content))))
                content[begin : begin + len(part)] = part
        return bytes(content)


def _sectors(offset: int, data: bytes, choice: random.Random) -> list[tuple[int, bytes]]:
    """Return some sectors of a write."""
    bounds = [offset, *range(offset - offset % SECTOR + SECTOR, offset + len(data), SECTOR), offset + len(data)]
    parts = [(begin, data[begin - offset : end - offset]) for begin, end in pairwise(bounds)]
    return [part for part in parts if choice.random() < 0.5]


class Disk:
    """A folder and its subfolders: what is on disk, and what the processes saw.

    Args:
        root: The folder, which is on disk.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.names: dict[str, File] = {root: File(is_folder=True)}
        self._durable = dict(self.names)
        self._unsynced: list[tuple[str | None, str | None, File]] = []  # old name, new name
        self._handles: dict[int, File] = {}
        self._folders: dict[int, str] = {}

    def apply(self, operation: Operation, *, is_ignored: bool = False) -> None:
        """Carry out an operation; the sync that is ignored is one that a program forgot."""
        kind, handle, offset, flags, path, data = operation
        match kind:
            case "open":
                if path not in self.names:
                    self._rename(None, path, File())
                file = self.names[path]
                if flags & os.O_TRUNC:
                    file.unsynced.append((0, None))
                self._handles[handle], self._folders[handle] = file, path
            case "mkdir":
                self._rename(None, path, File(is_folder=True))
            case "unlink":
                self._rename(path, None, self.names[path])
            case "rename":
                self._rename(path, data.decode(), self.names[path])
            case "write":
                self._handles[handle].unsynced.append((offset, data))
            case "truncate":
                self._handles[handle].unsynced.append((offset, None))
            case "sync":
                if not is_ignored:
                    self._sync(handle)
            case "unexpected":
                raise ValueError(f"a call that is not recorded writes to {path}")

    def _rename(self, old: str | None, new: str | None, file: File) -> None:
        self._unsynced.append((old, new, file))
        _rename(self.names, old, new, file)

    def _sync(self, handle: int) -> None:
        file, path = self._handles[handle], self._folders[handle]
        if not file.is_folder:
            file.durable, file.unsynced = file.live(), []
            return
        changes, self._unsynced = self._unsynced, []
        for old, new, changed in changes:
            if os.path.dirname(old or new or "") == path:  # noqa: PTH120  # a name on the disk that is rebuilt
                _rename(self._durable, old, new, changed)
            else:
                self._unsynced.append((old, new, changed))

    def write(self, target: Path, is_lost: Lost, is_name_lost: Lost, is_torn: Lost, choice: random.Random) -> None:
        """Write one disk that a power cut may leave now into a folder that does not exist."""
        names = dict(self._durable)
        for change in self._unsynced:
            if not is_name_lost():
                _rename(names, *change)
        for path in sorted(names):
            place = target / os.path.relpath(path, self.root)
            if not place.parent.exists() and path != self.root:
                continue  # the folder is lost
            if names[path].is_folder:
                place.mkdir(parents=True)
            else:
                place.write_bytes(names[path].after(is_lost, is_torn, choice))

    def contents(self) -> dict[str, bytes]:
        """Return the files as the processes saw them."""
        return {path: file.live() for path, file in self.names.items() if not file.is_folder}


def _rename(names: dict[str, File], old: str | None, new: str | None, file: File) -> None:
    if old is not None and names.get(old) is file:
        del names[old]
    if new is not None:
        names[new] = file


def outcomes(seed: int) -> Iterator[tuple[str, Lost, Lost, Lost]]:
    """Yield kinds of power cuts: which writes and which names are lost, and which writes are torn."""
    choice = random.Random(seed)
    never, always, half = (lambda: False), (lambda: True), (lambda: choice.random() < 0.5)
    yield "all kept", never, never, never
    yield "all lost", always, always, never
    yield "writes lost", always, never, never
    yield "names lost", never, always, never
    yield "some lost and torn", half, half, half
    yield "all torn", never, half, always

"""Durable files: atomic replacement, checksums, synced folders."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from m3_integrations.core.errors import DamagedFolder, IndexFolderError


class FileChecksum(NamedTuple):
    """Length of a file in bytes and its SHA-256 as 64 hex digits."""

    length: int
    checksum: str


def replace_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file atomically.

    The text is written under a temporary name, which is then renamed.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)  # it may be a link, to another file
    with temporary.open("x", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as IndexFolderError with the path and a remedy."""
    try:
        yield
    except OSError as error:
        raise os_error(path, error, "written") from error


def os_error(path: Path, error: OSError, action: str = "read or written") -> IndexFolderError:
    """Return the error for a file that cannot be read or written; `path` if the system names no file."""
    return IndexFolderError(
        f"{error.filename or path} cannot be {action}: {error.strerror or error}; check the space on its disk, its "
        "permissions and the disk, then repeat: what was committed is kept"
    )


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, with names that survive a power failure; one that exists is left as it is."""
    created = list(takewhile(lambda each: not each.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(created):
        sync_folder(each.parent)


def open_regular_file(path: Path) -> FileIO:
    """Open a file for reading; a named pipe would wait for a writer, a device never ends.

    Raises:
        DamagedFolder: If it is no regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    opened = os.open(path, flags)
    if stat.S_ISREG(os.fstat(opened).st_mode):
        return FileIO(opened)
    os.close(opened)
    raise DamagedFolder(f"{path} is no regular file; put back a copy of the whole folder")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with open_regular_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that new names in it survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Connections to SQLite databases in folders that others may have written, or that may only be read."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from m3_integrations.core.errors import DamagedFolder, IndexFolderError, M3Error, WriterBusy
from m3_integrations.core.files import os_error

_COMPANIONS = ("", "-wal", "-shm", "-journal")
_LIMITS = {sqlite3.SQLITE_LIMIT_ATTACHED: 0, sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1, sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50}
_STEPS = 1_000_000  # of SQLite's virtual machine, between two calls of the progress handler
_MIN_CALLS = 200
_BYTES_PER_CALL = 1 << 14  # a row needs some bytes, and far fewer than 60 steps a byte


class Connection(sqlite3.Connection):
    """A connection with a limit on the work of a scan, which a forged database could make endless.

    Attributes:
        is_read_only: Whether the database cannot be written.
        copied: Folder of the copy that is read, if the database itself cannot be.
        has_verified_ids: Whether all ids of a catalog were compared with their checksum over this connection.
    """

    is_read_only = False
    has_verified_ids = False
    copied: tempfile.TemporaryDirectory[str] | None = None

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Interrupt the statements of the block if they take longer than a database of this size can need."""
        (pages,), (page_size,) = (self.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        calls = iter(range(_MIN_CALLS + pages * page_size // _BYTES_PER_CALL))
        self.set_progress_handler(lambda: next(calls, None) is None, _STEPS)
        try:
            yield
        finally:
            self.set_progress_handler(None, 0)


def connect(path: Path | None, timeout: float) -> Connection:
    """Connect to a database, read-only if its folder cannot be written; transactions are explicit.

    Args:
        path: The file, absolute; it is created if missing. None for a database in memory.
        timeout: Seconds to wait for a lock.

    Raises:
        IndexFolderError: If the file or one that SQLite keeps with it is a link or no regular file.
    """
    if path is None:
        connection = _connect(":memory:", timeout)
    else:
        for suffix in _COMPANIONS:
            _check_regular_file(path.with_name(path.name + suffix))
        connection = _connect_read_only(path, timeout) if is_read_only(path) else _connect(path, timeout)
        connection.is_read_only = is_read_only(path)
    for limit, value in _LIMITS.items():
        connection.setlimit(limit, value)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def is_read_only(path: Path) -> bool:
    """Return whether a database cannot be written: SQLite needs to write the file and its folder."""
    if not os.access(path.parent, os.W_OK):
        return True
    return os.access(path, os.F_OK) and not os.access(path, os.W_OK)  # a failing disk is reported when it is read


@contextmanager
def translate_errors(path: Path, timeout: float, damaged: Callable[[str], DamagedFolder]) -> Iterator[None]:
    """Raise errors of SQLite and of the file system as ours, except FileNotFoundError.

    Args:
        path: The database.
        timeout: Seconds that a write waits.
        damaged: Makes the error for a damaged database from what is wrong with it.
    """
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a damaged name can make SQLite's message undecodable
        raise _translate(error, path, timeout, damaged) from error
    except UnicodeEncodeError as error:
        raise IndexFolderError(
            f"{path} cannot hold {error.object!r:.80}, which has half a surrogate pair; repair such ids and texts with "
            "text.encode('utf-8', 'replace').decode()"
        ) from error
    except OSError as error:
        if isinstance(error, (FileNotFoundError, M3Error)):
            raise
        raise os_error(path, error) from error


def read_only_error(path: Path) -> IndexFolderError:
    """Return the error for a write to a database that may only be read."""
    return IndexFolderError(
        f"{path} may only be read: the file or its folder is not writable; change its permissions, or write to a copy "
        "of the folder"
    )


def _translate(
    error: Exception, path: Path, timeout: float, damaged: Callable[[str], DamagedFolder]
) -> IndexFolderError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return WriterBusy(
            f"another process has been writing to {path} for longer than {timeout:g} s; wait for it to end, or wait "
            "longer with LocalIndex.open(..., write_timeout=...)"
        )
    if code == sqlite3.SQLITE_READONLY:
        return read_only_error(path)
    if code == sqlite3.SQLITE_INTERRUPT:
        return damaged("reading it does not end")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM):
        return IndexFolderError(
            f"{path} cannot be read or written: {error}; check the space on its disk, its permissions and the disk, "
            "then repeat: what was committed is kept"
        )
    return damaged(f"SQLite reports: {error}")


def _check_regular_file(path: Path) -> None:
    """Raise IndexFolderError for a link, which could lead a write elsewhere, and for a device or a pipe."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
        raise IndexFolderError(f"{path} is {kind}, which an index does not write to; copy the file itself there")


def _connect(database: Path | str, timeout: float) -> Connection:
    return sqlite3.connect(
        database,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
        uri=isinstance(database, str),
    )


def _connect_read_only(path: Path, timeout: float) -> Connection:
    """Connect to a database that another user may be writing, or that nothing can write."""
    wal, shm = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    has_log = wal.exists() and wal.stat().st_size > 0
    if not (has_log or shm.exists()):
        return _connect(f"{path.as_uri()}?mode=ro&immutable=1", timeout)
    connection = _connect(f"{path.as_uri()}?mode=ro", timeout)
    try:
        connection.execute("PRAGMA user_version").fetchone()
        return connection
    except sqlite3.OperationalError:  # the log needs a file of shared memory, which cannot be created there
        connection.close()
        return _connect_copy(path, wal, timeout)


def _connect_copy(path: Path, wal: Path, timeout: float) -> Connection:
    folder = tempfile.TemporaryDirectory(prefix="m3-read-only-", ignore_cleanup_errors=True)
    for each in (path, wal):
        if each.exists():
            shutil.copyfile(each, Path(folder.name, each.name))
    connection = _connect(Path(folder.name, path.name), timeout)
    connection.copied = folder
    return connection

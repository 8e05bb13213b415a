"""Rewriting of a database and its log without the rows that were deleted from it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from m3_integrations.core.errors import WriterBusy
from m3_integrations.core.sqlite.connection import Connection


def rewrite(connection: Connection, path: Path) -> None:
    """Rewrite a database, so that neither its file nor its log holds anything of deleted rows.

    It takes as much disk space as the database twice, for the time of the call.

    Args:
        connection: A connection outside a transaction.
        path: The file, for the message.

    Raises:
        WriterBusy: If another process reads an earlier state for longer than the connection waits for a lock.
    """
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)  # VACUUM attaches the database that it writes
    try:
        connection.execute("VACUUM")
    finally:
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    is_busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_busy:
        raise WriterBusy(
            f"{path}-wal still holds deleted rows, because another process reads an earlier state of the database; "
            "repeat the call when its search or write has ended"
        )

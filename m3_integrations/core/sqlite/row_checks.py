"""Checksums (XXH3) of the rows of a database, in a table of their own that temporary triggers keep up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import xxhash

CHECKS_TABLE = "checks"
CHECKS_COLUMNS = ("owner", "id", "head", "body")
CREATE_CHECKS = f"""CREATE TABLE IF NOT EXISTS {CHECKS_TABLE} (
  owner TEXT NOT NULL, id TEXT NOT NULL, head INTEGER NOT NULL, body INTEGER NOT NULL, PRIMARY KEY (owner, id)
)"""
_HASH = "hash_row"
_SIGNED = (1 << 63) - 1


class CheckedTable(NamedTuple):
    """A table of which each row has two checksums, so that reading its small columns does not read the large ones.

    Attributes:
        name: The table.
        key: Columns that identify a row.
        head: Columns of the first checksum, the key among them; only these are updated.
        body: Columns of the second.
    """

    name: str
    key: Sequence[str]
    head: Sequence[str]
    body: Sequence[str] = ()

    def hashes(self, row: str) -> tuple[str, str, str]:
        """Return SQL for id, head and body of a row."""
        id, head, body = (", ".join(f"{row}.{name}" for name in names) for names in (self.key, self.head, self.body))
        return f"CAST({id} AS TEXT)" if len(self.key) == 1 else f"{_HASH}({id})", f"{_HASH}({head})", f"{_HASH}({body})"


def prepare(connection: sqlite3.Connection) -> None:
    """Make the hash available on a connection, before any other function here."""
    connection.create_function(_HASH, -1, _hash_row, deterministic=True)


def maintain(connection: sqlite3.Connection, tables: Collection[CheckedTable]) -> None:
    """Let every later write of this connection update the checksums; call it in each write transaction.

    Rows of a database without checksums get them now. The triggers are temporary: the file has none.
    """
    names = _tables(connection)
    connection.execute(CREATE_CHECKS)
    for table in (table for table in tables if table.name in names):
        new, (old, *_) = table.hashes("new"), table.hashes("old")
        insert = f"INSERT OR REPLACE INTO {CHECKS_TABLE} VALUES ('{table.name}', {', '.join(new)})"
        if CHECKS_TABLE not in names:
            own = ", ".join(table.hashes(table.name))
            connection.execute(f"INSERT INTO {CHECKS_TABLE} SELECT '{table.name}', {own} FROM {table.name}")
        where = f"owner = '{table.name}' AND id = {old}"
        changes = {
            "INSERT": insert,
            f"UPDATE OF {', '.join(table.head)}": f"UPDATE {CHECKS_TABLE} SET head = {new[1]} WHERE {where}",
            "DELETE": f"DELETE FROM {CHECKS_TABLE} WHERE {where}",
        }
        for event, change in changes.items():
            connection.execute(
                f"CREATE TEMP TRIGGER IF NOT EXISTS {table.name}_{event[:6]} AFTER {event} ON main.{table.name} "
                f"BEGIN {change}; END"
            )


def find_row_fault(connection: sqlite3.Connection, table: CheckedTable, *, with_body: bool) -> str:
    """Return what differs from the checksums of a table, or an empty string.

    Args:
        connection: A prepared connection.
        table: The table; one that is missing, or from before there were checksums, has no fault.
        with_body: Whether the large columns are compared too.
    """
    if not {table.name, CHECKS_TABLE} <= _tables(connection):
        return ""
    id, head, body = table.hashes(table.name)
    wanted, found = ("head, body", f"{head}, {body}") if with_body else ("head", head)
    (changed,) = connection.execute(
        f"SELECT count(*) FROM {table.name} WHERE ({found}) IS NOT "
        f"(SELECT {wanted} FROM {CHECKS_TABLE} WHERE owner = '{table.name}' AND id = {id})"
    ).fetchone()
    if changed:
        return f"{changed} rows of its table {table.name!r} differ from what was written"
    counts = f"(SELECT count(*) FROM {table.name}), (SELECT count(*) FROM {CHECKS_TABLE} WHERE owner = '{table.name}')"
    rows, known = connection.execute(f"SELECT {counts}").fetchone()
    return "" if rows == known else f"its table {table.name!r} has {rows} rows of the {known} that were written"


def _tables(connection: sqlite3.Connection) -> set[Any]:
    return {name for (name,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}


def _hash_row(*values: Any) -> int:
    """Hash the values of a row with their types and lengths, as a positive 64-bit integer."""
    hashed = xxhash.xxh3_64()
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        hashed.update(f"{type(value).__name__} {len(data)} ".encode())
        hashed.update(data)
    return hashed.intdigest() & _SIGNED

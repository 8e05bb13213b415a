"""A new catalog of the rows found in the pages of one that SQLite cannot read."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from m3_integrations.core.errors import M3Error
from m3_integrations.index.local.recovery.sqlite_pages import SqlitePages, StoredRow
from m3_integrations.index.local.tables.checks import CatalogChecks, hash_rows, sum_slots
from m3_integrations.index.local.tables.layout import CREATE, PLAN_TABLE, STATE_COLUMNS
from m3_integrations.index.local.tables.rows import FILE_NAME, is_segment_name, verify_row

_PASSAGE_COLUMNS = 6
_SEGMENT_COLUMNS = 7
_MODE_COLUMNS = 4


class _SmallRows(NamedTuple):
    """Rows of the small tables.

    Attributes:
        state: The newest row of `state` that fits its checksum; None if there is none.
        modes: Rows of `modes` that fit the checksum of the table.
        segments: The same of `segments`.
        plan: The same of `plan`.
        deleted: Slots of passages that were deleted.
    """

    state: tuple[Any, ...] | None
    modes: list[tuple[Any, ...]]
    segments: list[tuple[Any, ...]]
    plan: list[tuple[Any, ...]]
    deleted: frozenset[int]


@contextmanager
def salvaged_catalog(folder: Path) -> Iterator[Path]:
    """Give a temporary folder with a catalog of the intact rows in the pages of a damaged one.

    A passage is taken if its text, metadata and id fit their checksums and it is not recorded as deleted.
    """
    pages = SqlitePages(folder / FILE_NAME)
    small = _small_rows(pages)
    with TemporaryDirectory(prefix="m3-catalog-", ignore_cleanup_errors=True) as place:
        with closing(sqlite3.connect(Path(place, FILE_NAME), isolation_level=None)) as catalog:
            catalog.execute("BEGIN")
            _create(catalog, small)
            _insert(catalog, pages.rows(), small.deleted)
            expected = CatalogChecks.unpack(small.state[-1]) if small.state else None
            if expected is not None and expected.passages > _count(catalog):
                _insert_missing(catalog, pages, small.deleted, expected)
            catalog.execute("COMMIT")
        yield Path(place)


def _create(catalog: sqlite3.Connection, small: _SmallRows) -> None:
    for statement in CREATE.split(";\n"):
        catalog.execute(statement, ["float32"] * statement.count("?"))
    if small.state is not None:
        catalog.execute("DELETE FROM state")
        catalog.execute(f"INSERT INTO state VALUES ({', '.join('?' * STATE_COLUMNS)})", small.state)
    for table, rows in (("modes", small.modes), ("segments", small.segments)):
        for row in rows:
            catalog.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    if small.plan:
        catalog.execute(PLAN_TABLE)
        catalog.execute("INSERT INTO plan VALUES (?)", small.plan[0])


def _insert(catalog: sqlite3.Connection, rows: Iterable[StoredRow], deleted: frozenset[int]) -> None:
    for row in rows:
        passage = (row.number, *row.values[1:])
        if row.number not in deleted and _is_passage(row) and _is_intact(passage):
            catalog.execute("DELETE FROM passages WHERE id = ? AND slot < ?", (passage[1], row.number))
            catalog.execute("INSERT OR IGNORE INTO passages VALUES (?, ?, ?, ?, ?, ?)", passage)


def _insert_missing(
    catalog: sqlite3.Connection, pages: SqlitePages, deleted: frozenset[int], expected: CatalogChecks
) -> None:
    """Look for passages in pages whose list of rows is damaged, and take them if they complete the catalog."""
    catalog.execute("SAVEPOINT found")
    _insert(catalog, pages.rows(everywhere=True), deleted)
    slots = np.array([slot for (slot,) in catalog.execute("SELECT slot FROM passages")], np.int64)
    if len(slots) > expected.passages or (len(slots) == expected.passages and sum_slots(slots) != expected.slot_sum):
        catalog.execute("ROLLBACK TO found")  # some were deleted, and are not recorded so any more


def _count(catalog: sqlite3.Connection) -> int:
    return int(catalog.execute("SELECT count(*) FROM passages").fetchone()[0])


def _is_passage(row: StoredRow) -> bool:
    if len(row.values) != _PASSAGE_COLUMNS:
        return False
    slot, id, text, metadata, hash, checks = row.values
    are_bytes = all(isinstance(each, bytes) for each in (id, text, metadata))
    return slot is None and are_bytes and isinstance(hash, str) and (checks is None or isinstance(checks, bytes))


def _is_intact(passage: tuple[Any, ...]) -> bool:
    id, problem = verify_row(passage)
    return id is not None and not problem


def _small_rows(pages: SqlitePages) -> _SmallRows:
    """Read the small tables; rows of other tables may look the same, and do not fit their checksums."""
    by_width: dict[int, list[StoredRow]] = {}
    for row in pages.rows():
        if not _is_passage(row):
            by_width.setdefault(len(row.values), []).append(row)
    states = [row.values for row in by_width.get(STATE_COLUMNS, ()) if _is_state(row.values)]
    state = max(states, key=lambda values: values[0], default=None)
    if state is None:
        return _SmallRows(None, [], [], [], _deleted(by_width.get(2, ())))
    checks = CatalogChecks.unpack(state[-1])
    modes = [row.values for row in by_width.get(_MODE_COLUMNS, ())]
    rows = {row.number: (row.number, *row.values[1:]) for row in by_width.get(_SEGMENT_COLUMNS, ()) if _is_segment(row)}
    segments = [rows[number] for number in sorted(rows)]
    plan = next(([row.values] for row in by_width.get(1, ()) if hash_rows([row.values]) == checks.plan), [])
    return _SmallRows(
        state,
        modes if hash_rows(modes) == checks.modes else [],
        segments if hash_rows(segments) == checks.segments else [],
        plan,
        _deleted(by_width.get(2, ())),
    )


def _is_state(values: tuple[Any, ...]) -> bool:
    try:
        return CatalogChecks.unpack(values[-1]).is_of_state(values[:-1])
    except (struct.error, TypeError, M3Error):
        return False


def _is_segment(row: StoredRow) -> bool:
    return row.values[0] is None and is_segment_name(row.values[2])


def _deleted(rows: Iterable[StoredRow]) -> frozenset[int]:
    """Return the slots of tombstones: their generations are the only other column."""
    return frozenset(row.number for row in rows if row.values[0] is None and isinstance(row.values[1], int))

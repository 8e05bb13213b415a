"""Schema of the nudge ledger that an index folder may hold, and removal of passages and questions from it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from m3_integrations.core.errors import DamagedFolder, IndexFolderError
from m3_integrations.core.files import os_error
from m3_integrations.core.sqlite.connection import Connection, connect, read_only_error, translate_errors
from m3_integrations.core.sqlite.rewriting import rewrite
from m3_integrations.core.sqlite.row_checks import (
    CHECKS_COLUMNS,
    CHECKS_TABLE,
    CheckedTable,
    find_row_fault,
    maintain,
    prepare,
)
from m3_integrations.core.sqlite.schema import Schema

LEDGER_NAME = "nudges.sqlite"
LEDGER_APPLICATION = 0x4D334E55  # 0 in ledgers from before it was set
LEDGER_TABLES = Schema(
    {
        "about": ("name", "value"),
        "queries": (
            *("number", "id", "role", "text", "relevant", "since", "until"),
            *("dense", "tokens", "weights", "vectors"),
            "added",  # ledgers from before it have none until questions are recorded
        ),
        "originals": ("passage", "mode", "content", "places", "vectors"),
        "versions": ("number", "made", "asked", "moves", "figures"),
        "feedback": ("number", "time", "query", "passage", "useful"),  # there since the first judgement
        CHECKS_TABLE: CHECKS_COLUMNS,  # ledgers from before it have none until they are written
    }
)
REQUIRED_TABLES = LEDGER_TABLES.columns.keys() - {"feedback", CHECKS_TABLE}
_KEYS = {"about": ("name",), "originals": ("passage", "mode")}
_LARGE = {"queries": ("dense", "tokens", "weights", "vectors", "added")}
CHECKED_TABLES = {
    name: CheckedTable(
        name,
        _KEYS.get(name, ("number",)),
        [column for column in columns if column not in _LARGE.get(name, ())],
        _LARGE.get(name, ()),
    )
    for name, columns in LEDGER_TABLES.columns.items()
    if name != CHECKS_TABLE
}
CREATE_LEDGER = f"""
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE queries (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL, role TEXT NOT NULL, text TEXT NOT NULL, relevant TEXT NOT NULL,
  since INTEGER NOT NULL, until INTEGER, dense BLOB, tokens BLOB, weights BLOB, vectors BLOB, added TEXT
);
CREATE TABLE originals (
  passage TEXT NOT NULL, mode TEXT NOT NULL, content TEXT NOT NULL, places BLOB NOT NULL, vectors BLOB NOT NULL,
  PRIMARY KEY (passage, mode)
);
CREATE TABLE versions (
  number INTEGER PRIMARY KEY, made TEXT NOT NULL, asked TEXT NOT NULL, moves TEXT NOT NULL, figures TEXT NOT NULL
);
PRAGMA application_id = {LEDGER_APPLICATION}
"""
CREATE_FEEDBACK = """CREATE TABLE IF NOT EXISTS feedback (
  number INTEGER PRIMARY KEY, time TEXT NOT NULL, query TEXT, passage TEXT NOT NULL, useful INTEGER NOT NULL
)"""
_INCOMPLETE = "incomplete"  # in the table about: versions that cannot be computed again, as a JSON list


def ledger_file(folder: Path, fingerprint: str) -> Path:
    """Return the file of the ledger for an encoder: one of its own after `reencode`, otherwise the first.

    Raises:
        IndexFolderError: If the folder cannot be read.
    """
    own = folder / own_ledger_name(fingerprint)
    try:
        return own if own.is_file() else folder / LEDGER_NAME
    except OSError as error:
        raise os_error(own, error) from error


def ledgers(folder: Path) -> list[Path]:
    """Return the ledgers in an index folder: one of each encoder that it had."""
    return sorted(folder.glob(f"{Path(LEDGER_NAME).stem}*.sqlite"))


def own_ledger_name(fingerprint: str) -> str:
    """Return the name of the ledger that `reencode` writes for an encoder."""
    name, _, ending = LEDGER_NAME.rpartition(".")
    return f"{name}-{fingerprint[:12]}.{ending}"


def forget_passages(path: Path, ids: Collection[str], timeout: float) -> None:
    """Remove passages from a ledger: original vectors, judgements, and every question that one of them answers.

    When it returns, nothing of them is left in the file, nor in SQLite's log.

    Args:
        path: File of the ledger; nothing is done if there is none.
        ids: Ids of the passages.
        timeout: Seconds to wait for another process.

    Raises:
        WriterBusy: If another process uses the ledger for longer.
        IndexFolderError: If the file is no ledger, may only be read, or is damaged.
    """
    with translate_errors(path, timeout, partial(damaged_ledger_error, path)):
        if not ids or not path.exists():
            return
        with closing(connect(path, timeout)) as ledger:
            prepare(ledger)
            _forget(ledger, path, ids)


def _forget(ledger: Connection, path: Path, ids: Collection[str]) -> None:
    if ledger.is_read_only:
        raise read_only_error(path)
    _check_ledger(ledger, path)
    ledger.execute("BEGIN IMMEDIATE")
    try:
        maintain_checks(ledger)
        remove_passages(ledger, ids)
        ledger.execute("COMMIT")
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged_ledger_error(path, f"a stored value cannot be read ({error})") from error
    finally:
        ledger.rollback()
    rewrite(ledger, path)


def maintain_checks(ledger: Connection) -> None:
    """Let the writes of an open transaction update the checksums of rows; a ledger without them gets them now."""
    columns = {row[1] for row in ledger.execute("PRAGMA table_info(queries)")}
    if not columns:  # not created yet
        return
    if "added" not in columns:  # from before it was recorded
        ledger.execute("ALTER TABLE queries ADD COLUMN added TEXT")
    maintain(ledger, CHECKED_TABLES.values())


def remove_passages(ledger: Connection, ids: Collection[str]) -> None:
    """Delete original vectors and judgements of passages, and questions that they answer, in an open transaction.

    Raises:
        ValueError: If a row differs from its checksum.
    """
    wanted = frozenset(ids)
    for table in CHECKED_TABLES.values():
        fault = find_row_fault(ledger, table, with_body=False)
        if fault:
            raise ValueError(fault)
    with ledger.limited():
        passages = {row[0] for row in ledger.execute("SELECT passage FROM originals")} & wanted
        questions = ledger.execute("SELECT number, relevant FROM queries").fetchall()
    ledger.executemany("DELETE FROM originals WHERE passage = ?", ((passage,) for passage in passages))
    remove_questions(ledger, (number for number, relevant in questions if not wanted.isdisjoint(_answers(relevant))))
    if has_feedback(ledger):
        _remove_feedback(ledger, wanted)


def has_feedback(ledger: Connection) -> bool:
    """Return whether a ledger has the table of judgements."""
    named = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'feedback'"
    return ledger.execute(named).fetchone() is not None


def _remove_feedback(ledger: Connection, passages: frozenset[str]) -> None:
    """Delete the judgements of passages, and all of queries for which one of them is useful."""
    with ledger.limited():
        rows = ledger.execute("SELECT number, query, passage, useful FROM feedback").fetchall()
    queries = {query for _, query, passage, useful in rows if passage in passages and useful} - {None}
    numbers = [(number,) for number, query, passage, _ in rows if passage in passages or query in queries]
    ledger.executemany("DELETE FROM feedback WHERE number = ?", numbers)


def remove_questions(ledger: Connection, numbers: Iterable[int]) -> int:
    """Delete questions by number, in an open transaction; versions that they belong to are recorded as incomplete.

    Returns:
        The number of questions deleted.
    """
    count, versions = 0, incomplete_versions(ledger)
    for number in numbers:
        with ledger.limited():
            versions |= {
                version
                for (version,) in ledger.execute(
                    "SELECT versions.number FROM versions JOIN queries ON since <= versions.number "
                    "AND (until IS NULL OR until > versions.number) WHERE queries.number = ?",
                    (number,),
                )
            }
        count += ledger.execute("DELETE FROM queries WHERE number = ?", (number,)).rowcount
    if count:
        value = json.dumps(sorted(versions))
        ledger.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (_INCOMPLETE, value))
    return count


def incomplete_versions(ledger: Connection) -> set[int]:
    """Return the numbers of the versions of which questions were deleted."""
    found = ledger.execute("SELECT value FROM about WHERE name = ?", (_INCOMPLETE,)).fetchone()
    versions = [] if found is None else json.loads(found[0])
    if not isinstance(versions, list) or not all(type(version) is int for version in versions):
        raise ValueError(f"{found[0]!r:.80} is no list of versions")
    return set(versions)


def find_ledger_fault(path: Path) -> str:
    """Return what is wrong with a ledger, or an empty string."""
    try:
        with closing(connect(path, 0)) as ledger:
            prepare(ledger)
            _check_ledger(ledger, path)
            faults = [fault for (fault,) in ledger.execute("PRAGMA integrity_check(3)") if fault != "ok"]
            if faults:
                return f"SQLite reports: {'; '.join(faults)}"
            found = (find_row_fault(ledger, table, with_body=True) for table in CHECKED_TABLES.values())
            return next(filter(None, found), "")
    except (IndexFolderError, sqlite3.Error, UnicodeDecodeError) as error:
        return str(error).removeprefix(f"{path} is damaged: ").partition("; put back")[0]


def damaged_ledger_error(path: Path | None, problem: str) -> DamagedFolder:
    """Return the error for a damaged ledger."""
    return DamagedFolder(
        f"{path} is damaged: {problem}; put back a copy of the whole folder, and keep this file: it holds the "
        "original vectors"
    )


def _check_ledger(ledger: Connection, path: Path) -> None:
    (application,) = ledger.execute("PRAGMA application_id").fetchone()
    tables = {name for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if application not in (0, LEDGER_APPLICATION) or not tables >= REQUIRED_TABLES:
        raise IndexFolderError(f"{path} is no ledger of a Nudger; move it out of the folder, then repeat")
    fault = LEDGER_TABLES.find_fault(ledger)
    if fault:
        raise damaged_ledger_error(path, fault)


def _answers(relevant: Any) -> frozenset[str]:
    """Return the ids of the passages that answer a question."""
    answers = json.loads(relevant)
    if not isinstance(answers, dict):
        raise TypeError(f"{relevant!r:.80} is no object of grades")
    return frozenset(answers)

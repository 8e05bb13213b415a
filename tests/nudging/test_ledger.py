"""The ledger is guarded as the catalog is: forged values are damage, and a busy or full disk is not."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from contextlib import closing, suppress
from datetime import datetime

import pytest

from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import DamagedFolder, IndexFolderError, M3Error, WriterBusy
from m3_integrations.core.types import Passage, Query, SearchPlan
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.local.recovery.check import check_index
from m3_integrations.nudging.feedback import Feedback
from m3_integrations.nudging.ledger import FILE_NAME
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder(16, 8, 128)
QUERIES = [Query(f"q{i}", f"ask{i % 8} topic{i % 8} nr{i}", {f"p{i % 8}": 1.0}) for i in range(40)]
PLAN = SearchPlan(weights=dict.fromkeys(MODES, 1.0))  # fixed weights: refits without a search for them
COLUMNS = {
    "about": ["value"],
    "queries": ["id", "role", "text", "relevant", "since", "until", "dense", "tokens", "weights", "vectors"],
    "originals": ["passage", "mode", "content", "places", "vectors"],
    "versions": ["number", "made", "asked", "moves", "figures"],
}
BLOBS = ("dense", "tokens", "weights", "vectors", "places")
FORGED = ["x'00ff'", "9223372036854775807", '\'{"dense": {"gamma": NaN}}\'', f"'{'[' * 100_000}'"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A nudged folder, made once."""
    folder = tmp_path_factory.mktemp("made") / "index"
    texts = [f"topic{i % 8} word{i}" for i in range(16)]
    with LocalIndex.open(folder, ENCODER) as index:
        index.add([Passage(f"p{i}", text) for i, text in enumerate(texts)], ENCODER.encode_passages(texts))
        nudger = Nudger(ENCODER, index)
        report = nudger.fit(QUERIES[:30], QUERIES[30:], modes=MODES, method="nudge-n")
        assert set(report.moves) == set(MODES)  # so that every table is filled
        nudger.close()
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "index")
    return tmp_path / "index"


class NoAnswer(Exception):
    """No answer of a question, or no version, is left: the usual errors of a Nudger."""


def use(folder):
    try:
        _use(folder)
    except ValueError as error:
        words = ("there is nothing to refit", "there is no version", "answer")
        if isinstance(error, M3Error) or not any(each in str(error) for each in words):
            raise
        raise NoAnswer from error


def _use(folder):
    with LocalIndex.open(folder, ENCODER) as index:
        with closing(Nudger(ENCODER, index)) as reader:
            assert reader.plan is not False
        nudger = Nudger(ENCODER, index, PLAN)
        try:
            nudger.versions(), nudger.queries(), nudger.refit(), nudger.revert(1), nudger.revert()
        finally:
            nudger.close()


def forge(folder, statement, *values):
    connection = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
    connection.execute("DROP TABLE checks")  # a forger writes checksums too
    with suppress(sqlite3.IntegrityError):  # SQLite itself refuses the type
        connection.execute(f"UPDATE OR IGNORE {statement}", values)
    connection.close()


@pytest.mark.parametrize(("table", "column"), [(table, each) for table, names in COLUMNS.items() for each in names])
def test_a_forged_value_is_an_error_of_the_package_at_worst(made, tmp_path, table, column):
    for number, value in enumerate(FORGED):
        folder = tmp_path / str(number)
        shutil.copytree(made, folder)
        forge(folder, f"{table} SET {column} = {value}")
        with suppress(M3Error, NoAnswer):
            use(folder)


@pytest.mark.parametrize(
    ("table", "column"),
    [("queries", "tokens"), ("originals", "places")],
)
@pytest.mark.parametrize("value", [-2_000_000_000, 2_000_000_000, 128, -1])
def test_positions_out_of_range_are_damage(folder, table, column, value):
    connection = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
    connection.execute("DROP TABLE checks")
    for row, held in connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall():
        forged = struct.pack("<i", value) * (len(held) // 4)
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (forged, row))
    connection.close()
    with pytest.raises(DamagedFolder, match=r"put back a copy|copy of the ledger"):
        use(folder)


def test_a_busy_ledger_is_waited_for_and_then_called_busy(folder):
    with LocalIndex.open(folder, ENCODER, write_timeout=0.1) as index:
        nudger = Nudger(ENCODER, index)
        other = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        Nudger(ENCODER, index).close()  # opening writes nothing
        with pytest.raises(WriterBusy, match=r"longer than 0\.1 s"):
            nudger.add_queries(QUERIES[:1])
        other.execute("ROLLBACK")
        nudger.add_queries(QUERIES[:1])
        other.close()


def test_an_id_that_utf_8_cannot_encode_is_refused_by_name(tmp_path):
    with LocalIndex.open(tmp_path / "index", ENCODER) as index:
        index.add([Passage("half \ud800", "topic1")], ENCODER.encode_passages(["topic1"]))
        with pytest.raises(IndexFolderError, match=r"nudges\.sqlite cannot hold 'half .ud800', which has half a surr"):
            Feedback(ENCODER, index).add("ask", "half \ud800", is_useful=True)
        with closing(Nudger(ENCODER, index)) as nudger, pytest.raises(IndexFolderError, match="repair such ids"):
            nudger.add_queries([Query("half \ud800", "ask1", {"p1": 1.0})])


def test_a_closed_nudger_is_named(folder):
    with LocalIndex.open(folder, ENCODER) as index:
        nudger = Nudger(ENCODER, index)
        nudger.close()
        with pytest.raises(IndexFolderError, match="is closed; make another Nudger"):
            nudger.versions()


@pytest.mark.parametrize("application", [0, 7])
def test_another_programs_database_is_refused_and_unchanged(folder, tmp_path, application):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.execute(f"PRAGMA application_id = {application}")
    connection.close()
    before = path.read_bytes()
    with LocalIndex.open(folder, ENCODER) as index, pytest.raises(IndexFolderError, match="another program"):
        Nudger(ENCODER, index, ledger=path)
    assert path.read_bytes() == before


def test_a_ledger_without_one_of_its_tables_is_damage(folder):
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("DROP TABLE originals")
    connection.close()
    with LocalIndex.open(folder, ENCODER) as index, pytest.raises(DamagedFolder, match="put back a copy"):
        Nudger(ENCODER, index)


@pytest.mark.parametrize(("table", "column"), [(table, each) for table, names in COLUMNS.items() for each in names])
def test_a_changed_row_is_damage_when_it_is_used_and_when_it_is_checked(folder, table, column):
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        key = {"about": "name", "originals": "rowid"}.get(table, "number")
        wanted = f"{key} = (SELECT {key} FROM {table} WHERE length({column}) ORDER BY rowid DESC)"
        if column in ("since", "until", "number"):
            which = f"rowid = (SELECT max(rowid) FROM {table})"
            connection.execute(f"UPDATE {table} SET {column} = coalesce({column}, 0) + 50 WHERE {which}")
        else:  # one bit of the last byte
            last = f"substr(CAST({column} AS BLOB), -1)"
            (held,) = connection.execute(f"SELECT {last} FROM {table} WHERE {wanted}").fetchone()
            changed = f"substr(CAST({column} AS BLOB), 1, length(CAST({column} AS BLOB)) - 1) || ?"
            kind = "BLOB" if column in BLOBS else "TEXT"
            value = bytes([held[0] ^ 64])
            connection.execute(f"UPDATE {table} SET {column} = CAST({changed} AS {kind}) WHERE {wanted}", (value,))
    assert [each.file for each in check_index(folder).files] == [FILE_NAME]
    with pytest.raises(DamagedFolder, match=f"{table}.* differ.* from what was written; put back"):
        use(folder)


@pytest.mark.parametrize("table", COLUMNS)
def test_a_missing_row_is_damage(folder, table):
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        connection.execute(f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")
    assert [each.file for each in check_index(folder).files] == [FILE_NAME]
    with pytest.raises(DamagedFolder, match=f"{table}.* that were written; put back"):
        use(folder)


def test_checksums_are_kept_by_every_write_and_come_with_the_first_write_to_an_earlier_ledger(folder):
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        connection.execute("DROP TABLE checks")
        connection.execute("ALTER TABLE queries DROP COLUMN added")
    before = (folder / FILE_NAME).read_bytes()
    with LocalIndex.open(folder, ENCODER) as index, closing(Nudger(ENCODER, index, PLAN)) as nudger:
        assert nudger.queries()
        assert (folder / FILE_NAME).read_bytes() == before
        steps = (
            lambda: Feedback(ENCODER, index).add("ask", "p1", is_useful=True),
            lambda: nudger.add_queries([QUERIES[0], Query("new", "ask3", {"p3": 1.0})]),
            nudger.refit,
            lambda: nudger.remove_queries(["q1"]),
            lambda: nudger.revert(1),
            lambda: index.delete(["p2"], purge=True),
            lambda: Feedback(ENCODER, index).add("ask", "p3", is_useful=False),
            lambda: nudger.forget_queries(datetime(2100, 1, 1)),
            nudger.revert,
        )
        for step in steps:
            step()
            assert check_index(folder).is_whole
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        kinds = {kind for (kind,) in connection.execute("SELECT type FROM sqlite_master")}
    assert kinds == {"table", "index"}  # triggers are temporary

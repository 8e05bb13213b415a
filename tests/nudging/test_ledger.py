"""The ledger is guarded as the catalog is: forged values are damage, and a busy or full disk is not."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from contextlib import closing, suppress

import pytest

from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import DamagedFolder, IndexFolderError, M3Error, WriterBusy
from m3_integrations.core.types import Passage, Query, SearchPlan
from m3_integrations.index.local.index import LocalIndex
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

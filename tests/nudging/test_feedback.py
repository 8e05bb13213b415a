"""Feedback in the ledger of a folder: kept, counted, forgotten, purged."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from datetime import date

import pytest

from m3_integrations.core.errors import M3Error
from m3_integrations.core.types import Passage
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.nudging.feedback import Feedback
from m3_integrations.nudging.ledger import FILE_NAME
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder(16, 8, 128)
TEXTS = [f"topic{i} word{i}" for i in range(4)]


def fill(index):
    index.add([Passage(f"p{i}", text) for i, text in enumerate(TEXTS)], ENCODER.encode_passages(TEXTS))
    return Feedback(ENCODER, index)


@pytest.fixture
def index(tmp_path):
    with LocalIndex.open(tmp_path / "index", ENCODER) as index:
        yield index


def test_a_ledger_from_before_gains_the_table_with_the_first_judgement(index):
    feedback = fill(index)
    Nudger(ENCODER, index).close()
    with closing(sqlite3.connect(index.folder / FILE_NAME)) as ledger:
        assert not ledger.execute("SELECT 1 FROM sqlite_master WHERE name = 'feedback'").fetchall()
    assert feedback.counts() == (0, 0, 0, 0)
    feedback.add("ask", "p1", False)
    assert feedback.counts() == (1, 0, 1, 0)
    Nudger(ENCODER, index).close()


def test_texts_of_queries_can_be_left_out(index):
    fill(index)
    feedback = Feedback(ENCODER, index, keeps_queries=False)
    feedback.add("a secret", "p1", True)
    assert [(each.query, each.passage) for each in feedback.judgements()] == [(None, "p1")]
    assert feedback.counts() == (1, 1, 0, 0)
    assert all(b"a secret" not in file.read_bytes() for file in index.folder.glob("nudges*"))


def test_a_purge_deletes_the_judgements_of_a_passage_and_of_the_queries_that_it_answers(index):
    feedback = fill(index)
    feedback.add("hidden question", "p1", True)
    feedback.add("hidden question", "p2", False)
    feedback.add("other question", "p1", False)
    feedback.add("other question", "p2", True)
    index.delete(["p1"], purge=True)
    assert [(each.query, each.passage) for each in feedback.judgements()] == [("other question", "p2")]
    assert all(b"hidden question" not in file.read_bytes() for file in index.folder.glob("nudges*"))


def test_judgements_are_forgotten_after_a_time(index):
    feedback = fill(index)
    feedback.add("hidden question", "p1", True)
    with closing(Nudger(ENCODER, index)) as nudger:
        assert nudger.forget_queries(date(2020, 1, 1)) == 0
        assert nudger.forget_queries(date(2999, 1, 1)) == 1
    assert feedback.judgements() == []
    assert all(b"hidden question" not in file.read_bytes() for file in index.folder.glob("nudges*"))


def test_an_index_in_memory_has_feedback_as_long_as_it_lives():
    index = MemoryIndex()
    feedback = fill(index)
    feedback.add("ask", "p1", True)
    assert Feedback(ENCODER, index).counts() == (1, 1, 0, 1)


@pytest.mark.parametrize("column", ["time", "query", "passage", "useful"])
@pytest.mark.parametrize("value", ["x'00ff'", "9223372036854775807", "''"])
def test_a_forged_judgement_is_damage_at_worst(index, column, value):
    feedback = fill(index)
    feedback.add("ask", "p1", True)
    with closing(sqlite3.connect(index.folder / FILE_NAME, isolation_level=None)) as ledger:
        ledger.execute("DROP TABLE checks")  # a forger writes checksums too
        ledger.execute(f"UPDATE feedback SET {column} = {value}")
    with suppress(M3Error):
        feedback.counts()
    index.delete(["p1"], purge=True)

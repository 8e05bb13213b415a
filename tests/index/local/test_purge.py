"""A purge leaves nothing of deleted passages in the bytes of a folder: segments, catalog, log, graph and ledger."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from m3_integrations.core.errors import IndexFolderError, WriterBusy
from m3_integrations.core.types import Passage, Query
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.local.ledger_file import LEDGER_NAME
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.testing import HashEncoder
from m3_integrations.testing.sample_data import same_vectors

ENCODER = HashEncoder(16, 8, 512)
TEXTS = [f"topic{i % 8} word{i}" for i in range(40)]
SECRET = "unmistakable zebra"
PRECISIONS = ("float32", "int8", "int4")


def passages():
    return [Passage(f"p{i}", text, {"n": i}) for i, text in enumerate(TEXTS)]


def fill(index):
    """Add many passages and, between them, one that is purged later."""
    index.add(passages()[:20], ENCODER.encode_passages(TEXTS[:20]))
    index.add([Passage("secret-id", SECRET, {"owner": "Zacharias"})], ENCODER.encode_passages([SECRET]))
    index.add(passages()[20:], ENCODER.encode_passages(TEXTS[20:]))


def needles(*encoded):
    """Return what must not be found: texts, and vectors in every form in which a file holds them."""
    found = {b"zebra", b"Zacharias", b"secret-id"}
    for each in encoded:
        vectors = [each.dense[0], each.multi_vector[0][0], each.sparse.data]
        found |= {vector.astype(np.float32).tobytes() for vector in vectors}
        # The graph holds dense vectors as bfloat16, the upper halves of float32 rounded to nearest.
        bits = each.dense[0].astype(np.float32).view(np.uint32).astype(np.uint64)
        found.add(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes())
    return found


def files_with(folder, wanted):
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    return sorted({name for name, content in contents.items() for needle in wanted if needle in content})


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("is_open_elsewhere", [False, True])
def test_nothing_of_a_purged_passage_is_left_in_the_folder(tmp_path, precision, is_open_elsewhere):
    folder, reference = tmp_path / "index", MemoryIndex()
    gone = needles(ENCODER.encode_passages([SECRET]))
    with LocalIndex.open(folder, ENCODER, precision={"multi_vector": precision}, exact_below=5) as index:
        for each in (index, reference):
            fill(each)
        reader = LocalIndex.open(folder, exact_below=5) if is_open_elsewhere else index
        reader.search("dense", ENCODER.encode_queries(["topic1"]), 3)  # builds the graph
        held = files_with(folder, gone)
        assert any(name.startswith("catalogue.sqlite") for name in held)
        assert {name.split("-")[0] for name in held} >= {"dense", "sparse"}
        assert any(name.endswith(".graph") for name in held)
        for each in (index, reference):
            each.delete(["secret-id", "unknown"], purge=True)
        assert files_with(folder, gone) == []
        for each in (index, reader):
            assert each.ids() == reference.ids()
            hits = each.search("dense", ENCODER.encode_queries(["topic1"]), 3)
            assert hits == reference.search("dense", ENCODER.encode_queries(["topic1"]), 3)
        if precision == "float32":
            assert same_vectors(index.vectors(reference.ids()), reference.vectors(reference.ids()))
        index.verify()
        reader.close()
    assert files_with(folder, gone) == []


def test_a_purge_removes_what_was_deleted_and_replaced_before(tmp_path):
    with LocalIndex.open(tmp_path, ENCODER) as index:
        fill(index)
        index.add([Passage("secret-id", "another text")], ENCODER.encode_passages(["another text"]))
        index.set_vectors(["p3"], ENCODER.encode_passages([SECRET]))
        index.set_vectors(["p3"], ENCODER.encode_passages([TEXTS[3]]))
        gone = needles(ENCODER.encode_passages([SECRET])) - {b"secret-id"}
        assert files_with(tmp_path, gone)
        index.delete([], purge=True)
        assert files_with(tmp_path, gone) == []
        assert index.passages(["secret-id"]) == [Passage("secret-id", "another text")]
        assert same_vectors(index.vectors(["p3"]), ENCODER.encode_passages([TEXTS[3]]))


def nudged(folder, index):
    """Nudge an index by questions of all passages, among them one about the secret."""
    fill(index)
    asked = [Query(f"q{i}", f"ask{i % 8} topic{i % 8}", {f"p{i % 8}": 1.0}) for i in range(40)]
    secret = [Query(f"s{i}", f"who saw the {SECRET}", {"secret-id": 1.0, "p1": 1.0}) for i in range(4)]
    nudger = Nudger(ENCODER, index)
    nudger.fit([*asked[:30], *secret], asked[30:], modes=("dense", "sparse", "multi_vector"), method="nudge-n")
    return nudger


def test_questions_and_original_vectors_of_a_purged_passage_leave_the_ledger(tmp_path):
    with LocalIndex.open(tmp_path, ENCODER) as index, closing(nudged(tmp_path, index)) as nudger:
        stored, question = index.vectors(["secret-id"]), ENCODER.encode_queries([f"who saw the {SECRET}"])
        gone = needles(stored, ENCODER.encode_passages([SECRET]), question)
        assert LEDGER_NAME in {name.removesuffix("-wal") for name in files_with(tmp_path, gone)}
        index.delete(["secret-id"], purge=True)
        assert files_with(tmp_path, gone) == []
        assert {query.id for query in nudger.queries()} == {f"q{i}" for i in range(30)}
        with pytest.raises(ValueError, match="version 1 cannot be computed again"):
            nudger.revert(1)
        nudger.revert()
        others = [passage.id for passage in passages()]
        assert same_vectors(index.vectors(others), ENCODER.encode_passages(TEXTS))
        assert nudger.refit().version == 2
        nudger.revert(1 + 1)


def test_a_passage_that_the_index_lacks_is_still_purged_from_its_ledger(tmp_path):
    with LocalIndex.open(tmp_path, ENCODER) as index, closing(nudged(tmp_path, index)):
        index.delete(["secret-id"])
        index.delete([], purge=True)
        assert files_with(tmp_path, {b"zebra"})
        index.delete(["secret-id"], purge=True)
        assert files_with(tmp_path, {b"zebra", b"secret-id"}) == []


def test_a_ledger_elsewhere_forgets_passages_when_it_is_told_to(tmp_path):
    index, ledger = MemoryIndex(), tmp_path / "mine.sqlite"
    fill(index)
    query = Query("s", f"who saw the {SECRET}", {"secret-id": 1.0})
    with closing(Nudger(ENCODER, index, ledger=ledger)) as nudger:
        nudger.add_queries([query, Query("q", "topic1", {"p1": 1.0})])
        nudger.forget_passages(["secret-id"])
        assert [each.id for each in nudger.queries()] == ["q"]
        assert files_with(tmp_path, {b"zebra", b"secret-id"}) == []


def test_questions_older_than_a_date_are_forgotten(tmp_path):
    with LocalIndex.open(tmp_path, ENCODER) as index, closing(nudged(tmp_path, index)) as nudger:
        with closing(sqlite3.connect(tmp_path / LEDGER_NAME)) as ledger, ledger:
            ledger.execute("DROP TABLE checks")
            ledger.execute("UPDATE queries SET added = '2020-05-01T00:00:00+00:00' WHERE id LIKE 's%'")
        assert nudger.forget_queries(date(2020, 5, 1)) == 0
        assert nudger.forget_queries(datetime(2020, 5, 1, 12, tzinfo=UTC)) == 4
        assert files_with(tmp_path, {b"who saw"}) == []
        with pytest.raises(ValueError, match="some of its questions were forgotten"):
            nudger.revert(1)
        assert nudger.forget_queries(datetime.now(UTC) + timedelta(days=1)) == 40
        assert nudger.queries() == nudger.queries("validation") == []
        nudger.revert()
        assert same_vectors(index.vectors(["p1"]), ENCODER.encode_passages([TEXTS[1]]))


def test_a_ledger_without_times_takes_those_of_its_versions(tmp_path):
    with LocalIndex.open(tmp_path, ENCODER) as index:
        nudged(tmp_path, index).close()
        with closing(sqlite3.connect(tmp_path / LEDGER_NAME)) as ledger, ledger:
            ledger.execute("DROP TABLE checks")
            ledger.execute("ALTER TABLE queries DROP COLUMN added")
            ledger.execute("UPDATE versions SET made = '2020-05-01T00:00:00+00:00'")
        with closing(Nudger(ENCODER, index)) as nudger:
            nudger.add_queries([Query("new", "topic1", {"p1": 1.0})])
            assert nudger.forget_queries(date(2020, 5, 2)) == 44
            assert [query.id for query in nudger.queries()] == ["new"]


def test_a_purge_is_refused_before_it_deletes_while_unknown_segments_are_there(tmp_path):
    with LocalIndex.open(tmp_path) as index:
        fill(index)
        known = min(tmp_path.glob("dense-*.segment"))
        unknown = tmp_path / f"{known.name[: -len('.segment')][:-16]}{'0' * 16}.segment"
        unknown.write_bytes(known.read_bytes())
        with pytest.raises(IndexFolderError, match=r"does not name.*nothing was deleted"):
            index.delete(["secret-id"], purge=True)
        assert "secret-id" in index.ids()
        assert unknown.exists()


def test_a_purge_waits_for_readers_of_earlier_states_and_can_be_repeated(tmp_path):
    with LocalIndex.open(tmp_path, write_timeout=0.1) as index:
        fill(index)
        with closing(sqlite3.connect(tmp_path / "catalogue.sqlite", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM passages").fetchone()
            with pytest.raises(WriterBusy, match="reads an earlier state"):
                index.delete(["secret-id"], purge=True)
            assert "secret-id" not in index.ids()
            reader.execute("COMMIT")
        index.delete(["secret-id"], purge=True)
        assert files_with(tmp_path, {b"zebra"}) == []

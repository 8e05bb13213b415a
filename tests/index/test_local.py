from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest

from m3_integrations.core.encoded import MODES, Encoded
from m3_integrations.core.errors import DamagedFolder, IndexFolderError, M3Error, WrongEncoder
from m3_integrations.core.texts import Passage
from m3_integrations.index.catalogue import FILE_NAME, Catalogue
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.where import Field
from m3_integrations.testing import HashEncoder, IndexContract
from m3_integrations.testing.contract import add, assert_alike, encode, fill, found


class TestLocalIndex(IndexContract):
    @pytest.fixture
    def index(self, tmp_path):
        with LocalIndex.open(tmp_path / "index") as index:
            yield index

    def reopen(self, index):
        index.close()
        return LocalIndex.open(index.folder)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


def segments(folder, mode=""):
    return sorted(folder.glob(f"{mode}*.segment"))


def filled(folder, count=40):
    """A folder after enough writes that segments were merged, and an index in memory that saw the same."""
    judge = MemoryIndex()
    with LocalIndex.open(folder) as index:
        for each in (index, judge):
            for i in range(count):
                add(each, Passage(f"p{i % 30}", f"red {'cat ' * (i % 3)}{i}", {"i": i}))
            each.set_vectors(["p3", "p7"], encode(["dog", "blue"]))
            each.delete(["p5"])
    return judge


# What the folder remembers


def test_a_folder_opened_again_answers_as_before(folder):
    judge = filled(folder)
    with LocalIndex.open(folder) as index:
        index.verify()
        assert_alike(index, judge, Field("i", ">", 20))


def test_many_small_writes_leave_few_files(folder):
    judge = MemoryIndex()
    with LocalIndex.open(folder) as index:
        for each in (index, judge):
            for i in range(100):
                add(each, Passage(f"p{i}", "red cat", {"i": i}))
        assert len(segments(folder)) < 3 * 30
        assert_alike(index, judge)


def test_what_is_replaced_again_and_again_takes_no_room(folder):
    with LocalIndex.open(folder) as index:
        for i in range(40):
            add(index, Passage("p", f"red {i}"))
        assert len(segments(folder)) < 3 * 4
        assert index.passages() == [Passage("p", "red 39")]


def test_a_large_write_is_searched_as_the_exact_index_searches_it(folder):
    random = np.random.default_rng(0)
    vectors = Encoded(dense=random.standard_normal((9000, 8), np.float32).round(1))
    passages = [Passage(f"p{i}", "", {"even": i % 2 == 0, "i": i}) for i in range(9000)]
    queries = Encoded(dense=random.standard_normal((7, 8), np.float32).round(1))
    judge = MemoryIndex()
    with LocalIndex.open(folder) as index:
        for each in (index, judge):
            each.add(passages, vectors)
            each.delete([f"p{i}" for i in range(0, 9000, 3)])
        for where in (None, Field("even", "==", True), Field("i", "<", 100), Field("i", "in", list(range(5000)))):
            assert index.search("dense", queries, 50, where) == judge.search("dense", queries, 50, where)
            assert index.search("dense", queries.take([0]), 50, where) == judge.search(
                "dense", queries.take([0]), 50, where
            )


def test_ten_thousand_equal_passages_tie_by_id(folder):
    ids = [f"p{i:05d}" for i in np.random.default_rng(0).permutation(10_000)]
    with LocalIndex.open(folder) as index:
        index.add([Passage(id, "") for id in ids], encode(["red cat"]).take([0] * len(ids)))
        for mode in ("dense", "sparse"):
            assert found(index.search(mode, encode(["red"]), 5)[0]) == [
                "p00000",
                "p00001",
                "p00002",
                "p00003",
                "p00004",
            ]


# Which folders it takes


def test_the_folder_remembers_its_encoder(folder):
    first, other = HashEncoder(seed=1), HashEncoder(seed=2)
    with LocalIndex.open(folder, first):
        pass
    with LocalIndex.open(folder, HashEncoder(seed=1)), LocalIndex.open(folder):
        pass
    with pytest.raises(WrongEncoder, match=r"(?s)filled by HashEncoder\(.*seed=1\).*is HashEncoder\(.*seed=2\)"):
        LocalIndex.open(folder, other)


def test_a_folder_made_without_an_encoder_remembers_the_first_that_it_is_told(folder):
    filled(folder)
    LocalIndex.open(folder, HashEncoder(seed=1)).close()
    with pytest.raises(WrongEncoder):
        LocalIndex.open(folder, HashEncoder(seed=2))


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(IndexFolderError, match=r"thesis\.tex.*choose an empty or a new folder"):
        LocalIndex.open(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(folder):
    folder.write_text("")
    with pytest.raises(IndexFolderError, match="is a file"):
        LocalIndex.open(folder)


def test_another_programs_database_is_refused_and_left_alone(folder):
    folder.mkdir()
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = (folder / FILE_NAME).read_bytes()
    with pytest.raises(IndexFolderError, match="another program"):
        LocalIndex.open(folder)
    assert (folder / FILE_NAME).read_bytes() == before


def test_a_newer_format_is_refused(folder):
    filled(folder, 12)
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(IndexFolderError, match="install a newer m3-integrations"):
        LocalIndex.open(folder)


def test_an_empty_folder_serves(folder):
    folder.mkdir()
    with LocalIndex.open(str(folder)) as index:
        fill(index, ["red"])


def test_a_closed_index_says_so(folder):
    index = LocalIndex.open(folder)
    index.close()
    index.close()
    for call in (lambda: len(index), lambda: index.modes, lambda: fill(index, ["red"]), index.ids):
        with pytest.raises(IndexFolderError, match=r"closed; open it again with LocalIndex\.open"):
            call()


# What is not named, and what is damaged


def test_opening_sweeps_what_a_crash_left_and_nothing_else(folder):
    judge = filled(folder)
    orphans = [
        folder / "dense-00000999-0123456789abcdef.segment",
        folder / "dense-0123456789abcdef.graph.unfinished",
    ]
    strangers = [folder / "notes.txt", folder / "dense-old.segment", folder / "ledger.sqlite"]
    for path in (*orphans, *strangers):
        path.write_bytes(b"x")
    with LocalIndex.open(folder) as index:
        assert not any(path.exists() for path in orphans)
        assert all(path.exists() for path in strangers)
        assert_alike(index, judge)


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_or_shortened_segment_is_named(folder, mode):
    filled(folder)
    path = segments(folder, mode)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(DamagedFolder, match=rf"{path.name} is {len(whole) - 8} bytes long instead of {len(whole)}"):
        LocalIndex.open(folder)
    path.unlink()
    with pytest.raises(DamagedFolder, match=rf"{path.name} is missing.*put back a copy"):
        LocalIndex.open(folder)


def test_verify_finds_one_changed_byte(folder):
    filled(folder)
    path = segments(folder, "dense")[0]
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with LocalIndex.open(folder) as index, pytest.raises(DamagedFolder, match=f"{path.name} differs from what was"):
        index.verify()


@pytest.mark.parametrize("seed", range(25))
def test_a_hostile_folder_can_at_worst_raise(folder, seed):
    filled(folder, 12)
    random = np.random.default_rng(seed)
    for path in [path for path in segments(folder) if random.random() < 0.5] or segments(folder)[:1]:
        hostile = bytearray(path.read_bytes())
        for place in random.integers(0, len(hostile), 1 + seed):
            hostile[place] = random.integers(256)
        path.write_bytes(hostile)
    _use_at_ones_risk(folder)


@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_catalogue_can_at_worst_raise(folder, seed):
    filled(folder, 12)
    random = np.random.default_rng(seed)
    path = folder / FILE_NAME
    damaged = bytearray(path.read_bytes())
    for place in random.integers(0, len(damaged), 1 + 4 * seed):
        damaged[place] = random.integers(256)
    path.write_bytes(damaged)
    _use_at_ones_risk(folder)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE segments SET file = '../../../etc/passwd' WHERE number = (SELECT max(number) FROM segments)",
        "UPDATE segments SET file = 'dense-00000001-0123456789abcdef.segment' WHERE number = (SELECT max(number) FROM "
        "segments WHERE mode = 'dense')",
        "UPDATE segments SET number = number + (1 << 40)",
        "UPDATE segments SET rows = 'many'",
        "UPDATE segments SET mode = 'colour'",
        "DELETE FROM segments WHERE mode = 'sparse'",
        "UPDATE modes SET width = width + 1",
        "UPDATE modes SET width = -1",
        "DELETE FROM modes",
        "UPDATE passages SET text = 3",
        "UPDATE passages SET metadata = CAST('[1]' AS BLOB)",
        "UPDATE passages SET metadata = CAST('{' AS BLOB)",
        "UPDATE passages SET metadata = zeroblob(9)",
        "UPDATE passages SET slot = slot + 1000",
        "UPDATE state SET generation = 'now'",
        "DELETE FROM state",
        "DROP TABLE passages",
    ],
)
def test_a_catalogue_that_says_the_impossible_is_damaged(folder, statement):
    filled(folder, 12)
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(DamagedFolder, match="put back a copy of the whole folder"):
        _use(folder)


def test_what_is_no_database_is_damaged(folder):
    filled(folder, 12)
    (folder / FILE_NAME).write_bytes(b"not a database, but as long as one" * 100)
    with pytest.raises(DamagedFolder, match=rf"{FILE_NAME} in .* is damaged"):
        LocalIndex.open(folder)


def _use_at_ones_risk(folder):
    with suppress(M3Error):
        _use(folder)


def _use(folder):
    with LocalIndex.open(folder) as index:
        for mode in MODES:
            index.search(mode, encode(["red cat", "blue"]), 3, Field("i", ">", 1))
        index.passages()
        index.vectors(index.ids())
        index.verify()


# Writers and readers


def test_two_handles_see_each_others_writes(folder):
    with LocalIndex.open(folder) as one, LocalIndex.open(folder) as other:
        judge = MemoryIndex()
        for i in range(60):
            for each in (one if i % 2 else other, judge):
                add(each, Passage(f"p{i % 20}", f"red {i}", {"i": i}))
                each.delete([f"p{(i + 7) % 20}"])
            if i % 10 == 0:
                assert_alike(one, judge, Field("i", ">", 20))
                assert_alike(other, judge, Field("i", ">", 20))


def test_a_reader_far_behind_starts_over(folder):
    with LocalIndex.open(folder) as reader, LocalIndex.open(folder) as writer:
        judge = MemoryIndex()
        fill(reader, ["red"])
        for each in (writer, judge):
            for i in range(3):
                each.add([Passage(f"p{j}", f"{i}") for j in range(1500)], encode(["red"] * 1500))
        assert_alike(reader, judge)


def test_a_second_writer_waits_and_then_says_so(folder):
    with LocalIndex.open(folder, patience=0.05) as index:
        fill(index, ["red"])
        with Catalogue(folder, 1).writing():
            assert found(index.search("dense", encode(["red"]), 1)[0]) == ["p0"]
            LocalIndex.open(folder).close()
            with pytest.raises(IndexFolderError, match=r"longer than 0\.05 s.*patience="):
                fill(index, ["blue"])
        fill(index, ["blue"])


def test_a_write_that_fails_leaves_no_file_behind(folder, monkeypatch):
    with LocalIndex.open(folder) as index:
        fill(index, ["red"])
        before = segments(folder)
        hostile = Passage("late", "")
        object.__setattr__(hostile, "id", 7)
        with pytest.raises(AttributeError):
            index.add([hostile], encode([""]))
        with suppress(KeyboardInterrupt), index._write() as write:
            write.segment(np.array([99]), encode(["red"]).only(["dense"]))
            raise KeyboardInterrupt
        assert segments(folder) == before
        assert index.ids() == ["p0"]


def test_threads_read_whole_states_while_another_process_writes(folder):
    ids = [f"p{i}" for i in range(20)]
    with LocalIndex.open(folder) as index:
        index.add([Passage(id, "") for id in ids], encode(["red"] * 20))
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(folder)])
        torn, rounds = [], 0

        def read():
            nonlocal rounds
            while writer.poll() is None:
                hits = index.search("dense", encode(["red"]), 100)[0]
                rounds += 1
                if len(hits) != 20 or len({hit.score for hit in hits}) != 1:
                    torn.append(hits)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert (writer.returncode, torn) == (0, [])
        assert rounds > 0
        index.verify()


def test_processes_may_open_a_new_folder_at_once(folder):
    writers = [subprocess.Popen([sys.executable, "-c", _OPENER, str(folder), str(i)]) for i in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    with LocalIndex.open(folder) as index:
        assert index.ids() == sorted(f"{i}-{j}" for i in range(4) for j in range(5))
        index.verify()


def test_a_copied_folder_is_the_same_index(folder, tmp_path):
    judge = filled(folder)
    shutil.copytree(folder, tmp_path / "copy")
    with LocalIndex.open(tmp_path / "copy") as index:
        assert_alike(index, judge)


_WRITER = """
import sys
from m3_integrations.core.texts import Passage
from m3_integrations.index.local import LocalIndex
from m3_integrations.testing.contract import encode
ids = [f"p{i}" for i in range(20)]
with LocalIndex.open(sys.argv[1]) as index:
    for i in range(60):
        vectors = encode([("red", "blue", "green cat")[i % 3]] * 20)
        if i % 2:
            index.add([Passage(id, "") for id in ids], vectors)
        else:
            index.set_vectors(ids, vectors)
"""
_OPENER = """
import sys
from m3_integrations.core.texts import Passage
from m3_integrations.index.local import LocalIndex
from m3_integrations.testing.contract import add
with LocalIndex.open(sys.argv[1]) as index:
    for j in range(5):
        add(index, Passage(f"{sys.argv[2]}-{j}", "red"))
"""

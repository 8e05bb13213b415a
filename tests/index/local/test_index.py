from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest
import scipy.sparse

from m3_integrations.core.encoded import MODES, Encoded
from m3_integrations.core.errors import DamagedFolder, IndexFolderError, M3Error, UnknownId, WrongEncoder
from m3_integrations.core.types import Passage
from m3_integrations.index.base import Hit, HybridRequest
from m3_integrations.index.copying import copy_index
from m3_integrations.index.filters import Field
from m3_integrations.index.local.array_file import map_arrays, write_arrays
from m3_integrations.index.local.catalog import FILE_NAME, Catalog
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.testing import HashEncoder, IndexContract
from m3_integrations.testing.sample_data import add, assert_same_results, encode, fill, hit_ids


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


def filled(folder, count=24):
    """Fill a folder by enough writes that segments are merged; return a MemoryIndex with the same writes."""
    reference = MemoryIndex()
    with LocalIndex.open(folder) as index:
        for each in (index, reference):
            for i in range(count):
                add(each, Passage(f"p{i % 18}", f"red {'cat ' * (i % 3)}{i}", {"i": i}))
            each.set_vectors(["p3", "p7"], encode(["dog", "blue"]))
            each.delete(["p5"])
    return reference


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small filled folder, made once, because syncing takes time."""
    folder = tmp_path_factory.mktemp("made") / "index"
    return folder, filled(folder, 12)


@pytest.fixture
def copied(made, folder):
    shutil.copytree(made[0], folder)
    return folder


# Reopening and merging


def test_a_reopened_folder_returns_the_same(folder):
    reference = filled(folder)
    with LocalIndex.open(folder) as index:
        index.verify()
        assert_same_results(index, reference, Field("i", ">", 9))


def test_many_small_writes_leave_few_files(folder):
    reference = MemoryIndex()
    with LocalIndex.open(folder) as index:
        for each in (index, reference):
            for i in range(100):
                add(each, Passage(f"p{i}", "red cat", {"i": i}))
        assert len(segments(folder)) < 3 * 30
        assert_same_results(index, reference)


def test_repeated_replacement_does_not_accumulate_files(folder):
    with LocalIndex.open(folder) as index:
        for i in range(40):
            add(index, Passage("p", f"red {i}"))
        assert len(segments(folder)) < 3 * 4
        assert index.passages() == [Passage("p", "red 39")]


def test_a_large_write_gives_exactly_the_hits_of_memory(folder):
    random = np.random.default_rng(0)
    vectors = Encoded(dense=random.standard_normal((9000, 8), np.float32).round(1))
    passages = [Passage(f"p{i}", "", {"even": i % 2 == 0, "i": i}) for i in range(9000)]
    queries = Encoded(dense=random.standard_normal((7, 8), np.float32).round(1))
    reference = MemoryIndex()
    with LocalIndex.open(folder) as index:
        for each in (index, reference):
            each.add(passages, vectors)
            each.delete([f"p{i}" for i in range(0, 9000, 3)])
        for where in (None, Field("even", "==", True), Field("i", "<", 100), Field("i", "in", list(range(5000)))):
            assert index.search("dense", queries, 50, where) == reference.search("dense", queries, 50, where)
            assert index.search("dense", queries.take([0]), 50, where) == reference.search(
                "dense", queries.take([0]), 50, where
            )


def test_ten_thousand_equal_passages_tie_by_id(folder):
    ids = [f"p{i:05d}" for i in np.random.default_rng(0).permutation(10_000)]
    with LocalIndex.open(folder) as index:
        index.add([Passage(id, "") for id in ids], encode(["red cat"]).take([0] * len(ids)))
        for mode in ("dense", "sparse"):
            assert hit_ids(index.search(mode, encode(["red"]), 5)[0]) == [
                "p00000",
                "p00001",
                "p00002",
                "p00003",
                "p00004",
            ]


# Opening folders


def test_the_folder_records_its_encoder(folder):
    first, other = HashEncoder(seed=1), HashEncoder(seed=2)
    with LocalIndex.open(folder, first):
        pass
    with LocalIndex.open(folder, HashEncoder(seed=1)), LocalIndex.open(folder):
        pass
    with pytest.raises(WrongEncoder, match=r"(?s)filled by HashEncoder\(.*seed=1\).*is HashEncoder\(.*seed=2\)"):
        LocalIndex.open(folder, other)


def test_a_folder_created_without_an_encoder_records_the_first_one(copied):
    LocalIndex.open(copied, HashEncoder(seed=1)).close()
    with pytest.raises(WrongEncoder):
        LocalIndex.open(copied, HashEncoder(seed=2))


def test_a_folder_with_something_else_is_an_error_and_not_changed(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(IndexFolderError, match=r"thesis\.tex.*choose an empty or a new folder"):
        LocalIndex.open(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_file_is_an_error(folder):
    folder.write_text("")
    with pytest.raises(IndexFolderError, match="is a file"):
        LocalIndex.open(folder)


def test_another_programs_database_is_an_error_and_not_changed(folder):
    folder.mkdir()
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = (folder / FILE_NAME).read_bytes()
    with pytest.raises(IndexFolderError, match="another program"):
        LocalIndex.open(folder)
    assert (folder / FILE_NAME).read_bytes() == before


def test_a_newer_format_is_an_error(copied):
    with sqlite3.connect(copied / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(IndexFolderError, match="install a newer m3-integrations"):
        LocalIndex.open(copied)


def test_an_empty_folder_can_be_used(folder):
    folder.mkdir()
    with LocalIndex.open(str(folder)) as index:
        fill(index, ["red"])


def test_a_closed_index_raises(folder):
    index = LocalIndex.open(folder)
    index.close()
    index.close()
    for call in (lambda: len(index), lambda: index.modes, lambda: fill(index, ["red"]), index.ids):
        with pytest.raises(IndexFolderError, match=r"closed; open it again with LocalIndex\.open"):
            call()


# Orphans and damage


def test_opening_removes_unacknowledged_files_and_nothing_else(folder):
    reference = filled(folder)
    unacknowledged = [
        folder / "dense-00000999-0123456789abcdef.segment.part",
        folder / "dense-0123456789abcdef.graph.unfinished",
    ]
    others = [folder / "notes.txt", folder / "dense-old.segment", folder / "ledger.sqlite"]
    for path in (*unacknowledged, *others):
        path.write_bytes(b"x")
    with LocalIndex.open(folder) as index:
        assert not any(path.exists() for path in unacknowledged)
        assert all(path.exists() for path in others)
        assert_same_results(index, reference)


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_or_truncated_segment_is_an_error_that_names_it(copied, mode):
    path = segments(copied, mode)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(DamagedFolder, match=rf"{path.name} is {len(whole) - 8} bytes long instead of {len(whole)}"):
        LocalIndex.open(copied)
    path.unlink()
    with pytest.raises(DamagedFolder, match=rf"{path.name} is missing.*put back a copy"):
        LocalIndex.open(copied)


def test_verify_finds_one_changed_byte(copied):
    path = segments(copied, "dense")[0]
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with LocalIndex.open(copied) as index, pytest.raises(DamagedFolder, match=f"{path.name} differs from what was"):
        index.verify()


@pytest.mark.parametrize("seed", range(25))
def test_a_corrupt_folder_raises_at_worst(copied, seed):
    random = np.random.default_rng(seed)
    for path in [path for path in segments(copied) if random.random() < 0.5] or segments(copied)[:1]:
        corrupt = bytearray(path.read_bytes())
        for position in random.integers(0, len(corrupt), 1 + seed):
            corrupt[position] = random.integers(256)
        path.write_bytes(corrupt)
    _use_at_risk(copied)


@pytest.mark.parametrize("seed", range(25))
def test_a_corrupt_catalog_raises_at_worst(copied, seed):
    random = np.random.default_rng(seed)
    path = copied / FILE_NAME
    damaged = bytearray(path.read_bytes())
    for position in random.integers(0, len(damaged), 1 + 4 * seed):
        damaged[position] = random.integers(256)
    path.write_bytes(damaged)
    _use_at_risk(copied)


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
def test_a_catalog_with_impossible_values_is_damaged(copied, statement):
    with sqlite3.connect(copied / FILE_NAME) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(DamagedFolder, match="put back a copy of the whole folder"):
        _use(copied)


def test_a_file_that_is_not_a_database_is_damaged(copied):
    (copied / FILE_NAME).write_bytes(b"not a database, but as long as one" * 100)
    with pytest.raises(DamagedFolder, match=rf"{FILE_NAME} in .* is damaged"):
        LocalIndex.open(copied)


def test_an_inverted_list_of_unknown_rows_is_damage(copied):
    for path in segments(copied, "sparse"):
        stored = map_arrays(path, path.stat().st_size)
        arrays = dict(stored)
        path.unlink()
        write_arrays(path, {**arrays, "posted": arrays["posted"] + 1000}, stored.about)
    with LocalIndex.open(copied) as index, pytest.raises(DamagedFolder, match="inverted lists of unknown rows"):
        index.search("sparse", encode([" ".join(map(str, range(12)))]), 3)


def _use_at_risk(folder):
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


def test_two_open_indexes_see_each_others_writes(folder):
    with LocalIndex.open(folder) as one, LocalIndex.open(folder) as other:
        reference = MemoryIndex()
        for i in range(40):
            for each in (one if i % 2 else other, reference):
                add(each, Passage(f"p{i % 20}", f"red {i}", {"i": i}))
                each.delete([f"p{(i + 7) % 20}"])
            if i % 10 == 0:
                assert_same_results(one, reference, Field("i", ">", 20))
                assert_same_results(other, reference, Field("i", ">", 20))


def test_a_reader_far_behind_loads_a_new_snapshot(folder):
    with LocalIndex.open(folder) as reader, LocalIndex.open(folder) as writer:
        reference = MemoryIndex()
        fill(reader, ["red"])
        for each in (writer, reference):
            for i in range(3):
                each.add([Passage(f"p{j}", f"{i}") for j in range(1500)], encode(["red"] * 1500))
        assert_same_results(reader, reference)


def test_a_second_writer_waits_and_then_raises(folder):
    with LocalIndex.open(folder, write_timeout=0.05) as index:
        fill(index, ["red"])
        with Catalog(folder, 1).write():
            assert hit_ids(index.search("dense", encode(["red"]), 1)[0]) == ["p0"]
            LocalIndex.open(folder).close()
            with pytest.raises(IndexFolderError, match=r"longer than 0\.05 s.*write_timeout="):
                fill(index, ["blue"])
        fill(index, ["blue"])


def test_a_failed_write_leaves_no_files(folder, monkeypatch):
    with LocalIndex.open(folder) as index:
        fill(index, ["red"])
        before = segments(folder)
        corrupt = Passage("late", "")
        object.__setattr__(corrupt, "id", 7)
        with pytest.raises(AttributeError):
            index.add([corrupt], encode([""]))
        with suppress(KeyboardInterrupt), index._write() as write:
            write.add_segment(np.array([99]), encode(["red"]).only(["dense"]))
            raise KeyboardInterrupt
        assert segments(folder) == before
        assert index.ids() == ["p0"]


def test_threads_read_consistent_states_while_another_process_writes(folder):
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


def test_processes_can_create_a_folder_concurrently(folder):
    writers = [subprocess.Popen([sys.executable, "-c", _OPENER, str(folder), str(i)]) for i in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    with LocalIndex.open(folder) as index:
        assert index.ids() == sorted(f"{i}-{j}" for i in range(4) for j in range(5))
        index.verify()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_can_use_the_index(folder):
    with LocalIndex.open(folder) as index:
        fill(index, ["red", "blue"])
        child = multiprocessing.get_context("fork").Process(target=add, args=(index, Passage("child", "green")))
        child.start()
        child.join()
        assert child.exitcode == 0
        assert index.ids() == ["child", "p0", "p1"]
        assert hit_ids(index.search("sparse", encode(["green"]), 1)[0]) == ["child"]


def test_a_copied_folder_is_the_same_index(made, copied):
    with LocalIndex.open(copied) as index:
        assert_same_results(index, made[1])


_WRITER = """
import sys
from m3_integrations.core.types import Passage
from m3_integrations.index.local import LocalIndex
from m3_integrations.testing.sample_data import encode
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
from m3_integrations.core.types import Passage
from m3_integrations.index.local import LocalIndex
from m3_integrations.testing.sample_data import add
with LocalIndex.open(sys.argv[1]) as index:
    for j in range(5):
        add(index, Passage(f"{sys.argv[2]}-{j}", "red"))
"""


# The cache of ids


def test_cached_ids_are_updated_after_writes(folder):
    with LocalIndex.open(folder) as index, LocalIndex.open(folder) as other:
        fill(index, ["red", "blue", "green"])
        query = encode(["red cat"])
        for change in (
            lambda: fill(other, ["blue", "red"]),
            lambda: other.delete(["p1"]),
            lambda: other.set_vectors(["p2"], encode(["red"])),
            lambda: add(other, Passage("p1", "cat")),
        ):
            change()
            reference = MemoryIndex()
            copy_index(other, reference)
            ids = reference.ids()
            assert np.array_equal(index.score("dense", query, [ids]), reference.score("dense", query, [ids]))
            assert index.search("sparse", query, 3) == reference.search("sparse", query, 3)
    with LocalIndex.open(folder) as index:
        assert len(index.score("dense", query, [["p0"]])) == 1
        with pytest.raises(UnknownId, match="unknown"):
            index.score("dense", query, [["p0", "unknown"]])


def test_more_ids_than_fit_the_cache_are_found(folder, monkeypatch):
    monkeypatch.setattr("m3_integrations.index.local.snapshot._MAX_CACHED_IDS", 5)
    reference = filled(folder)
    with LocalIndex.open(folder) as index:
        for _ in range(3):
            assert_same_results(index, reference, Field("i", ">", 9))


@pytest.fixture(params=[0, 20], ids=["common", "listed"])
def lists(folder, request):
    """A folder with sparse rows over two tokens; a query can overflow a weight of the second of five.

    With twenty more passages the tokens are not common, and have inverted lists.
    """
    weights = np.zeros((5 + request.param, 3), np.float32)
    weights[:5, :2], weights[5:, 2] = 1, 1
    weights[1, 0] = 3e38
    passages = [Passage(f"p{i}", "", {"i": i}) for i in range(len(weights))]
    with LocalIndex.open(folder) as index:
        index.add(passages, Encoded(sparse=scipy.sparse.csr_array(weights)))
    return folder


def query_of(first, second):
    return Encoded(sparse=scipy.sparse.csr_array(np.array([[first, second, 0]], np.float32)))


def test_filtered_passages_may_have_any_score(lists):
    with LocalIndex.open(lists) as index:
        found = index.search("sparse", query_of(10, 1), 2, Field("i", ">", 1))
        assert found == [[Hit("p2", 11.0), Hit("p3", 11.0)]]


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_damage(lists, damage):
    path = segments(lists, "sparse")[0]
    mapped = map_arrays(path, path.stat().st_size)
    arrays = {name: np.array(array) for name, array in mapped.items()}
    stored = "posted_weights" if len(arrays["posted_weights"]) else "common_weights"
    arrays[stored].ravel()[3] = damage
    path.unlink()
    write_arrays(path, arrays, mapped.about)
    with LocalIndex.open(lists) as index, pytest.raises(DamagedFolder, match="scores are not finite"):
        index.search("sparse", query_of(1, 1), 3)
    with LocalIndex.open(lists) as index, pytest.raises(DamagedFolder, match="scores are not finite"):
        index.search_hybrid(query_of(1, 1), HybridRequest({"sparse": 3}, {"sparse": 1.0}), 3)

"""Opening a folder destroys nothing, runs nothing that a stranger put there, and writes nowhere else."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import tempfile
import warnings
from pathlib import Path

import pytest

from m3_integrations.core.errors import DamagedFolder, IndexFolderError, UnknownSegments
from m3_integrations.core.types import Passage
from m3_integrations.index.local.catalog import FILE_NAME
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.testing import HashEncoder
from m3_integrations.testing.index_contract import add, assert_same_results, encode, fill

VECTORS = encode(["red"])
WAL = f"{FILE_NAME}-wal"
can_be_forbidden = pytest.mark.skipif(not hasattr(os, "fork"), reason="permissions of POSIX")


@pytest.fixture
def folder(tmp_path):
    with LocalIndex.open(tmp_path / "index") as index:
        fill(index, ["red", "blue"])
    return tmp_path / "index"


def vectors(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.segment*")}


def in_child(function):
    """Run a function in a forked process; return how it ended: None, an exception's class name, or a signal."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if not child:
        try:
            function()
            writer.send(None)
        except BaseException as error:
            writer.send(f"{type(error).__name__}: {error}")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else reader.recv()


# Opening destroys nothing


@pytest.mark.parametrize("content", [None, b""])
def test_segments_without_a_catalog_are_kept_and_the_folder_is_refused(folder, content):
    before = vectors(folder)
    (folder / FILE_NAME).unlink()
    if content is not None:
        (folder / FILE_NAME).write_bytes(content)
    with pytest.raises(DamagedFolder, match=r"catalogue\.sqlite is missing or empty.*put back the catalog"):
        LocalIndex.open(folder)
    assert vectors(folder) == before


def test_segments_that_are_newer_than_the_catalog_are_kept_and_named(folder):
    older = (folder / FILE_NAME).read_bytes()
    with LocalIndex.open(folder) as index:
        add(index, Passage("newer", "green"))
    newer, before = (folder / FILE_NAME).read_bytes(), vectors(folder)
    (folder / FILE_NAME).write_bytes(older)
    with pytest.warns(UnknownSegments, match=r"3 files with vectors .* are kept"):
        index = LocalIndex.open(folder)
    with index:
        assert index.ids() == ["p0", "p1"]
        add(index, Passage("other", "dog"))
    with pytest.warns(UnknownSegments):
        index = LocalIndex.open(folder)
    with index:
        assert index.ids() == ["other", "p0", "p1"]
    assert vectors(folder).items() >= before.items()
    (folder / FILE_NAME).write_bytes(newer)
    with pytest.warns(UnknownSegments):
        index = LocalIndex.open(folder)
    with index:
        index.verify()
        assert index.ids() == ["newer", "p0", "p1"]


@can_be_forbidden
def test_a_killed_writers_log_that_was_left_behind_can_be_put_back(folder, tmp_path):
    def write_and_die():
        index = LocalIndex.open(folder)
        for i in range(3):
            add(index, Passage(f"late{i}", "green"))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write_and_die) == "SIGKILL"
    shutil.move(folder / WAL, tmp_path / WAL)
    (folder / f"{FILE_NAME}-shm").unlink()
    with pytest.warns(UnknownSegments):
        index = LocalIndex.open(folder)
    with index:
        assert len(index) == 2
    (folder / FILE_NAME).with_name(WAL).unlink(missing_ok=True)
    shutil.move(tmp_path / WAL, folder / WAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with LocalIndex.open(folder) as index:
            index.verify()
            assert len(index) == 5


def test_a_commit_without_its_rename_is_read_and_finished(folder, monkeypatch):
    reference = MemoryIndex()
    fill(reference, ["red", "blue"])
    with LocalIndex.open(folder) as index:
        for path in folder.glob("*.segment"):
            path.rename(f"{path}.part")
        reader = LocalIndex.open(folder)
        assert_same_results(reader, reference)
        reader.close()
        assert_same_results(index, reference)
    assert not list(folder.glob("*.part"))


def test_files_that_a_killed_merge_left_are_removed(folder):
    with LocalIndex.open(folder) as index:
        for i in range(3):
            add(index, Passage(f"q{i}", "green"))
        before = vectors(folder)
        add(index, Passage("r", "green"))
        merged = before.keys() - vectors(folder).keys()
        assert merged
        for name in merged:
            (folder / name).write_bytes(before[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LocalIndex.open(folder).close()
    assert not merged & vectors(folder).keys()


# A stranger's schema


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON passages BEGIN DELETE FROM passages; END",
        "CREATE VIEW v AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
        "CREATE TABLE mine (x)",
        "CREATE VIRTUAL TABLE docs USING fts5(x)",
        "ALTER TABLE passages ADD COLUMN x AS (zeroblob(1000000000))",
        "ALTER TABLE passages ADD COLUMN x",
        "CREATE INDEX i ON passages (hex(text))",
        "CREATE INDEX i ON passages (text) WHERE text > zeroblob(1000000000)",
        "CREATE TABLE IF NOT EXISTS plan (plan TEXT NOT NULL CHECK (plan > randomblob(1000000000)))",
    ],
)
@pytest.mark.parametrize("name", [FILE_NAME, "nudges.sqlite"])
def test_a_database_with_more_than_our_tables_is_refused(folder, statement, name):
    encoder = HashEncoder()
    if name != FILE_NAME:
        with LocalIndex.open(folder) as index:
            Nudger(encoder, index).close()
        statement = statement.replace("passages", "originals").replace("(text)", "(content)").replace("text", "content")
    with sqlite3.connect(folder / name) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(DamagedFolder, match=r"has the .*put back a copy"), LocalIndex.open(folder) as index:
        Nudger(encoder, index)


# Links


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("name", [FILE_NAME, "nudges.sqlite"])
def test_a_link_in_the_place_of_a_database_is_refused(folder, tmp_path, name, suffix):
    (folder / f"{name}{suffix}").unlink(missing_ok=True)
    (folder / f"{name}{suffix}").symlink_to(tmp_path / "outside")
    with pytest.raises(IndexFolderError, match="is a symbolic link"), LocalIndex.open(folder) as index:
        Nudger(HashEncoder(), index)
    assert not (tmp_path / "outside").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")
def test_a_pipe_in_the_place_of_a_segment_is_damage(folder):
    path = min(folder.glob("*.segment"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedFolder, match=path.name):
        LocalIndex.open(folder)


# Folders that may only be read


@pytest.fixture
def public():
    """A folder in one that every user may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place, "index")
        Path(place, "index").chmod(0o755)


def forbid(folder):
    """Take the right to write a folder from its owner, and the rights of root from this process."""
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path == folder else 0o444)
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


@can_be_forbidden
@pytest.mark.parametrize("state", ["closed", "open", "without shared memory"])
def test_a_folder_that_may_only_be_read_is_searched_and_not_written(public, state):
    folder, reference, writer = public, MemoryIndex(), LocalIndex.open(public)
    for index in (reference, writer):
        fill(index, ["red", "blue"])
    if state == "closed":
        writer.close()

    def use():
        if state == "without shared memory":
            (folder / f"{FILE_NAME}-shm").unlink()
        forbid(folder)
        with LocalIndex.open(folder, HashEncoder()) as index:
            assert_same_results(index, reference)
            index.verify()
            for write in (
                lambda: fill(index, ["x"]),
                lambda: index.delete(["p0"]),
                lambda: index.set_vectors(["p0"], VECTORS),
            ):
                with pytest.raises(IndexFolderError, match="may only be read"):
                    write()
            nudger = Nudger(HashEncoder(), index)
            assert nudger.versions() == nudger.queries() == []

    assert in_child(use) is None
    writer.close()


@can_be_forbidden
def test_a_full_disk_is_named_with_the_file_and_a_remedy(folder):
    import resource  # POSIX alone has it

    def use():
        index = LocalIndex.open(folder)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(IndexFolderError, match=r"segment\.part cannot be written: .*; check the space"):
            index.add([Passage(f"n{i}", "") for i in range(4000)], encode(["red"] * 4000))
        assert len(index) == 2
        assert not list(folder.glob("*.part"))

    assert in_child(use) is None


@pytest.mark.parametrize("column", ["text", "metadata"])
def test_a_passage_that_differs_from_its_hash_is_damage_when_read(folder, column):
    with sqlite3.connect(folder / FILE_NAME) as connection:
        forged = b'{"n": 7}'
        connection.execute(f"UPDATE passages SET {column} = ? WHERE id = CAST('p1' AS BLOB)", (forged,))
    connection.close()
    with LocalIndex.open(folder) as index:
        assert [each.id for each in index.passages(["p0"])] == ["p0"]
        for call in (index.passages, lambda: index.passages(["p1"])):
            with pytest.raises(DamagedFolder, match="of passage 'p1' differs from what was written"):
                call()


def test_a_folder_with_only_the_journal_of_a_catalog_that_was_being_created_is_new(tmp_path):
    (tmp_path / f"{FILE_NAME}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    with LocalIndex.open(tmp_path) as index:
        fill(index, ["red"])
    with LocalIndex.open(tmp_path) as index:
        assert index.ids() == ["p0"]


def test_removed_segments_that_come_back_after_a_power_cut_are_removed_again(folder):
    with LocalIndex.open(folder) as index:
        before = vectors(folder)
        index.delete(["p0"], purge=True)
        returned = before.keys() - vectors(folder).keys()
        assert len(returned) == 3
        for name in returned:
            (folder / name).write_bytes(before[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with LocalIndex.open(folder) as index:
            index.delete([], purge=True)
    assert not returned & vectors(folder).keys()

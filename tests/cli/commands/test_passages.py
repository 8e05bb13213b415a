"""`m3 add`, `m3 delete` and `m3 export` with a tiny checkpoint."""

from __future__ import annotations

import gzip
import json

import pytest

from m3_integrations import LocalIndex, Passage
from tests.cli.conftest import write_lines


@pytest.fixture
def dated(run, bge_m3, tmp_path):
    """An index of a document of two passages, and of four passages with a year."""
    (tmp_path / "note.md").write_text("# A\n\nthe bridge\n\n# B\n\nволга\n", encoding="utf-8")
    rows = ({"_id": f"y{year}", "text": f"the bridge {year}", "year": year} for year in (1990, 2000, 2010, 2020))
    file = write_lines(tmp_path / "rows.jsonl", *rows)
    folder = tmp_path / "dated"
    assert run("index", folder, file, tmp_path / "note.md", "--model", bge_m3()).exit_code == 0
    return folder


def passages_of(folder):
    with LocalIndex.open(folder) as index:
        return index.passages()


def ids_of(folder):
    return [passage.id for passage in passages_of(folder)]


def test_one_passage_is_added_and_replaced(run, dated):
    assert "1 added" in run("add", dated, "--id", "new", "--text", "the bridge").stdout
    assert "1 replaced" in run("add", dated, "--id", "new", "--text", "волга").stdout
    assert Passage("new", "волга") in passages_of(dated)


def test_sources_are_added(run, dated, tmp_path):
    file = write_lines(tmp_path / "more.jsonl", {"_id": "more", "text": "the bridge"})
    assert "1 added" in run("add", dated, file).stdout
    assert "more" in ids_of(dated)


def test_add_needs_an_index(run, tmp_path):
    result = run("add", tmp_path / "none", "--id", "a", "--text", "b")
    assert (result.exit_code, (tmp_path / "none").exists()) == (1, False)


def test_passages_are_deleted_by_id(run, dated):
    assert run("delete", dated, "y1990", "-", given="y2000\n\n").stdout == "2 deleted; the index holds 4\n"
    assert ids_of(dated) == ["note.md#1", "note.md#2", "y2010", "y2020"]


def test_a_document_is_deleted_by_its_name(run, dated):
    assert "2 deleted" in run("delete", dated, "note.md").stdout
    assert ids_of(dated) == ["y1990", "y2000", "y2010", "y2020"]


def test_passages_are_deleted_by_a_filter_after_a_dry_run(run_json, dated):
    options = ("delete", dated, "--where", "year < 2005")
    assert run_json(*options, "--dry-run")["deleted"] == 2
    assert len(ids_of(dated)) == 6
    assert run_json(*options)["deleted"] == 2
    assert ids_of(dated) == ["note.md#1", "note.md#2", "y2010", "y2020"]


def test_an_unknown_id_is_named_and_the_others_are_deleted(run, dated):
    result = run("delete", dated, "y1990", "other")
    assert result.exit_code == 1
    assert "the index has no 'other'" in result.stderr
    assert "y1990" not in ids_of(dated)


@pytest.mark.parametrize("words", [(), ("a", "--where", "year == 1"), ("--where", "year = 1")])
def test_delete_takes_either_ids_or_a_filter(words, run, dated):
    assert run("delete", dated, *words).exit_code == 2


def test_an_export_is_indexed_as_the_same_passages(run, bge_m3, dated, tmp_path):
    lines = run("export", dated)
    assert len(lines.stdout.splitlines()) == 6
    done = run("index", tmp_path / "again", "-", "--model", bge_m3(), given=lines.stdout)
    assert "6 added" in done.stdout
    assert passages_of(tmp_path / "again") == passages_of(dated)


def test_an_export_is_written_to_a_file(run, run_json, dated, tmp_path):
    assert run_json("export", dated, tmp_path / "all.jsonl.gz", "--where", "year >= 2010")["passages"] == 2
    with gzip.open(tmp_path / "all.jsonl.gz", "rt", encoding="utf-8") as file:
        assert [json.loads(line)["_id"] for line in file] == ["y2010", "y2020"]
    assert [each["_id"] for each in run_json("export", dated, "--where", "year == 1990")["passages"]] == ["y1990"]


def test_a_purge_leaves_nothing_of_passages_in_the_files(run, run_json, dated):
    def has(text):
        return any(text in path.read_bytes() for path in dated.iterdir())

    assert has(b"the bridge 1990")
    assert run_json("delete", dated, "y1990", "--purge")["purged"] is True
    assert not has(b"the bridge 1990")
    run("delete", dated, "y2000")
    assert "0 deleted and purged; the index holds 4" in run("delete", dated, "--purge").stdout
    assert not has(b"the bridge 2000")
    assert run_json("delete", dated, "y2010", "--purge", "--dry-run")["purged"] is False
    assert has(b"the bridge 2010")

"""`m3 index` with a tiny checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from m3_integrations import LocalIndex, M3Encoder, Passage
from m3_integrations.cli.commands.index import update_index
from m3_integrations.cli.opening import open_for_writing
from m3_integrations.cli.progress import EncodingEstimate, describe_seconds, estimate_encoding
from m3_integrations.cli.sources import Sources
from m3_integrations.testing import HashEncoder
from tests.cli.conftest import write_lines
from tests.optional import requires


@pytest.fixture
def docs(tmp_path):
    """A folder of documents, with files that are not indexed."""
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "heron.md").write_text("# Heron\n\nThe blue heron nests.\n\n# Food\n\nFish.\n", encoding="utf-8")
    (folder / "sub" / "copper.txt").write_text("Copper prices doubled.", encoding="utf-8")
    (folder / ".git" / "hidden.md").write_text("hidden", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def ids_of(folder):
    with LocalIndex.open(folder) as index:
        return index.ids()


def test_an_index_inside_another_one_is_refused_before_anything_is_read(run, filled):
    result = run("index", filled / "inner", "nowhere.jsonl")
    assert result.exit_code == 2
    assert f"would be inside the index {filled}; name a folder outside it" in result.stderr
    assert not (filled / "inner").exists()


def test_unchanged_passages_are_skipped(run, bge_m3, tmp_path):
    file = write_lines(tmp_path / "texts.jsonl", {"_id": "a", "text": "the bridge"}, {"_id": "b", "text": "волга"})
    filled = run("index", tmp_path / "index", file, "--model", bge_m3())
    assert filled.stdout == "2 added, 0 replaced, 0 unchanged; the index holds 2\n"
    again = run("index", tmp_path / "index", file)
    assert again.stdout == "0 added, 0 replaced, 2 unchanged; the index holds 2\n"


def test_an_index_is_opened_with_the_model_that_filled_it(run_json, filled):
    assert run_json("search", filled, "the bridge")["matches"][0]["id"] == "a"


def test_a_folder_of_documents_is_indexed_by_heading(run, run_json, bge_m3, docs, tmp_path):
    done = run("index", tmp_path / "index", docs, "--model", bge_m3())
    assert "3 added" in done.stdout
    assert "skipped files of other kinds: 1 .png" in done.stderr
    assert ids_of(tmp_path / "index") == ["docs/heron.md#1", "docs/heron.md#2", "docs/sub/copper.txt#1"]
    found = run_json("search", tmp_path / "index", "copper", "-k", 3)["matches"]
    metadata = {match["id"]: match["metadata"] for match in found}
    assert metadata["docs/heron.md#2"] == {"source": "docs/heron.md", "heading": "Food"}


def test_names_of_documents_are_paths_below_the_working_directory(run, bge_m3, docs, tmp_path, monkeypatch):
    monkeypatch.chdir(docs.parent)
    run("index", tmp_path / "index", "docs", "--model", bge_m3())
    named = ids_of(tmp_path / "index")
    monkeypatch.chdir(docs)
    run("index", tmp_path / "here", ".", "--model", bge_m3())
    assert named == [f"docs/{id}" for id in ids_of(tmp_path / "here")]
    monkeypatch.chdir(docs.parent)
    one = run("index", tmp_path / "index", "docs/sub/copper.txt")
    assert "0 added, 0 replaced, 1 unchanged" in one.stdout


def test_passages_that_a_changed_document_no_longer_has_are_deleted(run, bge_m3, docs, tmp_path):
    run("index", tmp_path / "index", docs, "--model", bge_m3())
    (docs / "heron.md").write_text("# Heron\n\nThe grey heron nests.\n", encoding="utf-8")
    (docs / "sub" / "copper.txt").unlink()
    done = run("index", tmp_path / "index", docs)
    assert "0 added, 1 replaced, 0 unchanged, 1 deleted" in done.stdout
    assert ids_of(tmp_path / "index") == ["docs/heron.md#1", "docs/sub/copper.txt#1"]
    assert "1 deleted" in run("index", tmp_path / "index", docs, "--sync").stdout
    assert ids_of(tmp_path / "index") == ["docs/heron.md#1"]


def test_an_unreadable_document_is_named_and_what_the_index_has_of_it_is_kept(run, run_json, bge_m3, docs, tmp_path):
    run("index", tmp_path / "index", docs, "--model", bge_m3())
    (docs / "sub" / "copper.txt").write_bytes(b"\xff\xfe\xff")
    done = run("index", tmp_path / "index", docs, "--sync")
    assert done.exit_code == 1
    assert "copper.txt" in done.stderr
    assert "docs/sub/copper.txt#1" in ids_of(tmp_path / "index")


def test_what_a_folder_holds_that_cannot_be_read_counts_as_unread(docs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Sources()
    found.add_folder(docs / "gone", tmp_path / "index")  # listing it fails, as without the permission
    assert found.unreadable == ["docs/gone/"]
    assert found.is_unread("docs/gone/deep/heron.md")
    assert not found.is_unread("docs/gone.md")


def test_sync_keeps_what_was_not_read(bge_m3, docs, tmp_path):
    encoder = M3Encoder.from_pretrained(str(bge_m3()))
    ids = ["docs/a.md#1", "docs/sub/b.md#2", "docs/c.pdf#1"]
    with LocalIndex.open(tmp_path / "index", encoder) as index:
        index.add([Passage(id, "the bridge") for id in ids], encoder.encode_passages(["the bridge"] * 3))
        found = Sources(unreadable=["docs/sub/"], unsupported={"docs/c.pdf"})
        assert update_index(tmp_path / "index", index, encoder, found, sync=True).failed
        assert index.ids() == ["docs/c.pdf#1", "docs/sub/b.md#2"]


def test_standard_input_is_read_as_json_lines(run, bge_m3, tmp_path):
    done = run("index", tmp_path / "index", "-", "--model", bge_m3(), given='{"_id": "a", "text": "the bridge"}\n')
    assert "1 added" in done.stdout
    assert ids_of(tmp_path / "index") == ["a"]


def test_several_sources_are_one_index(run_json, bge_m3, docs, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("id,text,year\na,the bridge,1890\n", encoding="utf-8")
    done = run_json("index", tmp_path / "index", table, docs, "--model", bge_m3())
    assert (done["added"], done["passages"], done["unreadable"]) == (4, 4, [])


def test_a_beir_folder_is_read_as_its_corpus(run, bge_m3, tmp_path):
    (tmp_path / "beir").mkdir()
    write_lines(tmp_path / "beir" / "corpus.jsonl", {"_id": "a", "text": "the bridge"})
    write_lines(tmp_path / "beir" / "queries.jsonl", {"_id": "q", "text": "why?"})
    run("index", tmp_path / "index", tmp_path / "beir", "--model", bge_m3())
    assert ids_of(tmp_path / "index") == ["a"]


def test_a_repeated_id_is_reported(run, bge_m3, tmp_path):
    file = write_lines(tmp_path / "twice.jsonl", {"_id": "a", "text": "the bridge"}, {"_id": "a", "text": "волга"})
    done = run("index", tmp_path / "index", file, "--model", bge_m3())
    assert "1 superseded" in done.stdout


@pytest.mark.parametrize(
    ("source", "text", "status", "advice"),
    [
        ("missing.jsonl", None, 1, "there is no"),
        ("bad.jsonl", '{"_id": "a", "text": "x"}\n{"key": "b"}\n', 1, "bad.jsonl:2 has no '_id'"),
        ("bad.csv", "id,body\na,b\n", 1, "its first line is id,text"),
        ("empty.jsonl", "", 1, "there are no passages in"),
        ("picture.png", "PNG", 1, "is none of the files that can be indexed: .jsonl"),
    ],
)
def test_a_source_that_cannot_be_read_leaves_no_folder(source, text, status, advice, run, tmp_path):
    file = tmp_path / source
    if text is not None:
        file.write_text(text, encoding="utf-8")
    result = run("index", tmp_path / "index", file, "--model", tmp_path / "no-model")
    assert result.exit_code == status
    assert advice in result.stderr
    assert not (tmp_path / "index").exists()
    assert "there is no index at" in run("search", tmp_path / "index", "why?").stderr


def test_a_model_that_cannot_be_read_leaves_no_folder(run, docs, tmp_path):
    assert run("index", tmp_path / "index", docs, "--model", tmp_path / "no-model").exit_code == 1
    assert not (tmp_path / "index").exists()


def fill(index, encoder):
    index.add([Passage("a", "a")], encoder.encode_passages(["a"]))
    return index


def test_a_new_folder_is_removed_after_an_error_and_kept_once_it_holds_passages(tmp_path):
    encoder = HashEncoder()
    with pytest.raises(OSError, match="full"), open_for_writing(tmp_path / "new", encoder):
        raise OSError("full")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="k must be"), open_for_writing(tmp_path / "new", encoder) as index:
        fill(index, encoder).search("dense", encoder.encode_queries(["a"]), 0)
    assert ids_of(tmp_path / "new") == ["a"]


def test_an_index_without_passages_is_not_searched(run, tmp_path):
    LocalIndex.open(tmp_path / "index").close()
    result = run("search", tmp_path / "index", "why?")
    assert result.exit_code == 1
    assert "holds no passages" in result.stderr


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell started in the background
from pathlib import Path
from m3_integrations import M3Encoder, cli
encode, begun, log = M3Encoder.encode_passages, 0, Path(sys.argv.pop(1))
def slowly(self, texts, *args, **options):
    global begun
    begun += len(texts)
    log.write_text(str(begun))
    time.sleep(0.05 * len(texts))
    return encode(self, texts, *args, **options)
M3Encoder.encode_passages = slowly
sys.argv = ["m3", *sys.argv[1:]]
cli.main()
"""


def test_ctrl_c_says_what_is_kept_and_the_next_run_goes_on(run, bge_m3, tmp_path):
    file = write_lines(tmp_path / "many.jsonl", *({"_id": f"{i:04d}", "text": f"bridge {i}"} for i in range(1500)))
    words = ["index", tmp_path / "index", file, "--model", bge_m3()]
    command = [sys.executable, "-c", SLOW, str(tmp_path / "log"), *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "index").exists():
        time.sleep(0.1)
    while time.monotonic() < deadline and len(ids_of(tmp_path / "index")) < 40:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    kept = len(ids_of(tmp_path / "index"))
    assert process.returncode == 130
    assert f"interrupted: the index keeps {kept:,} passages; run the same command again to go on" in error
    assert 40 <= kept < 1500
    lost = int((tmp_path / "log").read_text()) - kept  # begun, and not kept; each takes 0.05 s
    assert 0.05 * lost <= 5
    assert f"{1500 - kept:,} added, 0 replaced, {kept:,} unchanged" in run(*words).stdout


def test_watch_is_not_for_stdin(run, tmp_path):
    assert run("index", tmp_path / "index", "-", "--watch").exit_code == 2


WATCHED = """
import signal
from m3_integrations import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main()
"""


@requires("watchfiles")
def test_watch_follows_changes(bge_m3, docs, tmp_path):
    words = [
        "-c",
        WATCHED,
        "index",
        str(tmp_path / "index"),
        str(docs),
        "--watch",
        "--model",
        str(bge_m3()),
    ]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert "3 added" in process.stdout.readline()
    (docs / "sub" / "copper.txt").unlink()  # at once: changes before the watch begins count too
    (docs / "new.txt").write_text("A new bridge.", encoding="utf-8")
    while "1 added" not in (line := process.stdout.readline()):
        assert "0 added" in line  # the deletion came alone
    assert ids_of(tmp_path / "index") == ["docs/heron.md#1", "docs/heron.md#2", "docs/new.txt#1"]
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 0


def test_the_time_is_estimated_before_a_long_indexing_starts(tmp_path):
    encoder, many = HashEncoder(), [Passage(f"p{i}", "the bridge over the river " * 40) for i in range(60)]
    with LocalIndex.open(tmp_path / "index", encoder) as index:
        assert estimate_encoding(encoder, index, many[:2]) is None
        estimate = estimate_encoding(encoder, index, many)
        assert (estimate.passages, estimate.seconds > 0) == (60, True)
        index.add(many, encoder.encode_passages([each.text for each in many]))
        assert estimate_encoding(encoder, index, many) is None  # nothing changed


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "about 1 seconds"), (89, "about 89 seconds"), (150, "about 2 minutes"), (8000, "about 2 hours")],
)
def test_durations_are_in_words(seconds, words):
    assert describe_seconds(seconds) == words
    estimate = EncodingEstimate(1500, seconds, {"openvino": 2.0})
    assert str(estimate) == f"{words} for 1,500 passages; about 2 seconds with --backend openvino"


def test_the_estimate_is_printed_unless_quiet(run, bge_m3, tmp_path):
    lines = ({"_id": f"{i:03d}", "text": "the bridge " * 50} for i in range(80))
    file = write_lines(tmp_path / "many.jsonl", *lines)
    assert "for 80 passages" in run("index", tmp_path / "index", file, "--model", bge_m3()).stderr
    assert run("index", tmp_path / "quiet", file, "--model", bge_m3(), "-q").stderr == ""


def test_an_unknown_backend_is_an_error_of_usage(run, docs, tmp_path):
    result = run("index", tmp_path / "index", docs, "--backend", "tensorflow")
    assert (result.exit_code, "--backend is torch, openvino or onnx" in result.stderr) == (2, True)

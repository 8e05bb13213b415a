"""The command, on a tiny checkpoint."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from m3_integrations import cli


@pytest.fixture
def run():
    def call(*words: object):
        return CliRunner().invoke(cli.app, [str(word) for word in words])

    return call


def lines(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def test_what_was_ingested_is_found(run, bge_m3, tmp_path):
    file = lines(tmp_path / "texts.jsonl", {"_id": "a", "text": "the bridge"}, {"_id": "b", "text": "волга"})
    filled = run("ingest", tmp_path / "index", file, "--model", bge_m3())
    assert "2 added, 0 replaced, 0 unchanged" in filled.output
    again = run("ingest", tmp_path / "index", file, "--model", bge_m3())
    assert "0 added, 0 replaced, 2 unchanged" in again.output
    found = run("search", tmp_path / "index", "the bridge", "--k", 1, "--model", bge_m3())
    assert found.exit_code == 0
    assert "the bridge" in found.output


def test_a_line_that_is_no_passage_is_named_with_its_file_and_number(run, bge_m3, tmp_path):
    file = lines(tmp_path / "texts.jsonl", {"_id": "a", "text": "the bridge"}, {"id": "b"})
    result = run("ingest", tmp_path / "index", file, "--model", bge_m3())
    assert "texts.jsonl, line 2" in str(result.exception)


def test_an_error_of_ours_is_one_line_without_a_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["m3", "search", str(tmp_path / "index"), "why?", "--model", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    written = capsys.readouterr()
    assert "no index at" in written.err
    assert "Traceback" not in written.err + written.out


def test_the_demonstration_writes_its_page(run, bge_m3, tmp_path):
    result = run("demo", "--out", tmp_path / "out", "--model", bge_m3(positions=64))
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "26 milyon tuğladan" in page
    assert "ndcg@10" in page
    assert "<mark" in page

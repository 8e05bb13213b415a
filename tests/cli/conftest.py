"""The `m3` command in this process, and an index to try it on."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3_integrations import cli


@pytest.fixture
def run():
    """Run the command with these words."""

    def call(*words: object, given: str | None = None):
        return CliRunner().invoke(cli.app, [str(word) for word in words], input=given)

    return call


@pytest.fixture
def run_json(run):
    """Run the command with --json, and return the document."""

    def call(*words: object, given: str | None = None):
        result = run(*words, "--json", given=given)
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert [*document] == ["schema", "command", *documented_fields()[document["command"]]]
        return document

    return call


DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@cache
def documented_fields():
    """Fields of each command's document by docs/cli.md."""
    rows = re.findall(r"^\| (\w+) \| (`.*) \|$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {command: re.findall(r"`(\w+)`", fields) for command, fields in rows}


def write_lines(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


@pytest.fixture
def filled(run, bge_m3, tmp_path):
    """The folder of an index of two passages."""
    file = write_lines(tmp_path / "filled.jsonl", {"_id": "a", "text": "the bridge"}, {"_id": "b", "text": "волга"})
    assert run("index", tmp_path / "filled", file, "--model", bge_m3()).exit_code == 0
    return tmp_path / "filled"

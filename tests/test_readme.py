"""The README's Python blocks run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_readme_shows_both_frameworks_and_neither():
    assert len(BLOCKS) == 4


@pytest.mark.parametrize("block", BLOCKS, ids=["llama_index", "langchain", "plain", "nudge"])
def test_a_block_of_the_readme_runs(block, mini, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_llama_index_block_finds_the_bridge_across_languages(mini, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    assert "Zhaozhou" in names["best"][0].text


def test_nothing_in_the_readme_waits_to_be_filled_in():
    assert not re.search(r"{{|[A-Z]+_TABLE", README.read_text(encoding="utf-8"))

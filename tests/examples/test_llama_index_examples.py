"""The LlamaIndex examples run offline, and the pages on migrating do what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from llama_index.core import Settings
from llama_index.core.llms import MockLLM

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """A folder of its own, and LlamaIndex's settings put back afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("_llm", "_embed_model", "_node_parser", "_transformations"):
        monkeypatch.setattr(Settings, name, None)
    Settings.llm = MockLLM()


def run(page: str) -> dict[str, object]:
    """The names that the Python blocks of a page leave behind, run one after the other."""
    names: dict[str, object] = {}
    text = (EXAMPLES / "migrating" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


def test_the_query_engine_finds_across_languages_filters_and_loads_again(mini, capsys):
    runpy.run_path(str(EXAMPLES / "llama_index_query_engine.py"), run_name="__main__")
    first, bricks, old, again = capsys.readouterr().out.splitlines()
    assert "Zhaozhou" in first
    assert "Ziegelsteinbrücke" in bricks
    assert "Zhaozhou" in old
    assert "Forth" in again


def test_an_index_of_bge_m3_is_taken_over(mini, capsys):
    names = run("from_bgem3_index.md")
    found, documents, filtered = capsys.readouterr().out.splitlines()
    assert "Zhaozhou" in found
    assert documents == "['forth', 'golden-gate']"
    assert "Golden Gate" in filtered
    assert names["index"].store.weights == {"dense": 0.4, "sparse": 0.2, "multi_vector": 0.4}


def test_an_embedding_of_hugging_face_is_taken_over(mini, capsys):
    run("from_huggingface_embedding.md")
    dense, hybrid = capsys.readouterr().out.splitlines()
    assert "Zhaozhou" in dense
    assert "Zhaozhou" in hybrid

"""The LlamaIndex example and the LlamaIndex migration pages run unchanged."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from llama_index.core import Settings
from llama_index.core.llms import MockLLM

EXAMPLES = Path(__file__).parents[2] / "examples"
MIGRATING = EXAMPLES.parent / "docs" / "migrating"


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """Run in a temporary folder, and restore the settings of LlamaIndex afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("_llm", "_embed_model", "_node_parser", "_transformations"):
        monkeypatch.setattr(Settings, name, None)
    Settings.llm = MockLLM()


def run(page: str) -> dict[str, object]:
    """Run the Python blocks of a page in order and return their names."""
    names: dict[str, object] = {}
    text = (MIGRATING / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


def test_the_query_engine_searches_across_languages_filters_and_reloads(mini, capsys):
    runpy.run_path(str(EXAMPLES / "llama_index_query_engine.py"), run_name="__main__")
    first, bricks, old, reloaded = capsys.readouterr().out.splitlines()
    assert "Zhaozhou" in first
    assert "Ziegelsteinbrücke" in bricks
    assert "Zhaozhou" in old
    assert "Forth" in reloaded


def test_the_bge_m3_index_page_runs(mini, capsys):
    names = run("from_bgem3_index.md")
    found, documents, filtered = capsys.readouterr().out.splitlines()
    assert "Zhaozhou" in found
    assert documents == "['forth', 'golden-gate']"
    assert "Golden Gate" in filtered
    assert names["index"].store.weights == {"dense": 0.4, "sparse": 0.2, "multi_vector": 0.4}


def test_the_hugging_face_embedding_page_runs(mini, capsys):
    run("from_huggingface_embedding.md")
    dense, hybrid = capsys.readouterr().out.splitlines()
    assert "Zhaozhou" in dense
    assert "Zhaozhou" in hybrid

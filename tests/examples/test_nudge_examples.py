"""The examples of nudging run offline, and new questions find more afterwards."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, capsys) -> tuple[dict[str, tuple[float, float]], str]:
    """What an example prints: recall@1 and nDCG@10 before and after, and all of it."""
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    said = capsys.readouterr().out
    lines = re.findall(r"(\w+) +recall@1 ([\d.]+)  nDCG@10 ([\d.]+)", said)
    return {when: (float(recall), float(ndcg)) for when, recall, ndcg in lines}, said


def test_llama_index_finds_more_after_the_nudge_and_the_same_in_an_index_built_anew(mini, capsys):
    figures, said = run("nudge_llama_index.py", capsys)
    assert figures["after"][0] > figures["before"][0]
    assert figures["after"][1] > figures["before"][1] + 0.05
    written, anew = said.splitlines()[-2:]
    assert written == anew
    assert "mriya" in written


def test_langchain_finds_more_after_the_nudge(mini, capsys):
    figures, said = run("nudge_langchain.py", capsys)
    assert figures["after"][0] > figures["before"][0]
    assert figures["after"][1] > figures["before"][1] + 0.05
    assert "of 121 documents moved by method 'n'" in said

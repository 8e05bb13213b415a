"""The nudging examples run offline and improve new queries."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, capsys) -> tuple[dict[str, tuple[float, float]], str]:
    """Run an example and return recall@1 and nDCG@10 before and after, and its output."""
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    output = capsys.readouterr().out
    lines = re.findall(r"(\w+) +recall@1 ([\d.]+)  nDCG@10 ([\d.]+)", output)
    return {when: (float(recall), float(ndcg)) for when, recall, ndcg in lines}, output


def test_a_nudge_improves_a_llama_index_index_and_one_rebuilt_with_the_model(mini, capsys):
    metrics, output = run("nudge_llama_index.py", capsys)
    assert metrics["after"][0] > metrics["before"][0]
    assert metrics["after"][1] > metrics["before"][1] + 0.05
    written, rebuilt = output.splitlines()[-2:]
    assert written == rebuilt
    assert "mriya" in written


def test_a_nudge_improves_a_langchain_store(mini, capsys):
    metrics, output = run("nudge_langchain.py", capsys)
    assert metrics["after"][0] > metrics["before"][0]
    assert metrics["after"][1] > metrics["before"][1] + 0.05
    assert "of 121 documents moved by method 'nudge-n'" in output

"""The example nudges, improves new queries, writes its report and reverts."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "nudge_a_corpus.py"


def test_a_nudge_improves_new_queries_and_revert_restores_the_scores(mini, capsys, tmp_path):
    page = tmp_path / "nudge.html"
    runpy.run_path(str(EXAMPLE))["main"](str(page))
    output = capsys.readouterr().out
    metrics = re.findall(r"(\w+) +recall@1 ([\d.]+)  nDCG@10 ([\d.]+)", output)
    recall = {when: float(value) for when, value, _ in metrics}
    ndcg = {when: float(value) for when, _, value in metrics}
    assert ndcg["after"] > ndcg["before"] + 0.05
    assert recall["after"] > recall["before"]
    assert (recall["reverted"], ndcg["reverted"]) == (recall["before"], ndcg["before"])
    assert "held-out topics" in output
    assert "<svg" in page.read_text(encoding="utf-8")

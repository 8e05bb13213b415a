"""The example nudges, gains on new questions, writes its page and goes back."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "nudge_a_corpus.py"


def test_new_questions_find_more_after_the_nudge_and_as_before_when_it_is_taken_back(mini, capsys, tmp_path):
    page = tmp_path / "nudge.html"
    runpy.run_path(str(EXAMPLE))["main"](str(page))
    said = capsys.readouterr().out
    figures = re.findall(r"(\w+) +recall@1 ([\d.]+)  nDCG@10 ([\d.]+)", said)
    recall = {when: float(value) for when, value, _ in figures}
    ndcg = {when: float(value) for when, _, value in figures}
    assert ndcg["after"] > ndcg["before"] + 0.05
    assert recall["after"] > recall["before"]
    assert (recall["back"], ndcg["back"]) == (recall["before"], ndcg["before"])
    assert "unlike training" in said
    assert "<svg" in page.read_text(encoding="utf-8")

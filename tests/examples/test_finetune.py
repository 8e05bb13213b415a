"""The fine-tuning example runs offline: it mines, trains and loads the model."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE, WORLD = EXAMPLES / "finetune.py", EXAMPLES / "world"


@pytest.fixture
def part(tmp_path):
    """A quarter of the demo's corpus, with the questions that it answers."""
    passages = (WORLD / "passages.jsonl").read_text(encoding="utf-8").splitlines()[::4]
    chosen = {json.loads(line)["_id"] for line in passages}
    (tmp_path / "passages.jsonl").write_text("\n".join(passages), encoding="utf-8")
    (tmp_path / "queries.jsonl").symlink_to(WORLD / "queries.jsonl")
    (tmp_path / "qrels").mkdir()
    for path in (WORLD / "qrels").iterdir():
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        kept = [header, *(line for line in lines if line.split("\t")[1] in chosen)]
        (tmp_path / "qrels" / path.name).write_text("\n".join(kept), encoding="utf-8")
    return tmp_path


def test_a_few_steps_of_fine_tuning_do_not_worsen_the_model(mini, part, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), "2", str(part)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    output = capsys.readouterr().out
    before, after = (
        float(value) for value in re.findall(r"^(?:before|after).*all ([\d.]+)$", output, flags=re.MULTILINE)
    )
    assert "stage 1: dense" in output
    assert after > before - 0.02

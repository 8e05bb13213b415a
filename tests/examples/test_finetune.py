"""The example of finetuning runs offline, mines, trains, and loads what came of it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"


def test_a_few_steps_of_finetuning_leave_a_model_that_finds_no_less(mini, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    before, after = (
        float(value) for value in re.findall(r"^(?:before|after).*all ([\d.]+)$", said, flags=re.MULTILINE)
    )
    assert "stage 1: dense" in said
    assert after > before - 0.02

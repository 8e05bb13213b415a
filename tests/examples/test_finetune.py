"""The fine-tuning example runs offline: it mines, trains and loads the model."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"


def test_a_few_steps_of_fine_tuning_do_not_worsen_the_model(mini, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    output = capsys.readouterr().out
    before, after = (
        float(value) for value in re.findall(r"^(?:before|after).*all ([\d.]+)$", output, flags=re.MULTILINE)
    )
    assert "stage 1: dense" in output
    assert after > before - 0.02

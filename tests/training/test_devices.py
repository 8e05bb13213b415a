"""Training on an accelerator: `pytest -m gpu`, on the device that M3_TEST_DEVICE names."""

from __future__ import annotations

import math
import os

import pytest
import torch

from tests.training import loops
from tests.training.loops import run

DEVICE = os.environ.get("M3_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available() and DEVICE != "cpu", reason="there is no accelerator"),
]


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch):
    monkeypatch.setattr(loops, "DEVICE", DEVICE)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "m3"},
        {"objective": "gte"},
        {"objective": "m3", "precision": "bfloat16"},
        {"objective": "m3", "checkpointing": True, "sub_batch": 64},
        {"objective": "m3", "low_rank": 2},
        {"objective": "m3", "parts": ("sparse", "multi_vector")},
    ],
    ids=str,
)
def test_steps_of_every_objective_are_finite(bge_m3, tmp_path, options):
    trained = run(bge_m3(), tmp_path / "model", steps=2, learning_rate=1e-3, **options)
    losses = [entry["loss"] for entry in trained.stages[0].log if "loss" in entry]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)


def test_a_validated_run_keeps_the_better_model(bge_m3, tmp_path):
    trained = run(bge_m3(), tmp_path / "model", validated=True, steps=2, learning_rate=1e-3)
    assert trained.stages[0].after is not None

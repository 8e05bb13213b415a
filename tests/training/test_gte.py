"""GTE's two stages of training on a tiny token classifier, end to end and resumed."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from m3_integrations import M3Encoder
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.training.objective.model import TokenBatch, TrainableM3
from tests.checkpoints import TinyCheckpoint, write_model, write_pooling
from tests.optional import requires_architecture
from tests.training.loops import run_gte
from tests.training.test_run import changed_weights, largest_difference, start_process

pytestmark = requires_architecture("gte")


@pytest.fixture(scope="module")
def gte(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gte") / "model"
    write_model(folder, "gte", AutoModelForTokenClassification, TinyCheckpoint(positions=64), num_labels=1)
    return write_pooling(folder, "cls")


@pytest.fixture(scope="module")
def trained(gte, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "model"
    return run_gte(gte, folder).folder


def test_both_stages_end_in_a_checkpoint_of_both_modes(gte, trained):
    encoder = M3Encoder.from_pretrained(str(trained), device="cpu")
    assert encoder.modes == {"dense", "sparse"}
    changed = changed_weights(trained, gte)
    assert "sparse.weight" in changed
    assert any(name.startswith("layers.0.self_attn") for name in changed)
    assert np.isfinite(encoder.encode_passages(["the bridge is near the river"]).dense).all()


def test_a_run_killed_in_its_second_stage_resumes_to_the_same_model(gte, trained, tmp_path):
    state = tmp_path / "model.training" / "stage-2" / "checkpoint-2" / "trainer_state.json"
    assert start_process(gte, tmp_path / "model", killed_after=str(state)).wait() == -signal.SIGKILL
    assert state.is_file()
    assert not (tmp_path / "model").exists()
    run_gte(gte, tmp_path / "model")
    assert largest_difference(tmp_path / "model", trained) == 0


def test_a_truncated_vector_is_trained_as_it_is_used(gte, tmp_path):
    encoder = M3Encoder.from_pretrained(str(gte), device="cpu", truncate_dim=8)
    encoder.save_pretrained(tmp_path / "short")
    checkpoint = checkpoints.read(str(tmp_path / "short"))
    sequences, _ = encoder.sequencer.sequences(["the bridge"], "")
    with torch.no_grad():
        dense = TrainableM3.from_checkpoint(checkpoint)(TokenBatch.of(sequences, 1), ("dense",)).dense
    np.testing.assert_allclose(dense, encoder.encode_passages(["the bridge"]).dense, rtol=0, atol=1e-6)

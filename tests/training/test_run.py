"""Training runs: trained and frozen parts, resuming, several processes, and the selected model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.core.errors import LexicalCollapse, TrainingDiverged
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.training.data.sampler import Sampling
from m3_integrations.training.monitoring import LexicalCollapseMonitor, Validation
from m3_integrations.training.objective.model import Representations, TrainableM3
from m3_integrations.training.preparation import add_heads
from m3_integrations.training.run import LOG_FILE, train
from m3_integrations.training.stages import Stage, contrastive, unified, warm_up
from m3_integrations.training.trainer import TrainConfig
from tests.training.loops import examples, run, validation

ROOT = Path(__file__).parents[2]
RATE = 1e-3  # a tiny model learns something in a few steps


def tensors(folder):
    """All weights of a folder, heads included."""
    checkpoint = checkpoints.read(str(folder))
    heads = {
        name: part.state_dict() for name, part in vars(checkpoint.heads).items() if isinstance(part, torch.nn.Linear)
    }
    flat = {f"{part}.{name}": value for part, state in heads.items() for name, value in state.items()}
    return {**checkpoint.backbone.state_dict(), **flat}


def largest_difference(folder, other):
    """The largest difference of any weight with a gradient.

    The bias of a key has none: softmax cancels it, and AdamW amplifies its rounding errors arbitrarily.
    """
    first, second = tensors(folder), tensors(other)
    assert first.keys() == second.keys()
    names = [name for name in first if not name.endswith("key.bias")]
    return max(float((first[name] - second[name]).abs().max()) for name in names)


def changed_weights(folder, other):
    """The names of the weights that differ."""
    first, second = tensors(folder), tensors(other)
    return {name for name in first if not torch.equal(first[name], second[name])}


def start_process(model, folder, environment=(), **options):
    command = [sys.executable, "-m", "tests.training.loops", str(model), str(folder), json.dumps(options)]
    variables = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables, **dict(environment)})


@pytest.fixture(scope="module")
def uninterrupted(bge_m3, tmp_path_factory):
    """The model of an uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "model"
    run(bge_m3(), folder, learning_rate=RATE)
    return folder


def kill(model, folder):
    """Kill a run some time after its first checkpoint; return the folder of its checkpoints."""
    stage = folder.with_name(f"{folder.name}.training") / "stage-1"
    process = start_process(model, folder, steps=6, learning_rate=RATE)
    while process.poll() is None and not (stage / "checkpoint-2" / "trainer_state.json").is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    return stage


def test_a_killed_and_resumed_run_gives_the_same_model(bge_m3, uninterrupted, tmp_path):
    kill(bge_m3(), tmp_path / "model")
    run(bge_m3(), tmp_path / "model", learning_rate=RATE)
    assert largest_difference(tmp_path / "model", uninterrupted) == 0
    assert changed_weights(tmp_path / "model", bge_m3())


@pytest.mark.parametrize("state", [None, "", '{"global_step": 6, "log_his'])
def test_a_run_resumes_from_its_last_complete_checkpoint(bge_m3, uninterrupted, tmp_path, state):
    stage = kill(bge_m3(), tmp_path / "model")
    last = max(stage.glob("checkpoint-*/trainer_state.json")).parent
    incomplete = stage / "checkpoint-6"
    if last != incomplete:  # otherwise no complete checkpoint is left, and the run restarts
        shutil.copytree(last, incomplete, dirs_exist_ok=True)
    (incomplete / "trainer_state.json").unlink()
    if state is not None:
        (incomplete / "trainer_state.json").write_text(state)
    run(bge_m3(), tmp_path / "model", learning_rate=RATE)
    assert largest_difference(tmp_path / "model", uninterrupted) == 0


@pytest.mark.parametrize("objective", ["m3", "gte"])
def test_two_processes_train_the_same_model_as_one(bge_m3, tmp_path, objective):
    options = {"steps": 3, "rows": 5, "learning_rate": RATE, "objective": objective}  # shards of 3 and 2 rows
    run(bge_m3(), tmp_path / "alone", **options)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        start_process(bge_m3(), tmp_path / "both", {**both, "RANK": rank, "LOCAL_RANK": rank}.items(), **options)
        for rank in ("0", "1")
    ]
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert largest_difference(tmp_path / "both", tmp_path / "alone") < 1e-4
    assert largest_difference(tmp_path / "both", bge_m3()) > 1e-3


def test_only_the_named_parts_are_trained(bge_m3, tmp_path):
    run(bge_m3(), tmp_path / "model", steps=2, parts=("sparse",))
    assert changed_weights(tmp_path / "model", bge_m3()) == {"sparse.weight", "sparse.bias"}


def test_the_layers_are_trained_without_the_token_embeddings(bge_m3, tmp_path):
    run(bge_m3(), tmp_path / "model", steps=2, parts=("layers",))
    changed = changed_weights(tmp_path / "model", bge_m3())
    assert "embeddings.position_embeddings.weight" in changed
    assert "encoder.layer.0.attention.self.query.weight" in changed
    assert not changed & {"embeddings.word_embeddings.weight", "sparse.weight", "multi_vector.weight"}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without an accelerator")
def test_bfloat16_needs_no_accelerator_and_no_device_option(bge_m3, tmp_path):
    stage = Stage({"places": examples()}, steps=2, precision="bfloat16", sampling=Sampling(rows=6, negatives=1))
    train(str(bge_m3()), [stage], tmp_path / "model", config=TrainConfig(log_every=1))
    assert changed_weights(tmp_path / "model", bge_m3())


@pytest.mark.parametrize("part", ["encoder", "layers"])
def test_a_low_rank_update_is_merged_into_the_encoder(bge_m3, tmp_path, part):
    run(bge_m3(), tmp_path / "model", steps=2, low_rank=2, parts=(part,))
    changed = changed_weights(tmp_path / "model", bge_m3())
    name = "encoder.layer.0.attention.self.query.weight"
    assert name in changed
    assert not any("lora" in each or "embeddings" in each for each in changed)
    difference = tensors(tmp_path / "model")[name] - tensors(bge_m3())[name]
    assert torch.linalg.matrix_rank(difference, rtol=1e-3) <= 2


def test_an_encoder_loads_the_trained_weights(bge_m3, uninterrupted):
    before, after = (M3Encoder.from_pretrained(str(folder)) for folder in (bge_m3(), uninterrupted))
    text = ["the river is near the bridge"]
    assert not np.allclose(before.encode_passages(text).dense, after.encode_passages(text).dense)
    assert after.conventions == before.conventions


def test_the_loss_of_every_mode_and_the_lexical_share_are_logged(uninterrupted):
    log = [entry for entry in json.loads((uninterrupted / LOG_FILE).read_text())["log"] if "loss" in entry]
    assert len(log) == 6
    for name in ("dense", "sparse", "multi_vector", "sum", "distil_dense", "lexical_share", "learning_rate"):
        assert all(np.isfinite(entry[name]) for entry in log), name


def test_training_improves_the_validation_metric(bge_m3, tmp_path):
    trained = run(bge_m3(), tmp_path / "model", validated=True, evaluate_every=10, steps=30, rows=8, learning_rate=2e-3)
    (stage,) = trained.stages
    assert stage.kept
    assert stage.after["all"] > stage.before["all"] + 0.1
    assert "all" in str(trained)


def test_the_best_checkpoint_is_selected(bge_m3, tmp_path):
    trained = run(bge_m3(), tmp_path / "model", validated=True, steps=8, learning_rate=3e-2)
    (stage,) = trained.stages
    evaluations = [entry["eval_best"] for entry in stage.log if "eval_best" in entry]
    assert len(evaluations) == 4
    assert stage.after["all"] == pytest.approx(max(evaluations)) or not stage.kept


def test_validation_runs_before_training_and_at_each_evaluation_only(bge_m3, tmp_path):
    class CountingValidation(Validation):
        calls = 0

        def __call__(self, checkpoint, device):
            self.calls += 1
            return super().__call__(checkpoint, device)

    counting = CountingValidation(validation().collection)
    stage = Stage({"places": examples()}, steps=4, dropout=0.0, sampling=Sampling(rows=6, negatives=1))
    config = TrainConfig(evaluate_every=2, device="cpu")
    (result,) = train(str(bge_m3()), [stage], tmp_path / "model", validation=counting, config=config).stages
    assert counting.calls == 1 + 4 / 2
    assert list(result.after) == list(result.before)
    assert result.after["all"] == max(entry["eval_best"] for entry in result.log if "eval_best" in entry)


def test_the_initial_weights_are_restored_without_improvement(bge_m3, tmp_path):
    good = tmp_path / "good"
    run(bge_m3(), good, validated=True, evaluate_every=10, steps=30, rows=8, learning_rate=2e-3)
    trained = run(good, tmp_path / "worse", validated=True, steps=2, learning_rate=1.0, head_learning_rate=1.0)
    assert not trained.stages[0].kept
    assert "initial weights restored" in str(trained)
    assert largest_difference(tmp_path / "worse", good) == 0


def test_missing_heads_are_added(bge_m3, tmp_path):
    bare = bge_m3(sparse=False, colbert=False)
    completed = add_heads(checkpoints.read(str(bare), pooling="cls"))
    encoder = M3Encoder(completed)
    assert encoder.modes == {"dense", "sparse", "multi_vector"}
    row = encoder.encode_passages(["the river"]).sparse
    assert row.nnz
    assert np.allclose(row.data, 0.1)
    sources = {"places": examples()}
    stages = [
        warm_up(sources, steps=2),
        contrastive(sources, steps=2, sampling=Sampling(rows=6, negatives=0)),
        unified(sources, steps=2, sampling=Sampling(rows=6)),
    ]
    trained = train(
        str(bare), stages, tmp_path / "model", config=TrainConfig(device="cpu"), multi_vector_dim=16, pooling="cls"
    )
    assert len(trained.stages) == 3
    assert M3Encoder.from_pretrained(str(trained.folder)).multi_vector_dim == 16
    assert not (tmp_path / "model.training").exists()


def test_a_warm_up_leaves_the_encoder_unchanged(bge_m3, tmp_path):
    train(
        str(bge_m3()), [warm_up({"places": examples()}, steps=2)], tmp_path / "model", config=TrainConfig(device="cpu")
    )
    assert {name.partition(".")[0] for name in changed_weights(tmp_path / "model", bge_m3())} == {
        "sparse",
        "multi_vector",
    }


def test_a_collapsing_lexical_head_warns_once(bge_m3):
    def passages(share):
        sparse = (torch.arange(100) < 100 * share).float()[None]
        return Representations(None, sparse, None, torch.full((1, 100), 9), torch.ones(1, 100, dtype=torch.bool))

    monitor = LexicalCollapseMonitor(TrainableM3.from_checkpoint(checkpoints.read(str(bge_m3()))))
    assert monitor(passages(0.8)) == pytest.approx(0.8)
    assert monitor(passages(0.5)) == pytest.approx(0.5)
    with pytest.warns(LexicalCollapse, match="30% of tokens, down from 80%"):
        monitor(passages(0.3))
    assert monitor(passages(0.1)) == pytest.approx(0.1)  # a second warning would be an error here


def test_a_non_finite_loss_stops_the_run_with_advice(bge_m3, tmp_path):
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        run(bge_m3(), tmp_path / "model", steps=3, learning_rate=1e30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "triplet"}, "objective must be one of"),
        ({"parts": ("pooler",)}, "parts must be some of"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"warm_up": 1.0}, "warm_up must be from 0"),
        ({"dropout": 1.5}, "dropout must be None or from 0"),
    ],
)
def test_invalid_options_of_a_stage_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        Stage({"places": examples()}, **options)


def test_a_folder_with_a_model_is_not_overwritten(bge_m3, uninterrupted):
    with pytest.raises(FileExistsError, match="choose a new folder"):
        run(bge_m3(), uninterrupted)


def test_an_unfinished_run_does_not_resume_with_different_options(bge_m3, tmp_path):
    with pytest.raises(TrainingDiverged):
        run(bge_m3(), tmp_path / "model", learning_rate=1e30)
    with pytest.raises(ValueError, match="unfinished run with different learning_rate; pass the same"):
        run(bge_m3(), tmp_path / "model", learning_rate=1e-5)


def test_an_empty_list_of_stages_is_rejected(bge_m3, tmp_path):
    with pytest.raises(ValueError, match="stages is empty"):
        train(str(bge_m3()), [], tmp_path / "model")


def test_parts_unused_by_the_modes_are_rejected(bge_m3, tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        run(bge_m3(), tmp_path / "model", modes=("dense",), parts=("sparse",))


def test_a_trainable_model_lists_its_parts(bge_m3):
    assert TrainableM3.from_checkpoint(checkpoints.read(str(bge_m3()))).parts == (
        "encoder",
        "layers",
        "sparse",
        "multi_vector",
    )


def test_validation_reports_all_modes_together_last(bge_m3):
    metrics = validation()(checkpoints.read(str(bge_m3())), torch.device("cpu"))
    assert list(metrics) == ["dense", "sparse", "multi_vector", "dense + sparse", "all"]

"""The loop: what learns and what rests, stopping and going on, several processes, and which model comes of it."""

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
from m3_integrations.core import checkpoint as checkpoints
from m3_integrations.core.errors import LexicalCollapse, TrainingDiverged
from m3_integrations.training.model import Representations, TrainableM3
from m3_integrations.training.parts import with_heads
from m3_integrations.training.sampling import Sampling
from m3_integrations.training.stages import Stage, contrastive, unified, warm_up
from m3_integrations.training.train import LOG, train
from m3_integrations.training.trainer import Loop
from m3_integrations.training.watching import LexicalShare, Validation
from tests.training.loops import examples, run, validation

ROOT = Path(__file__).parents[2]
LATER = 1e-3  # a rate at which a tiny model learns something in a few steps


def tensors(folder):
    """Every weight of a folder, heads among them."""
    checkpoint = checkpoints.read(str(folder))
    heads = {
        name: part.state_dict() for name, part in vars(checkpoint.heads).items() if isinstance(part, torch.nn.Linear)
    }
    flat = {f"{part}.{name}": value for part, state in heads.items() for name, value in state.items()}
    return {**checkpoint.backbone.state_dict(), **flat}


def furthest(folder, other):
    """The largest difference of any weight that has a gradient.

    A key's bias has none: softmax cancels it, and what AdamW makes of the rounding left of it is anything.
    """
    mine, theirs = tensors(folder), tensors(other)
    assert mine.keys() == theirs.keys()
    felt = [name for name in mine if not name.endswith("key.bias")]
    return max(float((mine[name] - theirs[name]).abs().max()) for name in felt)


def moved(folder, other):
    """The names of the weights that differ."""
    mine, theirs = tensors(folder), tensors(other)
    return {name for name in mine if not torch.equal(mine[name], theirs[name])}


def program(model, folder, environment=(), **options):
    command = [sys.executable, "-m", "tests.training.loops", str(model), str(folder), json.dumps(options)]
    quiet = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **quiet, **dict(environment)})


@pytest.fixture(scope="module")
def whole(bge_m3, tmp_path_factory):
    """A run that nobody stopped, in one process."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    run(bge_m3(), folder, learning_rate=LATER)
    return folder


def killed(model, folder):
    """A run that was killed at some instant after its first checkpoint; the folder where its checkpoints stand."""
    stage = folder.with_name(f"{folder.name}.training") / "stage-1"
    process = program(model, folder, steps=6, learning_rate=LATER)
    while process.poll() is None and not (stage / "checkpoint-2" / "trainer_state.json").is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    return stage


def test_a_run_that_was_killed_and_begun_again_ends_where_one_does_that_was_not(bge_m3, whole, tmp_path):
    killed(bge_m3(), tmp_path / "model")
    run(bge_m3(), tmp_path / "model", learning_rate=LATER)
    assert furthest(tmp_path / "model", whole) == 0
    assert moved(tmp_path / "model", bge_m3())


@pytest.mark.parametrize("state", [None, "", '{"global_step": 6, "log_his'])
def test_a_run_goes_on_from_its_last_whole_checkpoint(bge_m3, whole, tmp_path, state):
    stage = killed(bge_m3(), tmp_path / "model")
    last = max(stage.glob("checkpoint-*/trainer_state.json")).parent
    torn = stage / "checkpoint-6"
    if last != torn:  # else nothing whole is left, and the run begins anew
        shutil.copytree(last, torn, dirs_exist_ok=True)
    (torn / "trainer_state.json").unlink()
    if state is not None:
        (torn / "trainer_state.json").write_text(state)
    run(bge_m3(), tmp_path / "model", learning_rate=LATER)
    assert furthest(tmp_path / "model", whole) == 0


@pytest.mark.parametrize("objective", ["m3", "gte"])
def test_two_processes_agree_with_one(bge_m3, tmp_path, objective):
    options = {"steps": 3, "rows": 5, "learning_rate": LATER, "objective": objective}  # 5 rows: shares of 3 and 2
    run(bge_m3(), tmp_path / "alone", **options)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        program(bge_m3(), tmp_path / "both", {**both, "RANK": rank, "LOCAL_RANK": rank}.items(), **options)
        for rank in ("0", "1")
    ]
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert furthest(tmp_path / "both", tmp_path / "alone") < 1e-4
    assert furthest(tmp_path / "both", bge_m3()) > 1e-3


def test_only_the_parts_that_were_named_learn(bge_m3, tmp_path):
    run(bge_m3(), tmp_path / "model", steps=2, parts=("sparse",))
    assert moved(tmp_path / "model", bge_m3()) == {"sparse.weight", "sparse.bias"}


def test_the_layers_learn_without_the_table_of_tokens(bge_m3, tmp_path):
    run(bge_m3(), tmp_path / "model", steps=2, parts=("layers",))
    changed = moved(tmp_path / "model", bge_m3())
    assert "embeddings.position_embeddings.weight" in changed
    assert "encoder.layer.0.attention.self.query.weight" in changed
    assert not changed & {"embeddings.word_embeddings.weight", "sparse.weight", "multi_vector.weight"}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="asks what is done where there is none")
def test_half_precision_needs_no_accelerator_and_no_word_about_it(bge_m3, tmp_path):
    stage = Stage({"places": examples()}, steps=2, precision="bfloat16", sampling=Sampling(rows=6, negatives=1))
    train(str(bge_m3()), [stage], tmp_path / "model", loop=Loop(log_every=1))
    assert moved(tmp_path / "model", bge_m3())


@pytest.mark.parametrize("part", ["encoder", "layers"])
def test_a_low_rank_update_ends_in_the_encoder_s_own_weights(bge_m3, tmp_path, part):
    run(bge_m3(), tmp_path / "model", steps=2, low_rank=2, parts=(part,))
    changed = moved(tmp_path / "model", bge_m3())
    name = "encoder.layer.0.attention.self.query.weight"
    assert name in changed
    assert not any("lora" in each or "embeddings" in each for each in changed)
    difference = tensors(tmp_path / "model")[name] - tensors(bge_m3())[name]
    assert torch.linalg.matrix_rank(difference, rtol=1e-3) <= 2


def test_what_was_learned_is_what_an_encoder_over_the_folder_has(bge_m3, whole):
    before, after = (M3Encoder.from_pretrained(str(folder)) for folder in (bge_m3(), whole))
    text = ["the river is near the bridge"]
    assert not np.allclose(before.encode_passages(text).dense, after.encode_passages(text).dense)
    assert after.conventions == before.conventions


def test_every_mode_s_loss_and_the_lexical_share_are_logged(whole):
    log = [entry for entry in json.loads((whole / LOG).read_text())["log"] if "loss" in entry]
    assert len(log) == 6
    for name in ("dense", "sparse", "multi_vector", "sum", "distil_dense", "lexical_share", "learning_rate"):
        assert all(np.isfinite(entry[name]) for entry in log), name


def test_the_model_learns_what_it_is_taught(bge_m3, tmp_path):
    trained = run(bge_m3(), tmp_path / "model", watched=True, every=10, steps=30, rows=8, learning_rate=2e-3)
    (stage,) = trained.stages
    assert stage.kept
    assert stage.after["all"] > stage.before["all"] + 0.1
    assert "all" in str(trained)


def test_the_best_model_that_was_seen_is_kept(bge_m3, tmp_path):
    trained = run(bge_m3(), tmp_path / "model", watched=True, steps=8, learning_rate=3e-2)
    (stage,) = trained.stages
    seen = [entry["eval_best"] for entry in stage.log if "eval_best" in entry]
    assert len(seen) == 4
    assert stage.after["all"] == pytest.approx(max(seen)) or not stage.kept


def test_validation_questions_are_asked_before_and_at_each_look_and_no_more(bge_m3, tmp_path):
    class Counted(Validation):
        asked = 0

        def __call__(self, checkpoint, device):
            self.asked += 1
            return super().__call__(checkpoint, device)

    counted = Counted(validation().collection)
    stage = Stage({"places": examples()}, steps=4, dropout=0.0, sampling=Sampling(rows=6, negatives=1))
    loop = Loop(evaluate_every=2, device="cpu")
    (outcome,) = train(str(bge_m3()), [stage], tmp_path / "model", validation=counted, loop=loop).stages
    assert counted.asked == 1 + 4 / 2
    assert list(outcome.after) == list(outcome.before)
    assert outcome.after["all"] == max(entry["eval_best"] for entry in outcome.log if "eval_best" in entry)


def test_a_model_that_only_got_worse_is_left_as_it_began(bge_m3, tmp_path):
    good = tmp_path / "good"
    run(bge_m3(), good, watched=True, every=10, steps=30, rows=8, learning_rate=2e-3)
    trained = run(good, tmp_path / "worse", watched=True, steps=2, learning_rate=1.0, head_learning_rate=1.0)
    assert not trained.stages[0].kept
    assert "left as it began" in str(trained)
    assert furthest(tmp_path / "worse", good) == 0


def test_heads_are_made_for_a_checkpoint_that_has_none_and_lose_nothing(bge_m3, tmp_path):
    bare = bge_m3(sparse=False, colbert=False)
    made = with_heads(checkpoints.read(str(bare), pooling="cls"))
    encoder = M3Encoder(made)
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
    trained = train(str(bare), stages, tmp_path / "model", loop=Loop(device="cpu"), width=16, pooling="cls")
    assert len(trained.stages) == 3
    assert M3Encoder.from_pretrained(str(trained.folder)).width == 16
    assert not (tmp_path / "model.training").exists()


def test_a_warm_up_leaves_the_encoder_as_it_is(bge_m3, tmp_path):
    train(str(bge_m3()), [warm_up({"places": examples()}, steps=2)], tmp_path / "model", loop=Loop(device="cpu"))
    assert {name.partition(".")[0] for name in moved(tmp_path / "model", bge_m3())} == {"sparse", "multi_vector"}


def test_a_lexical_head_that_falls_silent_is_an_alarm_once():
    def passages(share):
        sparse = (torch.arange(100) < 100 * share).float()[None]
        return Representations(None, sparse, None, torch.full((1, 100), 9), torch.ones(1, 100, dtype=torch.bool))

    watch = LexicalShare(torch.tensor([0]))
    assert watch(passages(0.8)) == pytest.approx(0.8)
    assert watch(passages(0.5)) == pytest.approx(0.5)
    with pytest.warns(LexicalCollapse, match="30% of tokens, and gave one to 80%"):
        watch(passages(0.3))
    assert watch(passages(0.1)) == pytest.approx(0.1)  # a second warning would be an error here


def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_lower(bge_m3, tmp_path):
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        run(bge_m3(), tmp_path / "model", steps=3, learning_rate=1e30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "triplet"}, "objective is one of"),
        ({"parts": ("pooler",)}, "parts are some of"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"warm_up": 1.0}, "warm_up is a share"),
        ({"dropout": 1.5}, "dropout is from 0"),
    ],
)
def test_a_stage_that_cannot_be_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        Stage({"places": examples()}, **options)


def test_a_folder_that_holds_a_model_is_not_written_over(bge_m3, whole):
    with pytest.raises(FileExistsError, match="name a new folder"):
        run(bge_m3(), whole)


def test_a_run_that_was_stopped_does_not_go_on_as_another(bge_m3, tmp_path):
    with pytest.raises(TrainingDiverged):
        run(bge_m3(), tmp_path / "model", learning_rate=1e30)
    with pytest.raises(ValueError, match="asked for other learning_rate; repeat it"):
        run(bge_m3(), tmp_path / "model", learning_rate=1e-5)


def test_without_a_stage_there_is_nothing_to_do(bge_m3, tmp_path):
    with pytest.raises(ValueError, match="there is no stage"):
        train(str(bge_m3()), [], tmp_path / "model")


def test_parts_that_the_modes_do_not_use_cannot_be_all_that_learns(bge_m3, tmp_path):
    with pytest.raises(ValueError, match="nothing would learn"):
        run(bge_m3(), tmp_path / "model", modes=("dense",), parts=("sparse",))


def test_a_trainable_model_knows_its_parts(bge_m3):
    assert TrainableM3.of(checkpoints.read(str(bge_m3()))).parts == ("encoder", "layers", "sparse", "multi_vector")


def test_validation_counts_the_plan_of_all_modes_last(bge_m3):
    found = validation()(checkpoints.read(str(bge_m3())), torch.device("cpu"))
    assert list(found) == ["dense", "sparse", "multi_vector", "dense + sparse", "all"]

"""Trainable model: token batches, frozen parts, and the way back to a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.core.errors import MissingMode
from m3_integrations.encoders import EncoderConfig
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.models.tokenization import SequenceTokenizer
from m3_integrations.training.objective.grad_cache import GradientCache
from m3_integrations.training.objective.losses import m3_loss
from m3_integrations.training.objective.model import TokenBatch, TrainableM3, concatenate
from m3_integrations.training.objective.scores import ScoreLayout, score_modes

TEXTS = ["the bridge over the river", "мост", ""]


@pytest.fixture
def checkpoint(bge_m3):
    read = checkpoints.read(str(bge_m3(hidden=16, heads=2, colbert_width=8)))
    with torch.no_grad():
        read.heads.sparse.bias += 1  # a random head gives half of the tokens the weight 0
    return read


def batch(checkpoint, texts=TEXTS, prefix=""):
    sequences, _ = SequenceTokenizer(checkpoint.tokenizer, checkpoint.special, 32).sequences(texts, prefix)
    return TokenBatch.of(sequences, checkpoint.special.pad)


def learn(model, checkpoint):
    """One step on three pairs."""

    def objective(queries, passages):
        return m3_loss(score_modes(queries, passages, model.heads.modes), ScoreLayout.side_by_side(3), temperature=0.1)

    GradientCache(model, 2).backward(batch(checkpoint), batch(checkpoint, ["bridge", "мост и мост", "a"]), objective)
    with torch.no_grad():
        for each in model.parameters():
            if each.grad is not None:
                each -= 0.1 * each.grad


def test_cls_prefix_and_padding_are_not_content(checkpoint):
    bare, prefixed = batch(checkpoint), batch(checkpoint, prefix="query: ")
    for row in range(len(TEXTS)):
        tokens, after_prefix = bare.ids[row][bare.content[row]], prefixed.ids[row][prefixed.content[row]]
        assert tokens.tolist() == after_prefix.tolist()
        assert tokens[-1] == checkpoint.special.eos
        assert len(tokens) == bare.mask[row].sum() - 1 < prefixed.mask[row].sum() - 1


def test_rows_drop_columns_of_padding(checkpoint):
    whole = batch(checkpoint)
    assert whole.rows(1, 3).ids.shape == (2, int(whole.mask[1:].sum(1).max()))
    assert whole.rows(1, 3).mask.any(dim=0).all()


def test_an_empty_batch_is_rejected(checkpoint):
    with pytest.raises(ValueError, match="at least one sequence, got none"):
        TokenBatch.of([], checkpoint.special.pad)


def test_representations_do_not_depend_on_the_batch(checkpoint):
    model = TrainableM3.from_checkpoint(checkpoint)
    whole = batch(checkpoint)
    joint, separate = model(whole), concatenate([model(whole.rows(row, row + 1)) for row in range(len(TEXTS))])
    torch.testing.assert_close(joint.dense, separate.dense)
    torch.testing.assert_close(joint.sparse, separate.sparse)
    torch.testing.assert_close(joint.multi_vector[whole.content], separate.multi_vector[whole.content])


def test_only_the_named_parts_are_trained(checkpoint):
    model = TrainableM3.from_checkpoint(checkpoint)
    before = {name: each.clone() for name, each in model.named_parameters()}
    model.train_only(["sparse"])
    learn(model, checkpoint)
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert changed == {"model.sparse.weight", "model.sparse.bias"}


def test_a_part_missing_from_the_checkpoint_cannot_be_trained(bge_m3):
    model = TrainableM3.from_checkpoint(checkpoints.read(str(bge_m3(sparse=False))))
    with pytest.raises(ValueError, match=r"no part 'sparse'; it has \['encoder', 'layers', 'multi_vector'\]"):
        model.train_only(["sparse"])
    with pytest.raises(MissingMode):
        model(batch(checkpoints.read(str(bge_m3()))), modes=("sparse",))


def test_trained_weights_are_used_by_the_encoder_and_saved(checkpoint, bge_m3, tmp_path):
    untrained = M3Encoder.from_pretrained(str(bge_m3(hidden=16, heads=2, colbert_width=8)), device="cpu")
    model = TrainableM3.from_checkpoint(checkpoint)
    model.train_only(["encoder", "sparse", "multi_vector"])
    learn(model, checkpoint)
    encoder = M3Encoder(model.to_checkpoint(checkpoint), EncoderConfig(device="cpu"))
    encoder.save_pretrained(tmp_path / "trained")
    loaded = M3Encoder.from_pretrained(str(tmp_path / "trained"), device="cpu")
    assert encoder.fingerprint == loaded.fingerprint != untrained.fingerprint
    with torch.no_grad():
        np.testing.assert_allclose(
            loaded.encode_passages(TEXTS).dense, model.eval()(batch(checkpoint)).dense, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.PartNotExported")
def test_a_token_prior_is_trained_and_saved(checkpoint, tmp_path):
    flat = torch.full((checkpoint.tokenizer.get_vocab_size(),), 0.1)
    with_prior = replace(checkpoint, heads=replace(checkpoint.heads, token_prior=flat.clone()))
    model = TrainableM3.from_checkpoint(with_prior)
    model.train_only(["token_prior"])
    learn(model, with_prior)
    M3Encoder(model.to_checkpoint(with_prior), EncoderConfig(device="cpu")).save_pretrained(tmp_path / "trained")
    saved = checkpoints.read(str(tmp_path / "trained")).heads.token_prior
    learned = set(torch.nonzero(saved != flat).flatten().tolist())
    read = set(batch(checkpoint).ids.flatten().tolist())
    assert learned
    assert learned <= read - {0, 1, 2, 3} | {with_prior.tokenizer.token_to_id("▁bridge")}

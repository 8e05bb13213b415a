"""Dense checkpoints of ModernBERT against transformers' own class, to 8,192 tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from m3_integrations import M3Encoder
from tests.checkpoints import WORDS, TinyCheckpoint, write_model, write_pooling

TEXTS = ["the bridge the bridge", "Die Brücke über die Wolга " * 5, "", "橋はどこにある", "the passage " * 600]
LONG = " ".join(WORDS[i * i % 7] for i in range(8190))
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def modern_bert(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), "modernbert", AutoModel, TinyCheckpoint(positions=8192))


def load(folder, **options):
    return M3Encoder.from_pretrained(str(folder), device="cpu", **options)


def by_transformers(folder, text, pooling):
    words, model = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt"), AutoModel.from_pretrained(folder)
    with torch.no_grad():
        hidden = model.eval()(input_ids=words["input_ids"]).last_hidden_state[0]
    return functional.normalize(hidden[0] if pooling == "cls" else hidden.mean(0), dim=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_are_those_of_transformers(modern_bert, pooling):
    encoder = load(modern_bert, pooling=pooling)
    assert encoder.modes == {"dense"}
    expected = torch.stack([by_transformers(modern_bert, text, pooling) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_passages(TEXTS).dense, expected, **CLOSE)


def test_a_text_of_8192_tokens_is_read_whole(modern_bert):
    encoder = load(modern_bert, pooling="mean")
    assert encoder.token_count([LONG]) == [8192]
    expected = by_transformers(modern_bert, LONG, "mean")
    np.testing.assert_allclose(encoder.encode_passages([LONG]).dense[0], expected, **CLOSE)


def test_a_saved_checkpoint_is_the_same(tmp_path):
    write_pooling(write_model(tmp_path / "model", "modernbert", AutoModel, TinyCheckpoint(positions=64)), "cls")
    encoder = load(tmp_path / "model", truncate_dim=8)
    encoder.save_pretrained(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert (saved.fingerprint, saved.max_length, saved.dense_dim) == (encoder.fingerprint, 64, 8)
    ours, theirs = saved.encode_passages(TEXTS[:4]), encoder.encode_passages(TEXTS[:4])
    np.testing.assert_array_equal(ours.dense, theirs.dense)

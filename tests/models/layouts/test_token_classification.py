"""GTE's token classifiers against transformers' own classes: dense and sparse, to 8,192 tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from m3_integrations import M3Encoder
from m3_integrations.core.errors import CheckpointError, PartNotRead
from tests.checkpoints import WORDS, TinyCheckpoint, write_model, write_pooling
from tests.optional import requires_architecture

TEXTS = ["the bridge the bridge", "Die Brücke über die Wolга " * 5, "", "橋はどこにある", "the passage " * 600]
SPECIAL = [0, 1, 2, 3]
WIDE = TinyCheckpoint(positions=8192)
CLOSE = {"rtol": 0, "atol": 1e-5}

pytestmark = requires_architecture("gte")


@pytest.fixture(scope="module")
def gte(tmp_path_factory):
    return write_gte(tmp_path_factory.mktemp("gte"))


def write_gte(folder, labels=1):
    return write_model(folder, "gte", AutoModelForTokenClassification, WIDE, num_labels=labels)


def load(folder, **options):
    return M3Encoder.from_pretrained(str(folder), device="cpu", **options)


def by_transformers(folder, text):
    """The hidden states and the weight of each token id, by GTE's own class and the rule of its card."""
    words = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(**{name: words[name] for name in ("input_ids", "attention_mask")}, output_hidden_states=True)
    weights: dict[int, float] = {}
    for id, weight in zip(words["input_ids"][0].tolist(), torch.relu(output.logits[0, :, 0]).tolist(), strict=True):
        if id not in SPECIAL and weight > 0:
            weights[id] = max(weight, weights.get(id, 0.0))
    return output.hidden_states[-1][0], weights


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("text", TEXTS)
def test_dense_and_sparse_vectors_are_those_of_transformers(gte, pooling, text):
    encoder = load(gte, pooling=pooling)
    encoded = encoder.encode_passages(["the", text, "a bridge"])  # packed with shorter and longer ones
    hidden, weights = by_transformers(gte, text)
    pooled = functional.normalize(hidden[0] if pooling == "cls" else hidden.mean(0), dim=0)
    assert encoder.modes == {"dense", "sparse"}
    np.testing.assert_allclose(encoded.dense[1], pooled, **CLOSE)
    row = encoded.sparse[[1]]
    assert row.indices.tolist() == sorted(weights)
    np.testing.assert_allclose(row.data, [weights[id] for id in sorted(weights)], **CLOSE)


def test_a_text_of_8192_tokens_is_read_whole(gte):
    text = " ".join(WORDS[i * i % 7] for i in range(8190))
    encoder = load(gte, pooling="mean")
    assert encoder.token_count([text]) == [8192]
    encoded = encoder.encode_passages([text])
    hidden, weights = by_transformers(gte, text)
    np.testing.assert_allclose(encoded.dense[0], functional.normalize(hidden.mean(0), dim=0), **CLOSE)
    assert encoded.sparse.indices.tolist() == sorted(weights)
    np.testing.assert_allclose(encoded.sparse.data, [weights[id] for id in sorted(weights)], **CLOSE)


def test_truncated_vectors_are_the_first_dimensions_normalized(gte):
    whole, short = load(gte, pooling="cls"), load(gte, pooling="cls", truncate_dim=8)
    first = whole.encode_passages(TEXTS[:2]).dense[:, :8]
    assert short.dense_dim == 8
    np.testing.assert_allclose(
        short.encode_passages(TEXTS[:2]).dense, first / np.linalg.norm(first, axis=1, keepdims=True), **CLOSE
    )
    assert short.fingerprint != whole.fingerprint


@pytest.mark.parametrize("dimensions", [0, 33, -1])
def test_a_dimension_that_the_model_lacks_is_refused(gte, dimensions):
    with pytest.raises(
        ValueError, match=rf"truncate_dim must be from 1 to 32, the model's dimension, got {dimensions}"
    ):
        load(gte, pooling="cls", truncate_dim=dimensions)


def test_a_sentence_transformers_folder_states_pooling_and_dimension(gte, tmp_path):
    folder = write_pooling(write_gte(tmp_path), "cls", truncate_dim=8)
    encoder, plain = load(folder), load(gte, pooling="cls", truncate_dim=8)
    assert encoder.modes == {"dense", "sparse"}
    assert encoder.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(encoder.encode_passages(TEXTS[:3]).dense, plain.encode_passages(TEXTS[:3]).dense)


def test_a_saved_checkpoint_is_the_same(gte, tmp_path):
    encoder = load(gte, pooling="cls", truncate_dim=16)
    encoder.save_pretrained(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert saved.fingerprint == encoder.fingerprint
    assert (saved.max_length, saved.dense_dim, saved.modes) == (8192, 16, encoder.modes)
    ours, theirs = saved.encode_passages(TEXTS), encoder.encode_passages(TEXTS)
    np.testing.assert_array_equal(ours.dense, theirs.dense)
    np.testing.assert_array_equal(ours.sparse.todense(), theirs.sparse.todense())


def test_a_checkpoint_without_a_classifier_is_dense_alone(tmp_path):
    write_model(tmp_path, "gte", AutoModel, WIDE)
    assert load(tmp_path, pooling="cls").modes == {"dense"}


def test_a_classifier_into_several_labels_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="classifies tokens into 5 labels, which are no lexical weights"):
        load(write_gte(tmp_path, labels=5), pooling="cls")


def test_a_classifier_of_texts_is_refused_by_name(tmp_path):
    write_model(tmp_path, "gte", AutoModelForSequenceClassification, WIDE, num_labels=1)
    with pytest.raises(CheckpointError, match="is a GteForSequenceClassification, not an encoder"):
        load(tmp_path, pooling="cls")


def test_a_masked_language_model_warns_of_the_head_that_no_mode_uses(tmp_path):
    write_model(tmp_path, "gte", AutoModelForMaskedLM, WIDE)
    with pytest.warns(PartNotRead, match="has a masked-language-model head, which no mode uses"):
        assert load(tmp_path, pooling="cls").modes == {"dense"}


def test_a_named_classifier_that_the_files_lack_is_refused(gte, tmp_path):
    write_model(tmp_path, "gte", AutoModelForMaskedLM, WIDE)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["GteForTokenClassification"]}))
    with pytest.raises(CheckpointError, match=r"is a GteForTokenClassification without classifier\.weight"):
        load(tmp_path, pooling="cls")

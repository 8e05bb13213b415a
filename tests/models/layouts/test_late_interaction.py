"""PyLate and MultiVectorEncoder folders against a plain recomputation."""

from __future__ import annotations

import json
import string

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from m3_integrations import M3Encoder
from m3_integrations.core.errors import CheckpointError, PartNotExported, TextsTruncated
from m3_integrations.core.scoring import score_mode
from tests.checkpoints import WORDS, TinyCheckpoint
from tests.models.layouts.late_interaction import D, Q, recompute, write_multi_vector, write_pylate
from tests.optional import requires_architecture

TEXTS = ["the bridge, where?", "Brücke (волга) - мост!", "", "橋はどこにある", "a"]
WIDE = TinyCheckpoint(positions=512)
CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = ["bert", "xlm-roberta", "modernbert", pytest.param("gte", marks=requires_architecture("gte"))]
LONG = " ".join(WORDS[i * i % 7] for i in range(300))


def load(folder, **options):
    return M3Encoder.from_pretrained(str(folder), device="cpu", **options)


def assert_vectors(vectors, expected):
    assert [len(each) for each in vectors] == [len(each) for each in expected]
    for ours, theirs in zip(vectors, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.filterwarnings("ignore::m3_integrations.core.errors.TextsTruncated")
@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pylate_folders_give_the_vectors_that_pylate_describes(tmp_path, kind, attend):
    folder = write_pylate(tmp_path, kind, WIDE, attend_to_expansion_tokens=attend)
    encoder, texts = load(folder), [*TEXTS, LONG]
    assert (encoder.modes, encoder.max_length, encoder.multi_vector_dim) == ({"multi_vector"}, 180, 16)
    queries = [recompute(folder, each, marker=Q, length=32, expand=True, attend=attend) for each in texts]
    assert {len(each) for each in queries} == {32}
    assert_vectors(encoder.encode_queries(texts).multi_vector, queries)
    passages = [recompute(folder, each, marker=D, length=180, skip=string.punctuation) for each in texts]
    assert_vectors(encoder.encode_passages(texts).multi_vector, passages)


@pytest.mark.parametrize("kind", KINDS)
def test_multi_vector_folders_project_by_all_their_layers(tmp_path, kind):
    folder = write_multi_vector(tmp_path, kind, WIDE, mask={"skiplist_words": [",", "?"]})
    encoder = load(folder)
    assert (encoder.modes, encoder.max_length, encoder.multi_vector_dim) == ({"multi_vector"}, 64, 24)
    queries = [recompute(folder, each, marker=Q, length=64) for each in TEXTS]
    assert_vectors(encoder.encode_queries(TEXTS).multi_vector, queries)
    passages = [recompute(folder, each, marker=D, length=64, skip=",?") for each in TEXTS]
    assert_vectors(encoder.encode_passages(TEXTS).multi_vector, passages)


@pytest.mark.parametrize("strategy", ["fixed", "min"])
def test_queries_are_expanded_as_the_folder_says(tmp_path, strategy):
    expansion = {"strategy": strategy, "length": 16, "attend": False, "token": "<pad>"}
    folder = write_multi_vector(tmp_path, "bert", WIDE, transformer={"query_expansion": expansion, "query_length": 20})
    long = " ".join(WORDS[i % 3] for i in range(40))
    encoder = load(folder)
    with pytest.warns(TextsTruncated, match=f"longer than {16 if strategy == 'fixed' else 20} tokens"):
        vectors = encoder.encode_queries(["a", long]).multi_vector
    assert vectors.counts.tolist() == [16, 16 if strategy == "fixed" else 20]


def test_a_passage_of_8192_tokens_is_read_whole(tmp_path):
    folder = write_pylate(tmp_path, "modernbert", TinyCheckpoint(positions=8192), document_length=8192)
    text = " ".join(WORDS[i * i % 7] for i in range(8189))
    vectors = load(folder).encode_passages([text]).multi_vector
    assert_vectors(vectors, [recompute(folder, text, marker=D, length=8192, skip=string.punctuation)])
    assert vectors.counts.tolist() == [8192]


def test_a_passage_of_8192_tokens_is_read_whole_by_several_layers(tmp_path):
    folder = write_multi_vector(
        tmp_path, "modernbert", TinyCheckpoint(positions=8192), transformer={"max_seq_length": 8192}
    )
    text = " ".join(WORDS[i * i % 7] for i in range(8189))
    vectors = load(folder).encode_passages([text]).multi_vector
    assert_vectors(vectors, [recompute(folder, text, marker=D, length=8192)])
    assert vectors.counts.tolist() == [8192]


@pytest.mark.parametrize("write", [write_pylate, write_multi_vector])
def test_a_saved_checkpoint_is_the_same(write, tmp_path):
    encoder = load(write(tmp_path / "model", "xlm-roberta", WIDE))
    with pytest.warns(PartNotExported, match="the conventions of late interaction"):
        encoder.save_pretrained(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert (saved.fingerprint, saved.modes, saved.max_length) == (
        encoder.fingerprint,
        encoder.modes,
        encoder.max_length,
    )
    for encode in ("encode_queries", "encode_passages"):
        ours, theirs = (getattr(each, encode)(TEXTS).multi_vector for each in (saved, encoder))
        np.testing.assert_array_equal(ours.values, theirs.values)
        np.testing.assert_array_equal(ours.offsets, theirs.offsets)


def test_spans_are_those_of_the_vectors(tmp_path):
    encoder = load(write_pylate(tmp_path, "bert", WIDE))
    query, passage = "the bridge", "a bridge, the river"
    for spans, encoded in (
        (encoder.query_spans(query), encoder.encode_queries([query])),
        (encoder.passage_spans(passage), encoder.encode_passages([passage])),
    ):
        assert len(spans) == encoded.multi_vector.counts[0]
    text = "".join(passage[span.start : span.stop] for span in encoder.passage_spans(passage))
    assert "," not in text
    assert "bridge" in text
    explanation = encoder.explain(query, passage)
    score = score_mode("multi_vector", encoder.encode_queries([query]), encoder.encode_passages([passage]))[0, 0]
    assert explanation.score == pytest.approx(float(score), abs=1e-5)


def test_projected_vectors_keep_the_conventions(tmp_path):
    encoder = load(write_pylate(tmp_path, "bert", WIDE))
    narrow = encoder.with_projection([LONG[:200]], 8)
    assert narrow.multi_vector_dim == 8
    np.testing.assert_array_equal(
        narrow.encode_passages(TEXTS).multi_vector.offsets, encoder.encode_passages(TEXTS).multi_vector.offsets
    )


def state(name, **changes):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def modules(*kinds):
    def change(folder):
        entries = [
            {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": f"pylate.{kind}"}
            for i, kind in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(entries))

    return change


def dense(**tensors):
    return lambda folder: save_file(tensors, folder / "1_Dense" / "model.safetensors")


CONFIG, DENSE = "config_sentence_transformers.json", "1_Dense/config.json"
BROKEN_PYLATE = {
    "cosine": (state(CONFIG, similarity_fn_name="cosine"), "compares token vectors by 'cosine'"),
    "pooling": (modules("Transformer", "Pooling"), "has the modules"),
    "no layer": (modules("Transformer"), "has the modules"),
    "tanh": (state(DENSE, activation_function="torch.nn.modules.activation.Tanh"), "supported are linear layers"),
    "sentence": (state(DENSE, module_input_name="sentence_embedding"), "applies Dense to 'sentence_embedding'"),
    "unknown marker": (state(CONFIG, query_prefix="[X] "), r"has no token '\[X\] '"),
    "short queries": (state(CONFIG, query_length=2), "expanded to a whole number of tokens from 8, got 2"),
    "length in words": (state(CONFIG, document_length="long"), "max_length must be"),
    "attend maybe": (state(CONFIG, attend_to_expansion_tokens="yes"), "attend and truncate as true or false"),
    "one word": (state(CONFIG, skiplist_words="the"), "skiplist lists strings, got 'the'"),
    "wide layer": (dense(**{"linear.weight": torch.zeros(4, 99)}), r"must hold a 'linear.weight' of \(width, 32\)"),
    "other tensors": (dense(x=torch.zeros(2)), r"must hold a 'linear.weight'"),
    "no residual": (state(DENSE, use_residual=True), "lacks 'residual.weight'"),
    "no layer file": (lambda folder: (folder / "1_Dense" / "model.safetensors").unlink(), "lacks model.safetensors"),
    "lowercase": (state("sentence_bert_config.json", do_lower_case=True), "lowercases texts outside its tokenizer"),
}
EXPANSION = {"strategy": "fixed", "length": 16}
SETTINGS, NORM, MASK = "sentence_bert_config.json", "4_Normalize/config.json", "3_MultiVectorMask/config.json"
BROKEN_MULTI_VECTOR = {
    "dot": (state(CONFIG, similarity_fn_name="dot"), "compares token vectors by 'dot'"),
    "sentence norm": (state(NORM, module_input_name="sentence_embedding"), "applies Normalize to"),
    "images": (state(MASK, keep_only_token_ids=[3]), "as for images, which is not supported"),
    "strategy": (
        state(SETTINGS, query_expansion={**EXPANSION, "strategy": "max"}),
        "query_expansion has a strategy of",
    ),
    "unknown option": (state(SETTINGS, query_expansion={**EXPANSION, "x": 1}), "query_expansion has a strategy of"),
    "no length": (state(SETTINGS, query_expansion={"strategy": "min"}), "a whole number of tokens from 8, got 0"),
    "no token": (
        state(SETTINGS, query_expansion={**EXPANSION, "token": "[X]"}),
        r"has no token '\[X\]', which expands",
    ),
    "tasks": (state(MASK, skiplist_tasks=["image"]), "skipped_in lists 'query' and 'document'"),
    "fraction": (state(SETTINGS, document_length=9.5), "max_length must be"),
    "few": (state(SETTINGS, query_length=3), "query_length is a whole number of tokens from 8, got 3"),
    "pooled": (state(DENSE, module_input_name="sentence_embedding"), "applies Dense to 'sentence_embedding'"),
}


@pytest.mark.parametrize("fault", BROKEN_PYLATE)
def test_a_broken_pylate_folder_raises_one_clear_error(tmp_path, fault):
    change, message = BROKEN_PYLATE[fault]
    change(write_pylate(tmp_path, "bert", WIDE))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("fault", BROKEN_MULTI_VECTOR)
def test_a_broken_multi_vector_folder_raises_one_clear_error(tmp_path, fault):
    change, message = BROKEN_MULTI_VECTOR[fault]
    change(write_multi_vector(tmp_path, "bert", WIDE))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_token_pooling_as_a_module_is_refused_by_name(tmp_path):
    folder = write_multi_vector(tmp_path, "bert", WIDE)
    entries = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.multi_vector_encoder.modules.token_pooling.HierarchicalTokenPooling"
    entries.append({"idx": 5, "name": "5", "path": "5_HierarchicalTokenPooling", "type": kind})
    (folder / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="HierarchicalTokenPooling"):
        load(folder)

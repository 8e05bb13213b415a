"""SparseEncoder folders against a plain recomputation by transformers' masked language models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from m3_integrations import M3Encoder
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import CheckpointError, MissingMode, PartNotExported
from m3_integrations.models.heads import term_expansion
from tests.checkpoints import WORDS, TinyCheckpoint, write_inference_free, write_sparse_encoder
from tests.optional import requires_architecture

TEXTS = ["the bridge", "Die Brücke über die Wolга " * 5, "", "橋はどこにある", "the passage " * 200, "a"]
WIDE = TinyCheckpoint(positions=512)
CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = [
    "bert",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "modernbert",
    pytest.param("gte", marks=requires_architecture("gte")),
]


@pytest.fixture(scope="module")
def splade(tmp_path_factory):
    return write_sparse_encoder(tmp_path_factory.mktemp("splade"), "bert", WIDE)


@pytest.fixture(scope="module")
def inference_free(tmp_path_factory):
    return write_inference_free(tmp_path_factory.mktemp("inference-free"), "bert", WIDE)


def load(folder, **options):
    return M3Encoder.from_pretrained(str(folder), device="cpu", **options)


def by_transformers(folder, text, pooling="max", log_twice=False):
    """The weight of each term, by transformers' own class and SPLADE's formula."""
    words = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**{name: words[name] for name in ("input_ids", "attention_mask")}).logits[0]
    weights = torch.log1p(torch.relu(logits))
    weights = torch.log1p(weights) if log_twice else weights
    return weights.amax(0) if pooling == "max" else weights.sum(0)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_those_of_transformers(tmp_path, kind):
    folder = write_sparse_encoder(tmp_path, kind, WIDE)
    encoder = load(folder)
    rows = encoder.encode_passages(TEXTS).sparse
    expected = torch.stack([by_transformers(folder, text) for text in TEXTS])
    assert encoder.modes == {"sparse"}
    assert (encoder.vocab_size, encoder.dense_dim, encoder.multi_vector_dim) == (expected.shape[1], 0, 0)
    assert 0 < rows.nnz < expected.numel()
    np.testing.assert_allclose(rows.todense(), expected, **CLOSE)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS[:2]).sparse.todense(), expected[:2], **CLOSE)


@pytest.mark.parametrize("log_twice", [False, True])
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_pooling_and_activation_are_those_that_the_folder_states(tmp_path, pooling, log_twice):
    stated = {"pooling_strategy": pooling, "activation_function": "log1p_relu" if log_twice else "relu"}
    folder = write_sparse_encoder(tmp_path, "bert", WIDE, pooling=stated)
    expected = torch.stack([by_transformers(folder, text, pooling, log_twice) for text in TEXTS])
    np.testing.assert_allclose(load(folder).encode_passages(TEXTS).sparse.todense(), expected, rtol=1e-5, atol=1e-5)


def test_a_text_of_8192_tokens_is_read_whole(tmp_path):
    folder = write_sparse_encoder(tmp_path, "modernbert", TinyCheckpoint(positions=8192))
    text = " ".join(WORDS[i * i % 7] for i in range(8190))
    encoder = load(folder)
    assert encoder.token_count([text]) == [8192]
    np.testing.assert_allclose(
        encoder.encode_passages([text]).sparse.todense()[0], by_transformers(folder, text), **CLOSE
    )


def test_a_passage_of_8192_tokens_is_read_whole_behind_routes(tmp_path):
    folder = write_inference_free(tmp_path, "modernbert", TinyCheckpoint(positions=8192))
    text = " ".join(WORDS[i * i % 7] for i in range(8190))
    rows = load(folder).encode_passages([text]).sparse
    expected = by_transformers(folder / "document_0_MLMTransformer", text)
    np.testing.assert_allclose(rows.todense()[0], expected, **CLOSE)


def test_logits_of_all_tokens_and_terms_never_exist_at_once(splade, monkeypatch):
    encoder, sizes = load(splade), []

    def linear(inputs, weight, bias):
        sizes.append(len(inputs) * len(weight))
        return torch.nn.functional.linear(inputs, weight, bias)

    monkeypatch.setattr(term_expansion, "linear", linear)
    monkeypatch.setattr(term_expansion, "_LOGITS", 4096)
    monkeypatch.setattr(term_expansion, "_TOKENS", 64)
    rows = encoder.encode_passages(TEXTS).sparse
    assert max(sizes) <= 4096 < 400 * encoder.vocab_size
    expected = torch.stack([by_transformers(splade, text) for text in TEXTS])
    np.testing.assert_allclose(rows.todense(), expected, **CLOSE)


def test_queries_without_inference_sum_up_their_tokens(inference_free):
    encoder = load(inference_free)
    weights = load_file(inference_free / "query_0_SparseStaticEmbedding" / "model.safetensors")["weight"]
    rows = encoder.encode_queries(["the bridge the", ""]).sparse
    ids = encoder.checkpoint.tokenizer.encode("the bridge the", add_special_tokens=False).ids
    assert rows.indices.tolist() == sorted(set(ids))
    np.testing.assert_array_equal(rows.data, weights[sorted(set(ids))])
    passages = encoder.encode_passages(TEXTS).sparse.todense()
    root = inference_free / "document_0_MLMTransformer"
    np.testing.assert_allclose(passages, torch.stack([by_transformers(root, text) for text in TEXTS]), **CLOSE)


@pytest.mark.parametrize("kind", ["splade", "inference_free"])
def test_a_saved_checkpoint_is_the_same(kind, request, tmp_path):
    encoder = load(request.getfixturevalue(kind))
    with pytest.warns(PartNotExported, match="term expansion"):
        encoder.save_pretrained(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert (saved.fingerprint, saved.modes, saved.max_length) == (encoder.fingerprint, {"sparse"}, 512)
    for encode in ("encode_queries", "encode_passages"):
        ours, theirs = (getattr(each, encode)(TEXTS).sparse for each in (saved, encoder))
        np.testing.assert_array_equal(ours.todense(), theirs.todense())


def test_only_the_largest_terms_are_kept_if_the_folder_says_so(tmp_path):
    folder = write_sparse_encoder(tmp_path, "bert", WIDE, max_active_dims=3)
    rows = load(folder).encode_passages(TEXTS[:2]).sparse
    expected = torch.stack([by_transformers(folder, text) for text in TEXTS[:2]])
    assert np.diff(rows.indptr).tolist() == [3, 3]
    np.testing.assert_allclose(np.sort(rows.data.reshape(2, 3)), expected.topk(3).values.flip(1), **CLOSE)


def test_prompts_are_part_of_the_text(tmp_path):
    folder = write_sparse_encoder(tmp_path, "bert", WIDE, prompts={"query": "query ", "document": "passage "})
    encoder = load(folder)
    for rows, prompt in ((encoder.encode_queries(["the"]), "query "), (encoder.encode_passages(["the"]), "passage ")):
        np.testing.assert_allclose(rows.sparse.todense()[0], by_transformers(folder, f"{prompt}the"), **CLOSE)


def test_a_mode_that_it_lacks_is_named(splade):
    with pytest.raises(MissingMode, match="has no head for 'dense': it does not pool its states; ask for"):
        load(splade).encode_queries(["the"], ("dense",))
    assert set(MODES) - load(splade).modes == {"dense", "multi_vector"}


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_other_runtimes_are_refused(splade, backend):
    with pytest.raises(ValueError, match="expands terms, which runs with backend='torch' only"):
        load(splade, backend=backend)


def test_a_decoder_of_its_own_is_kept(tmp_path):
    folder = write_sparse_encoder(tmp_path / "model", "bert", WIDE)
    tensors = load_file(folder / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] = torch.randn_like(tensors["bert.embeddings.word_embeddings.weight"])
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    expected = torch.stack([by_transformers(folder, text) for text in TEXTS])
    encoder = load(folder)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS).sparse.todense(), expected, **CLOSE)
    with pytest.warns(PartNotExported):
        encoder.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").fingerprint == encoder.fingerprint


def spoil(name, **changes):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def modules(*kinds: tuple[int, str]):
    def change(folder):
        entries = [
            {"idx": i, "name": str(i), "path": "" if i == 0 else "1_Pool", "type": f"sentence_transformers.{k}"}
            for i, k in kinds
        ]
        (folder / "modules.json").write_text(json.dumps(entries))

    return change


def tensors(change):
    def spoil(folder):
        stored = load_file(folder / "model.safetensors")
        save_file(change(stored), folder / "model.safetensors", {"format": "pt"})

    return spoil


def without(name):
    return tensors(lambda stored: {key: value for key, value in stored.items() if key != name})


TRANSFORM = "cls.predictions.transform.dense.weight"
BROKEN = {
    "cosine": (spoil("config_sentence_transformers.json", similarity_fn_name="cosine"), "compares sparse vectors by"),
    "autoencoder": (modules((0, "Transformer"), (1, "SparseAutoEncoder")), "has the sparse modules"),
    "one module": (modules((0, "MLMTransformer")), "has the sparse modules"),
    "plain task": (modules((0, "Transformer"), (1, "SpladePooling")), "not for 'fill-mask'"),
    "no pooling folder": (lambda folder: (folder / "1_Pool" / "config.json").unlink(), "cannot be read as JSON"),
    "mean of terms": (spoil("1_Pool/config.json", pooling_strategy="mean"), "pools terms by"),
    "unknown activation": (spoil("1_Pool/config.json", activation_function="gelu"), "pools terms by"),
    "no transform": (without(TRANSFORM), "lacks dense.weight of its masked-language-model head"),
    "wide transform": (tensors(lambda all: {**all, TRANSFORM: torch.zeros(8, 32)}), r"dense.weight of \(8, 32\)"),
    "other bias": (tensors(lambda all: {**all, "cls.predictions.bias": torch.zeros(3)}), r"bias of \(3,\)"),
    "no whole length": (spoil("sentence_bert_config.json", max_seq_length="long"), "which is no whole number"),
    "no whole number of terms": (spoil("config_sentence_transformers.json", max_active_dims=0.5), "max_terms is a"),
    "lowercase": (spoil("sentence_bert_config.json", do_lower_case=True), "lowercases texts outside its tokenizer"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_raises_one_clear_error(tmp_path, fault):
    change, message = BROKEN[fault]
    change(write_sparse_encoder(tmp_path, "bert", WIDE))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


BROKEN_ROUTES = {
    "another route": (spoil("router_config.json", structure={"query": []}), "routes .*, not query and document"),
    "no types": (spoil("router_config.json", types={}), "must hold 'types' and a 'structure' of them"),
    "negative": (lambda query: save_file({"weight": -torch.ones(9999)}, query), "one finite weight of at least 0"),
    "short": (lambda query: save_file({"weight": torch.ones(3)}, query), "has weights for 3 tokens"),
    "other tensors": (lambda query: save_file({"x": torch.ones(3)}, query), "must hold a 'weight' of each token"),
}


@pytest.mark.parametrize("fault", BROKEN_ROUTES)
def test_broken_routes_raise_one_clear_error(tmp_path, fault):
    change, message = BROKEN_ROUTES[fault]
    folder = write_inference_free(tmp_path, "bert", WIDE)
    change(
        folder if "route" in fault or "types" in fault else folder / "query_0_SparseStaticEmbedding/model.safetensors"
    )
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)

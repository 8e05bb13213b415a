"""What a checkpoint states is read, or refused by name: nothing is ignored in silence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from m3_integrations import M3Encoder
from m3_integrations.core.errors import CheckpointError, PartNotRead
from tests.checkpoints import (
    TinyCheckpoint,
    write_bge_m3,
    write_inference_free,
    write_model,
    write_pooling,
    write_sparse_encoder,
)
from tests.models.layouts.late_interaction import write_multi_vector, write_pylate

SHAPE = TinyCheckpoint(positions=128)
MODEL, TRANSFORMER = "config_sentence_transformers.json", "sentence_bert_config.json"
KINDS = {
    "dense": lambda folder: write_pooling(write_model(folder, "bert", AutoModel, SHAPE), "mean"),
    "splade": lambda folder: write_sparse_encoder(folder, "bert", SHAPE),
    "inference-free": lambda folder: write_inference_free(folder, "bert", SHAPE),
    "pylate": lambda folder: write_pylate(folder, "bert", SHAPE),
    "multi-vector": lambda folder: write_multi_vector(folder, "bert", SHAPE),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return {}, tmp_path_factory


@pytest.fixture
def copy_of(originals, tmp_path):
    """A function that copies a folder of a kind, which is written once."""

    def copy(kind):
        written, factory = originals
        if kind not in written:
            written[kind] = KINDS[kind](factory.mktemp(kind))
        return shutil.copytree(written[kind], tmp_path / "model")

    return copy


def load(folder, **options):
    return M3Encoder.from_pretrained(str(folder), device="cpu", **options)


def state(name, **changes):
    def change(folder):
        path = folder / name
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**known, **changes}))

    return change


def modules(edit):
    def change(folder):
        path = folder / "modules.json"
        path.write_text(json.dumps(edit(json.loads(path.read_text()))))

    return change


def retype(position, name):
    return modules(lambda all: [{**each, "type": name} if i == position else each for i, each in enumerate(all)])


def tensors(edit):
    def change(folder):
        path = folder / "model.safetensors"
        save_file(edit(load_file(path)), path, {"format": "pt"})

    return change


def cast(dtype):
    return tensors(lambda all: {name: each.to(dtype) if each.ndim == 2 else each for name, each in all.items()})


def remove_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


QUERY = "query_0_SparseStaticEmbedding"
REFUSED = {
    "key of the model": ("dense", state(MODEL, frobs=3), "states frobs=3, which is not supported; supported are"),
    "key of pooling": ("dense", state("1_Pooling/config.json", frobs=3), "states frobs=3"),
    "key of the transformer": ("dense", state(TRANSFORMER, frobs=3), "states frobs=3"),
    "reranker": ("dense", state(MODEL, model_type="CrossEncoder"), "is a 'CrossEncoder' of sentence-transformers"),
    "prompt of no name": ("dense", state(MODEL, default_prompt_name="x"), "'x' is none of the prompts"),
    "wide truncation": ("dense", state(MODEL, truncate_dim=99), "truncate_dim=99, but has 32 dimensions"),
    "another similarity": ("dense", state(MODEL, similarity_fn_name="manhattan"), "compares vectors by 'manhattan'"),
    "wide pooling": ("dense", state("1_Pooling/config.json", word_embedding_dimension=9), "has 32 dimensions"),
    "last token": ("dense", state("1_Pooling/config.json", pooling_mode="lasttoken"), "pools by 'lasttoken'"),
    "two poolings": ("dense", state("1_Pooling/config.json", pooling_mode=["cls", "mean"]), "pools by 'cls.mean'"),
    "prompt not pooled": ("dense", state("1_Pooling/config.json", include_prompt=False), "excludes the prefix"),
    "module of its own": ("dense", retype(1, "mine.Pooling"), "'mine.Pooling', code of its own"),
    "order": ("dense", modules(lambda all: all[::-1]), r"\['Normalize', 'Pooling', 'Transformer'\]; .* in this order"),
    "module twice": ("dense", modules(lambda all: [*all[:2], *all[1:]]), "in this order"),
    "module arguments": (
        "dense",
        modules(lambda all: [{**all[0], "kwargs": ["task"]}, *all[1:]]),
        r"passes \['task'\]",
    ),
    "another task": ("dense", state(TRANSFORMER, transformer_task="text-generation"), "for 'text-generation', not for"),
    "another output": ("dense", state(TRANSFORMER, module_output_name="scores"), "as 'scores'; supported are last"),
    "no text": ("dense", state(TRANSFORMER, modality_config={"image": {}}), "which is no text"),
    "arguments": ("dense", state(TRANSFORMER, model_args={"attn_scale": 2}), r"model_args of \['attn_scale'\]"),
    "short documents": ("dense", state(TRANSFORMER, document_length=9), "states document_length=9"),
    "quantized": ("dense", state("config.json", quantization_config={"bits": 4}), "a quantized model is not supported"),
    "integers": ("dense", cast(torch.int8), "as I8: quantized weights are not supported"),
    "eight bits": ("dense", cast(torch.float8_e4m3fn), "as F8_E4M3: quantized weights are not supported"),
    "decoder": ("dense", state("config.json", is_decoder=True), "attention to preceding tokens only"),
    "sequence to sequence": ("dense", state("config.json", is_encoder_decoder=True), "an encoder with a decoder"),
    "relative": ("dense", state("config.json", position_embedding_type="relative_key"), "this kind of positions"),
    "scaled attention": ("dense", state("config.json", logn_attention_scale=True), "attention scaled by length"),
    "adapter": ("dense", state("adapter_config.json", peft_type="LORA"), "holds an adapter, such as LoRA; merge it"),
    "adapter of ColBERT": ("pylate", state("adapter_config.json", peft_type="LORA"), "holds an adapter"),
    "no tokenizer": ("dense", remove_tokenizer, "has no tokenizer; save one"),
    "left truncation": ("dense", state("tokenizer_config.json", truncation_side="left"), "truncates texts at the left"),
    "other shapes": (
        "dense",
        tensors(lambda all: {**all, "encoder.layer.0.attention.self.query.weight": torch.zeros(64, 64)}),
        "weights of other shapes than its config.json describes",
    ),
    "SPLADE's key": ("splade", state(MODEL, frobs=3), "states frobs=3"),
    "SPLADE truncated": ("splade", state(MODEL, truncate_dim=8), "states truncate_dim=8"),
    "SPLADE's pooling": ("splade", state("1_Pool/config.json", frobs=3), "states frobs=3"),
    "SPLADE's width": ("splade", state("1_Pool/config.json", embedding_dimension=7), "embedding_dimension=7, but"),
    "no head's bias": (
        "splade",
        tensors(lambda all: {name: each for name, each in all.items() if name != "cls.predictions.bias"}),
        "lacks bias of its masked-language-model head",
    ),
    "router": ("inference-free", state("router_config.json", frobs=3), "states frobs=3"),
    "routes": ("inference-free", state("router_config.json", parameters={"route_mappings": {"a": "b"}}), "routes by"),
    "static weights": ("inference-free", state(f"{QUERY}/config.json", frobs=3), "states frobs=3"),
    "PyLate's key": ("pylate", state(MODEL, frobs=3), "states frobs=3"),
    "dense key": ("pylate", state("1_Dense/config.json", frobs=3), "states frobs=3"),
    "dense output": ("pylate", state("1_Dense/config.json", module_output_name="x"), "applies Dense to 'x'"),
    "dense width": ("pylate", state("1_Dense/config.json", out_features=9), "states out_features=9, but its file"),
    "dense bias": ("pylate", state("1_Dense/config.json", bias=True), "states bias=True, but its file"),
    "identity of its own": ("pylate", state("1_Dense/config.json", activation_function="my.Identity"), "'my.Identity'"),
    "mask": ("multi-vector", state("3_MultiVectorMask/config.json", frobs=3), "states frobs=3"),
    "norm": ("multi-vector", state("4_Normalize/config.json", module_output_name="x"), "applies Normalize to 'x'"),
    "lowercase": ("multi-vector", state(TRANSFORMER, do_lower_case=True), "lowercases texts outside its tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(copy_of, case):
    kind, change, message = REFUSED[case]
    folder = copy_of(kind)
    change(folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        load(folder)
    assert len(str(raised.value).splitlines()) == 1


WARNED = {
    "code of its own": (
        "dense",
        state("config.json", auto_map={"AutoModel": "mine.Bert"}),
        "is read by transformers' own",
    ),
    "scales": ("dense", tensors(lambda all: {**all, "encoder.scale": torch.ones(3)}), "has weights such as"),
    "prompts on request": ("pylate", state(MODEL, prompts={"query": "find "}), r"query_prefix='\[Q\] find '"),
    "a head of BGE-M3": (
        "pylate",
        lambda folder: torch.save(torch.nn.Linear(32, 1).state_dict(), folder / "sparse_linear.pt"),
        r"has \['sparse_linear.pt'\], which no mode of its layout uses",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_no_mode_uses_is_named_in_a_warning(copy_of, case):
    kind, change, message = WARNED[case]
    folder = copy_of(kind)
    change(folder)
    with pytest.warns(PartNotRead, match=message):
        load(folder)


@pytest.mark.parametrize("name", [TRANSFORMER, "sentence_xlm-roberta_config.json"])
def test_the_length_of_a_transformer_is_read_from_each_of_its_files(copy_of, name):
    folder = copy_of("dense")
    state(name, max_seq_length=16)(folder)
    assert load(folder).max_length == 16


def test_a_stated_length_comes_before_that_of_the_tokenizer(copy_of):
    folder = copy_of("dense")
    state("tokenizer_config.json", model_max_length=40)(folder)
    assert load(folder).max_length == 40
    state(TRANSFORMER, max_seq_length=100)(folder)
    assert load(folder).max_length == 100
    state(TRANSFORMER, max_seq_length=1000)(folder)
    assert load(folder).max_length == 128  # its positions


def test_a_folder_without_modules_states_prompts_and_lengths(tmp_path):
    folder = write_bge_m3(tmp_path, SHAPE)
    plain = load(folder)
    state(MODEL, prompts={"query": "the "}, similarity_fn_name="cosine")(folder)
    state(TRANSFORMER, max_seq_length=64)(folder)
    encoder = load(folder)
    assert (encoder.max_length, encoder.conventions.query_prefix) == (64, "the ")
    expected = plain.encode_queries(["the bridge"], ("dense",)).dense
    np.testing.assert_allclose(encoder.encode_queries(["bridge"], ("dense",)).dense, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("flags", [{}, {"pooling_mode_mean_tokens": True}])
def test_pooling_is_by_mean_where_no_other_is_stated(copy_of, flags):
    folder = copy_of("dense")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    assert load(folder).conventions.pooling == "mean"


def test_a_default_prompt_of_pylate_follows_the_marker(copy_of):
    folder = copy_of("pylate")
    plain = load(folder)
    state(MODEL, prompts={"all": "the "}, default_prompt_name="all")(folder)
    ours = load(folder).encode_passages(["bridge"]).multi_vector
    np.testing.assert_allclose(ours.values, plain.encode_passages(["the bridge"]).multi_vector.values, atol=1e-6)


def test_markers_that_pylate_leaves_to_its_default_are_q_and_d(copy_of):
    folder = copy_of("pylate")
    stated = load(folder).fingerprint
    state(MODEL, query_prefix=None, document_prefix=None)(folder)
    assert load(folder).fingerprint == stated


def test_a_layout_without_a_dense_mode_is_not_pooled(copy_of):
    with pytest.raises(CheckpointError, match="has no dense mode to pool; leave out pooling='mean'"):
        load(copy_of("pylate"), pooling="mean")


def test_weights_of_queries_are_read_from_a_table(copy_of):
    folder = copy_of("inference-free")
    state(f"{QUERY}/config.json", path="idf.json")(folder)
    (folder / QUERY / "idf.json").write_text(json.dumps({"▁bridge": 2.5, "▁the": 0.5}))
    rows = load(folder).encode_queries(["the bridge"]).sparse
    assert sorted(rows.data) == [0.5, 2.5]

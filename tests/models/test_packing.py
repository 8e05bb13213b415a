"""Texts in one row against the same texts one by one, through transformers' own attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from m3_integrations.models.cpu_layers import has_onednn_linear, optimize_for_cpu
from m3_integrations.models.packing import enable_packing, pack, pad, pool_of, runs_of, supports_packing
from m3_integrations.models.tokenization import TokenSequence
from tests.optional import requires_architecture

CLS, PAD, EOS = 0, 1, 2
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 1200,
}
WINDOWS = {
    "local_attention": 32,
    "layer_types": ["full_attention", "sliding_attention"],
    "cls_token_id": CLS,
    "sep_token_id": EOS,
    "bos_token_id": CLS,
    "eos_token_id": EOS,
}
PACKS_MODERN_BERT = hasattr(ModernBertConfig(), "layer_types") and ModernBertModel._can_set_attn_implementation()
LENGTHS = [1100, 40, 7, 7, 7, 3, 2, 2]


KINDS = [
    "bert",
    "xlm-roberta",
    pytest.param("gte", marks=requires_architecture("gte")),
    pytest.param("modernbert", marks=pytest.mark.skipif(not PACKS_MODERN_BERT, reason="its attention takes no row")),
]


def backbone(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "bert":
        return BertModel(BertConfig(**SHAPE, pad_token_id=PAD), add_pooling_layer=False).eval()
    if kind == "xlm-roberta":
        return XLMRobertaModel(XLMRobertaConfig(**SHAPE, pad_token_id=PAD), add_pooling_layer=False).eval()
    config = CONFIG_MAPPING[kind](**SHAPE, pad_token_id=PAD, **(WINDOWS if kind == "modernbert" else {}))
    return AutoModel.from_config(config).eval()


def sequences(lengths: list[int], seed: int = 0) -> list[TokenSequence]:
    """Random tokens, <pad> written out in a text among them."""
    tokens = np.random.default_rng(seed)
    inner = [tokens.integers(1, 50, length - 2) for length in lengths]
    ids = [np.concatenate([[CLS], each, [EOS]]).astype(np.int32) for each in inner]
    return [TokenSequence(each, row, 0, np.array([0])) for row, each in enumerate(ids)]


def one_by_one(model: nn.Module, texts: list[TokenSequence]) -> torch.Tensor:
    """(tokens, hidden): each text alone, by transformers."""
    with torch.no_grad():
        some = [model(input_ids=torch.from_numpy(each.ids).long()[None]).last_hidden_state[0] for each in texts]
    return torch.cat(some)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_longer_than_a_chunk_is_computed_as_whole(kind):
    model, texts = backbone(kind), sequences([1150])
    alone = one_by_one(model, texts)
    enable_packing(model)
    optimize_for_cpu(model)
    with torch.inference_mode():
        chunked = model(**pack(model, texts).arguments).last_hidden_state[0]
    torch.testing.assert_close(chunked, alone, rtol=0, atol=1e-5)
    with torch.no_grad():  # no chunks, and torch's own linear layers
        whole = model(**pack(model, texts).arguments).last_hidden_state[0]
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_gives_what_each_text_gives_alone(kind):
    model, texts = backbone(kind), sequences(LENGTHS)
    alone = one_by_one(model, texts)
    enable_packing(model)
    optimize_for_cpu(model)
    inputs = pack(model, texts)
    with torch.inference_mode():
        together = model(**inputs.arguments).last_hidden_state[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert inputs.ids.tolist() == np.concatenate([each.ids for each in texts]).tolist()


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_no_text_in_a_row_hears_of_the_others(lengths, seed):
    model, texts = backbone("xlm-roberta"), sequences(lengths, seed)
    alone = one_by_one(model, texts)
    enable_packing(model)
    with torch.inference_mode():
        together = model(**pack(model, texts).arguments).last_hidden_state[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_padded_batch_through_a_prepared_model_is_attended_as_before():
    model, texts = backbone("bert"), sequences([40, 7, 3])
    alone = one_by_one(model, texts)
    enable_packing(model)
    inputs = pad(model, texts, PAD)
    with torch.inference_mode():
        hidden = model(**inputs.arguments).last_hidden_state[inputs.mask]
    torch.testing.assert_close(hidden, alone, rtol=0, atol=1e-5)
    assert inputs.arguments["input_ids"].shape == (3, 40)


@pytest.mark.parametrize("length", [40, 1100])
def test_bfloat16_attends_in_blocks_that_agree_with_float32(length):
    model, texts = backbone("bert"), sequences([length, length, 9])
    alone = one_by_one(model, texts)
    enable_packing(model.to(torch.bfloat16))
    with torch.inference_mode():
        together = model(**pack(model, texts).arguments).last_hidden_state[0].float()
    assert torch.cosine_similarity(together, alone).min() > 0.999


@given(lengths=st.lists(st.integers(1, 3000), max_size=40))
def test_runs_cover_every_token_once_and_hold_texts_of_one_length(lengths):
    runs = runs_of(lengths)
    assert [run.length for run in runs for _ in range(run.texts)] == lengths
    assert [run.start for run in runs] == np.cumsum([0, *(run.texts * run.length for run in runs)])[:-1].tolist()


def test_texts_of_one_length_are_one_run_until_their_scores_outgrow_the_cache():
    assert len(runs_of([8] * 100)) == 1
    assert len(runs_of([2000] * 3)) == 3


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_takes_each_texts_own_states(pooling):
    texts = [TokenSequence(np.zeros(n, np.int32), row, 0, np.array([0])) for row, n in enumerate([3, 5])]
    hidden = torch.arange(16.0).reshape(8, 2)
    pooled = pool_of(texts, pooling, torch.device("cpu")).of(hidden)
    expected = [hidden[0], hidden[3]] if pooling == "cls" else [hidden[:3].mean(0), hidden[3:].mean(0)]
    torch.testing.assert_close(pooled, torch.stack(expected))


def test_what_looks_beside_its_text_is_not_packed():
    relative = MPNetModel(MPNetConfig(**SHAPE, pad_token_id=PAD))  # adds a bias of relative positions to its scores
    assert supports_packing(backbone("bert"))
    assert not supports_packing(relative)


@pytest.mark.skipif(not PACKS_MODERN_BERT, reason="its attention takes no row")
@pytest.mark.parametrize("lengths", [[2, 17, 18, 33, 34], [127, 128, 129, 145, 161], [300, 300, 5]])
def test_local_attention_sees_as_far_as_transformers_masks_do(lengths):
    model, texts = backbone("modernbert"), sequences(lengths)
    alone = one_by_one(model, texts)
    enable_packing(model)
    with torch.inference_mode():
        together = model(**pack(model, texts).arguments).last_hidden_state[0]
        padded = pad(model, texts, PAD)
        batch = model(**padded.arguments).last_hidden_state[padded.mask]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch, alone, rtol=0, atol=1e-5)


# Linear layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_quick_linear_layer_computes_what_it_did(dtype, bias):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 33, bias=bias)).to(dtype)
    inputs = torch.randn(2, 7, 64).to(dtype)
    expected = layer(inputs)
    optimize_for_cpu(layer)
    with torch.inference_mode():
        torch.testing.assert_close(layer(inputs), expected)


def test_a_quick_model_still_learns():
    layer = nn.Linear(4, 1)
    optimize_for_cpu(layer)
    layer(torch.ones(4)).backward()
    assert layer.weight.grad.tolist() == [[1.0] * 4]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_the_operator_that_torch_keeps_to_itself_is_there():
    assert has_onednn_linear()

"""Token pooling: groups against Ward's criterion written out, and what an encoder keeps of a passage."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from itertools import combinations
from math import ceil

import numpy as np
import pytest
from hypothesis import given, strategies as st

from m3_integrations import LocalIndex, M3Encoder
from m3_integrations.core.encoded import MultiVectors
from m3_integrations.core.errors import WrongEncoder
from m3_integrations.models.token_pooling import groups_of, means, pool_tokens
from tests.checkpoints import WORDS

TEXTS = ["the bridge", "Die Brücke über die Wolga " * 5, "", "мост", "what is a passage?"]
CONVENTIONS = ("pooling", "normalise", "max_length", "query_prefix", "passage_prefix")  # of the first fingerprints


def load(folder, **options):
    return M3Encoder.from_pretrained(str(folder), device="cpu", **options)


def unit(tokens, width=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(tokens, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_ward(vectors, count):
    """Join the two groups whose joining adds least to the squared distances from the means, until `count` are left."""
    groups = [[i] for i in range(len(vectors))]

    def added(one, other):
        apart = vectors[one].mean(axis=0) - vectors[other].mean(axis=0)
        return len(one) * len(other) / (len(one) + len(other)) * float(apart @ apart)

    while len(groups) > count:
        one, other = min(combinations(groups, 2), key=lambda pair: added(*pair))
        groups = [group for group in groups if group not in (one, other)] + [sorted(one + other)]
    return sorted(groups)


def members(groups):
    return [np.flatnonzero(groups == i).tolist() for i in range(groups.max() + 1)]


@pytest.mark.parametrize("factor", [2, 3, 7])
@pytest.mark.parametrize("tokens", [12, 25, 40])
def test_groups_are_those_of_wards_criterion_in_the_order_of_their_first_tokens(tokens, factor):
    vectors = unit(tokens, seed=tokens)
    assert members(groups_of(vectors, factor)) == by_ward(vectors.astype(np.float64), ceil(tokens / factor))


@given(tokens=st.integers(1, 1500), factor=st.integers(1, 700))
def test_no_more_groups_than_a_vector_for_so_many_tokens(tokens, factor):
    groups = groups_of(unit(tokens, width=2), factor)
    _, firsts = np.unique(groups, return_index=True)
    assert len(groups) == tokens
    assert 1 <= len(firsts) <= ceil(tokens / factor)
    assert firsts.tolist() == sorted(firsts)


def test_tokens_with_the_same_vector_share_a_group():
    one, other = unit(2)
    groups = groups_of(np.array([one, other, one, other, one, other]), 3)
    assert groups.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_group_keeps_the_direction_of_its_mean():
    vectors = unit(3)
    found = means(vectors, np.array([0, 1, 0]))
    np.testing.assert_allclose(found[1], vectors[1], rtol=0, atol=1e-6)
    middle = (vectors[0] + vectors[2]) / 2
    np.testing.assert_allclose(found[0], middle / np.linalg.norm(middle), rtol=0, atol=1e-6)


def test_where_vectors_cancel_out_the_first_stands_for_them():
    vector = unit(1)[0]
    assert means(np.array([vector, -vector]), np.array([0, 0])).tolist() == [vector.tolist()]


def test_the_memory_of_a_long_text_does_not_grow_with_its_square():
    vectors = unit(8192, width=16)
    tracemalloc.start()
    try:
        groups = groups_of(vectors, 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert groups.max() + 1 == 4096
    assert peak < 8192**2 * 4 / 16  # a sixteenth of the float32 distances between all tokens


def test_pooling_of_no_texts_keeps_the_width():
    assert pool_tokens(MultiVectors.of([], 5), 2).width == 5


# Encoders


def test_a_passage_keeps_the_means_of_its_groups_and_all_else_as_it_was(bge_m3):
    plain, pooling = load(bge_m3()).encode_passages(TEXTS), load(bge_m3(), token_pooling=2).encode_passages(TEXTS)
    assert pooling.dense.tolist() == plain.dense.tolist()
    assert (pooling.sparse != plain.sparse).nnz == 0
    for kept, vectors in zip(pooling.multi_vector, plain.multi_vector, strict=True):
        assert len(kept) == ceil(len(vectors) / 2)
        np.testing.assert_array_equal(kept, means(vectors, groups_of(vectors, 2)))
        np.testing.assert_allclose(np.linalg.norm(kept, axis=1), 1, rtol=0, atol=1e-6)


def test_questions_keep_every_vector(bge_m3):
    plain, pooling = load(bge_m3()), load(bge_m3(), token_pooling=4)
    expected = plain.encode_queries(TEXTS).multi_vector
    assert pooling.encode_queries(TEXTS).multi_vector.values.tolist() == expected.values.tolist()


def test_a_factor_of_1_changes_no_bit_and_no_fingerprint(bge_m3):
    plain, encoder = load(bge_m3()), load(bge_m3(), token_pooling=1)
    for one, other in (
        (plain.encode_passages(TEXTS), encoder.encode_passages(TEXTS)),
        (encoder.encode_tokens(TEXTS), encoder.encode_passages(TEXTS)),
    ):
        assert one.multi_vector.values.tolist() == other.multi_vector.values.tolist()
        assert one.multi_vector.offsets.tolist() == other.multi_vector.offsets.tolist()
    conventions = {key: getattr(plain.conventions, key) for key in CONVENTIONS}
    stated = json.dumps({**conventions, "windows": None, "cls_every": None}, sort_keys=True)
    expected = hashlib.sha256(f"{plain.checkpoint.hash_weights()}{stated}".encode()).hexdigest()
    assert plain.fingerprint == encoder.fingerprint == expected


def test_each_factor_has_its_fingerprint(bge_m3):
    assert len({load(bge_m3(), token_pooling=factor).fingerprint for factor in (1, 2, 3)}) == 3


def test_a_folder_of_pooled_passages_is_refused_to_an_encoder_that_does_not_pool(bge_m3, tmp_path):
    LocalIndex.open(tmp_path / "index", load(bge_m3(), token_pooling=2)).close()
    with pytest.raises(WrongEncoder):
        LocalIndex.open(tmp_path / "index", load(bge_m3()))


@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino"])
def test_texts_read_in_windows_are_pooled_over_all_their_windows(bge_m3, exported, backend):
    text = " ".join(np.random.default_rng(0).choice(WORDS, 60))
    options = {"max_length": 24, "window_overlap": 4, **({} if backend == "torch" else exported(backend))}
    vectors = load(bge_m3(), **options).encode_passages([text]).multi_vector[0]
    pooling = load(bge_m3(), token_pooling=3, **options)
    kept = pooling.encode_passages([text]).multi_vector[0]
    assert len(vectors) == len(pooling.passage_spans(text)) > 60
    assert len(kept) == ceil(len(vectors) / 3)
    np.testing.assert_allclose(kept, means(vectors, groups_of(vectors, 3)), rtol=0, atol=1e-6)


def test_a_text_of_8192_tokens_is_pooled(bge_m3):
    encoder = load(bge_m3(positions=8192, layers=1), token_pooling=3)
    text = " ".join(np.random.default_rng(0).choice(WORDS, 8000))
    tokens = len(encoder.passage_spans(text))
    assert tokens > 8000
    assert encoder.encode_passages([text], ("multi_vector",)).multi_vector.counts.tolist() == [ceil(tokens / 3)]


def test_an_empty_text_keeps_its_one_vector_and_no_texts_give_none(bge_m3):
    pooling = load(bge_m3(), token_pooling=3)
    assert pooling.encode_passages(["", " "]).multi_vector.counts.tolist() == [1, 1]
    assert len(pooling.encode_passages([]).multi_vector) == 0


def test_an_encoder_without_the_head_takes_the_option(bge_m3):
    encoder = load(bge_m3(colbert=False), token_pooling=2)
    assert encoder.encode_passages(TEXTS).modes == {"dense", "sparse"}
    assert encoder.explain("the bridge", TEXTS[0]).late == ()


@pytest.mark.parametrize("factor", [0, -1, 1.5])
def test_a_factor_that_is_none_is_refused(bge_m3, factor):
    with pytest.raises(ValueError, match=r"token_pooling=1 keeps every token's vector"):
        load(bge_m3(), token_pooling=factor)

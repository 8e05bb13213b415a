"""Narrowed late interaction: against a singular value decomposition, saved and read again, and beside its original."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.core.errors import MissingMode
from m3_integrations.models.heads.projection import principal_directions, projected

TEXTS = ["the bridge", "Die Brücke über die Wolga", "мост через реку", "what is a passage?", "橋はどこにある"]
LATE = ("multi_vector",)


def load(folder, **options):
    return M3Encoder.from_pretrained(str(folder), device="cpu", **options)


def vectors_of(encoder, texts=TEXTS):
    return encoder.encode_passages(texts, LATE).multi_vector.values


def products(vectors):
    return vectors @ vectors.T


@pytest.fixture(scope="module")
def encoder(bge_m3):
    return load(bge_m3(), passage_prefix="passage: ", max_length=64)


def by_svd(vectors, width):
    """(tokens, width): the vectors along their first right singular vectors, of length 1."""
    _, _, directions = np.linalg.svd(vectors.astype(np.float64), full_matrices=False)
    along = vectors @ directions[:width].T
    return along / np.linalg.norm(along, axis=1, keepdims=True)


@pytest.mark.parametrize("width", [1, 8, 20])
def test_vectors_are_those_along_the_first_singular_directions(encoder, width):
    narrow = encoder.with_projection(TEXTS, width)
    assert narrow.multi_vector_dim == vectors_of(narrow).shape[1] == width
    # A direction and its opposite are as good: the products are what is determined.
    expected = products(by_svd(vectors_of(encoder), width))
    np.testing.assert_allclose(products(vectors_of(narrow)), expected, rtol=0, atol=1e-4)


def test_the_head_projects_as_the_vectors_are_projected(encoder):
    directions = principal_directions([vectors_of(encoder)], 8)
    expected = projected(vectors_of(encoder), directions)
    np.testing.assert_allclose(vectors_of(encoder.with_projection(TEXTS, 8)), expected, rtol=0, atol=1e-5)


def test_at_full_width_every_score_stays(encoder):
    narrow = encoder.with_projection(TEXTS, encoder.multi_vector_dim)
    np.testing.assert_allclose(products(vectors_of(narrow)), products(vectors_of(encoder)), rtol=0, atol=1e-5)


def test_directions_do_not_depend_on_how_vectors_come(encoder):
    vectors = vectors_of(encoder)
    parts = principal_directions(np.array_split(vectors, 3), 4)
    np.testing.assert_allclose(products(projected(vectors, parts)), products(by_svd(vectors, 4)), rtol=0, atol=1e-4)


def test_the_original_and_the_other_modes_stay_as_they_were(bge_m3):
    encoder = load(bge_m3())
    before, fingerprint = encoder.encode_passages(TEXTS), encoder.fingerprint
    narrow = encoder.with_projection(TEXTS, 8)
    for again in (encoder.encode_passages(TEXTS), narrow.encode_passages(TEXTS)):
        assert again.dense.tolist() == before.dense.tolist()
        assert (again.sparse != before.sparse).nnz == 0
    assert vectors_of(encoder).tolist() == before.multi_vector.values.tolist()
    assert (encoder.multi_vector_dim, encoder.fingerprint) == (32, fingerprint)
    assert load(bge_m3()).fingerprint == fingerprint != narrow.fingerprint


def test_settings_are_taken_over(bge_m3):
    settings = {"max_length": 24, "window_overlap": 4, "batch_tokens": 99, "query_prefix": "query: "}
    encoder = load(bge_m3(), token_pooling=2, **settings)
    narrow = encoder.with_projection(TEXTS, 8)
    assert narrow.conventions == encoder.conventions
    assert (narrow.sequencer, narrow.batch_tokens) == (encoder.sequencer, encoder.batch_tokens)
    assert narrow.encode_passages(TEXTS).multi_vector.counts.tolist() == [
        -(-count // 2) for count in narrow.encode_tokens(TEXTS).multi_vector.counts
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_narrowed_encoder_is_saved_and_read_again(bge_m3, tmp_path, dtype):
    narrow = load(bge_m3(), dtype=dtype).with_projection(TEXTS, 8)
    narrow.save_pretrained(tmp_path)
    again = load(tmp_path, dtype=dtype)
    assert again.fingerprint == narrow.fingerprint
    assert vectors_of(again).tolist() == vectors_of(narrow).tolist()
    assert torch.load(tmp_path / "colbert_linear.pt", weights_only=True)["weight"].shape == (8, 32)


def test_narrowing_again_goes_on_from_there(encoder):
    twice, once = encoder.with_projection(TEXTS, 16).with_projection(TEXTS, 4), encoder.with_projection(TEXTS, 16)
    np.testing.assert_allclose(products(vectors_of(twice)), products(by_svd(vectors_of(once), 4)), rtol=0, atol=1e-4)


def test_hidden_states_themselves_are_narrowed_by_a_head_with_a_bias_of_0(bge_m3, tmp_path):
    load(bge_m3()).save_pretrained(tmp_path / "identity")
    head = {"weight": torch.eye(32), "bias": torch.zeros(32)}
    torch.save(head, tmp_path / "identity" / "colbert_linear.pt")
    encoder = load(tmp_path / "identity")
    narrow = encoder.with_projection(TEXTS, 8)
    np.testing.assert_allclose(
        products(vectors_of(narrow)), products(by_svd(vectors_of(encoder), 8)), rtol=0, atol=1e-4
    )
    narrow.save_pretrained(tmp_path / "narrow")
    saved = torch.load(tmp_path / "narrow" / "colbert_linear.pt", weights_only=True)
    assert saved["bias"].tolist() == [0.0] * 8  # FlagEmbedding reads no head without one


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_other_engines_are_narrowed_too(bge_m3, exported, encoder, backend):
    other = load(bge_m3(), passage_prefix="passage: ", max_length=64, **exported(backend))
    narrow = other.with_projection(TEXTS, 8)
    assert narrow.backend == backend
    np.testing.assert_allclose(
        products(vectors_of(narrow)), products(vectors_of(encoder.with_projection(TEXTS, 8))), rtol=0, atol=1e-4
    )


def test_a_narrowed_encoder_explains_itself(encoder):
    found = encoder.with_projection(TEXTS, 8).explain("the bridge", TEXTS[1])
    late = sum(match.score for match in found.late) * encoder.weights["multi_vector"]
    assert late == pytest.approx(found.by_mode["multi_vector"], abs=1e-6)


@pytest.mark.parametrize("width", [0, -1, 33])
def test_a_width_out_of_range_is_refused(encoder, width):
    with pytest.raises(ValueError, match=f"width must be from 1 to 32, the present dimension, got {width}"):
        encoder.with_projection(TEXTS, width)


def test_no_texts_and_too_few_are_refused(encoder):
    with pytest.raises(ValueError, match="pass a few hundred passages of the corpus"):
        encoder.with_projection([], 8)
    with pytest.raises(ValueError, match=r"1 tokens, too few for 8 directions; pass more"):
        encoder.with_projection([""], 8)
    with pytest.raises(TypeError, match="got one text"):
        encoder.with_projection("the bridge", 8)


def test_without_the_head_there_is_nothing_to_narrow(bge_m3):
    with pytest.raises(MissingMode, match=r"colbert_linear\.pt"):
        load(bge_m3(colbert=False)).with_projection(TEXTS, 8)

"""Torch scores equal the numpy scores of encoded texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import MissingMode, WrongDimension
from m3_integrations.core.scoring import score, score_mode
from m3_integrations.encoders import EncoderConfig
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.models.conventions import PivotedLengthNormalization
from m3_integrations.training.objective import scores as training_scores
from m3_integrations.training.objective.losses import weighted_sum
from m3_integrations.training.objective.model import TokenBatch, TrainableM3, length_normalized
from m3_integrations.training.objective.scores import ScoreLayout, lexical_mass, multi_vector_scores, sparse_scores
from m3_integrations.training.stages import Stage
from m3_integrations.training.step import StageObjective

QUERIES = ["where is the bridge", "мост через волгу", "", "a a a the the the", "橋", "query query passage"]
PASSAGES = [
    "the bridge over the river",
    "Die Brücke über die Wolga",
    "",
    "unknown: ☃ ጨ 🙂 and </s> <s> <unk> in it",
    "the the the bridge a a",
    "where what passage 橋 " * 6,
    "☃",
]
PREFIXES = {"query_prefix": "query: ", "passage_prefix": "passage: the "}


NORMALIZED = {"lexical_length": PivotedLengthNormalization(0.5, 1.5)}


@pytest.fixture(scope="module", params=[{}, PREFIXES, NORMALIZED], ids=["bare", "prefixed", "normalized"])
def encoder(request, bge_m3):
    checkpoint = checkpoints.read(str(bge_m3(hidden=16, colbert_width=8, layers=2)))
    checkpoint.heads.sparse.bias.data += 1  # a random head gives half of the tokens the weight 0
    conventions = replace(checkpoint.conventions, **request.param)
    return M3Encoder(replace(checkpoint, conventions=conventions), EncoderConfig(max_length=64, device="cpu"))


@pytest.fixture(scope="module")
def both(encoder):
    """Representations of queries and passages by the trainable model."""
    model = TrainableM3.from_checkpoint(encoder.checkpoint).eval()

    def represent(texts, prefix):
        sequences, _ = encoder.sequencer.sequences(texts, prefix)
        return model(TokenBatch.of(sequences, encoder.checkpoint.special.pad))

    with torch.no_grad():
        conventions = encoder.conventions
        return represent(QUERIES, conventions.query_prefix), represent(PASSAGES, conventions.passage_prefix)


@pytest.mark.parametrize("mode", MODES)
def test_scores_equal_those_of_encoded_texts(encoder, both, mode):
    expected = score_mode(mode, encoder.encode_queries(QUERIES), encoder.encode_passages(PASSAGES))
    assert np.count_nonzero(expected) > expected.size / 3
    np.testing.assert_allclose(training_scores.score_mode(mode, *both), expected, rtol=0, atol=1e-5)


def test_the_lexical_mass_is_the_sum_of_a_querys_sparse_weights(encoder, both):
    sums = np.asarray(encoder.encode_queries(QUERIES).sparse.sum(axis=1)).ravel()
    assert sums[QUERIES.index("")] == 0
    found = lexical_mass(both[0].tensor("sparse"), both[0].ids)
    np.testing.assert_allclose(found, np.where(sums > 0, sums, 1), rtol=1e-5)


@pytest.mark.parametrize("sparse_score", ["sum", "mean"])
def test_the_summed_score_of_training_is_that_of_a_search(encoder, both, sparse_score):
    weights = {"dense": 0.05, "sparse": 0.4, "multi_vector": 1.0}
    objective = StageObjective(Stage({}), MODES, weights, sparse_score, None)
    found = weighted_sum(training_scores.score_modes(*both, MODES), objective.weights_of(both[0]))
    queries = encoder.encode_queries(QUERIES).with_sparse_score(sparse_score)
    np.testing.assert_allclose(found, score(queries, encoder.encode_passages(PASSAGES), weights), atol=1e-5)


def test_an_empty_text_has_lexical_scores_of_zero(both):
    sparse = training_scores.score_modes(*both, MODES)["sparse"]
    assert not sparse[QUERIES.index("")].any()
    assert not sparse[:, PASSAGES.index("")].any()


def test_length_normalization_of_a_text_without_weights_has_finite_gradients():
    weights = torch.tensor([[0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    normalized = length_normalized(weights, torch.tensor([[5, 6], [5, 6]]), PivotedLengthNormalization(0.5, 1.5))
    normalized.sum().backward()
    np.testing.assert_allclose(normalized.detach()[0], torch.tensor([0.3, 0.4]) / (0.5 + 0.5 * 0.5 / 1.5))
    assert torch.isfinite(weights.grad).all()


def test_a_repeated_token_counts_once_in_the_length_of_its_text():
    weights, ids = torch.tensor([[0.3, 0.1, 0.4]]), torch.tensor([[5, 5, 6]])
    normalized = length_normalized(weights, ids, PivotedLengthNormalization(1.0, 0.5))
    np.testing.assert_allclose(normalized, weights)  # the length of 0.3 and 0.4 is the pivot


def random_texts(texts, length, seed, vocabulary=9):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (texts, length), generator=generator)
    return torch.randn(texts, length, generator=generator, dtype=torch.float64, requires_grad=True), ids


def rows_over_the_vocabulary(weights, ids, vocabulary=9):
    """Weights in one column per token of the vocabulary: the slow reference."""
    rows = [[weights[i][ids[i] == token].amax() if (ids[i] == token).any() else weights.new_zeros(())
             for token in range(vocabulary)] for i in range(len(ids))]  # fmt: skip
    return torch.stack([torch.stack(row) for row in rows])


def test_lexical_gradients_equal_those_of_vocabulary_sized_rows():
    (queries, query_ids), (passages, passage_ids) = random_texts(4, 6, seed=0), random_texts(5, 11, seed=1)
    factors = torch.randn(4, 5, dtype=torch.float64)
    weights = torch.relu(queries), torch.relu(passages)
    wide = rows_over_the_vocabulary(weights[0], query_ids) @ rows_over_the_vocabulary(weights[1], passage_ids).T
    narrow = sparse_scores(weights[0], query_ids, weights[1], passage_ids)
    torch.testing.assert_close(narrow, wide)
    expected = torch.autograd.grad((wide * factors).sum(), [queries, passages], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((narrow * factors).sum(), [queries, passages]), expected)


def test_lexical_scores_need_no_vocabulary_sized_tensor():
    weights, ids = torch.ones(2, 3, requires_grad=True), torch.tensor([[5, 10**12, 7], [10**12, 5, 5]])
    assert sparse_scores(weights, ids, weights, ids).tolist() == [[3, 2], [2, 2]]


def test_queries_without_weights_score_zero_and_have_a_gradient():
    weights, ids = torch.zeros(2, 3, requires_grad=True), torch.arange(6).view(2, 3)
    scores = sparse_scores(weights, ids, torch.ones(4, 3), torch.arange(12).view(4, 3))
    scores.sum().backward()
    assert scores.tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("max_pairs", [1, 50, 10**6])
def test_maxsim_does_not_depend_on_the_chunk_size(max_pairs):
    generator = torch.Generator().manual_seed(0)
    queries, passages = torch.randn(3, 4, 8, generator=generator), torch.randn(5, 6, 8, generator=generator)
    content = torch.rand(3, 4, generator=generator) > 0.3, torch.rand(5, 6, generator=generator) > 0.3
    queries.requires_grad_()
    scores = multi_vector_scores(queries, content[0], passages, content[1], max_pairs)
    for i in range(3):
        for j in range(5):
            best = (queries[i][content[0][i]] @ passages[j][content[1][j]].T).amax(dim=1)
            assert scores[i, j].item() == pytest.approx(best.mean().item(), abs=1e-6)


def test_a_text_without_vectors_scores_zero_and_has_finite_gradients():
    vectors = torch.randn(2, 3, 4, requires_grad=True)
    content = torch.tensor([[True, True, False], [False, False, False]])
    scores = multi_vector_scores(vectors, content, vectors, content)
    scores.sum().backward()
    assert scores[1].tolist() == [0, 0]
    assert scores[0, 1] == 0
    assert torch.isfinite(vectors.grad).all()
    assert not vectors.grad[1].any()


def test_padding_changes_neither_scores_nor_gradients():
    vectors = torch.randn(2, 3, 4)
    content = torch.tensor([[True, True, False], [True, True, True]])
    padded = torch.cat([vectors, 99 * torch.ones(2, 2, 4)], dim=1).requires_grad_()
    longer = torch.cat([content, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    scores = multi_vector_scores(padded, longer, padded, longer)
    scores.sum().backward()
    torch.testing.assert_close(scores, multi_vector_scores(vectors, content, vectors, content))
    assert not padded.grad[~longer].any()


def test_a_missing_mode_is_named_in_the_error(both):
    with pytest.raises(MissingMode, match="encode 'sparse' too"):
        training_scores.score_mode("sparse", both[0]._replace(sparse=None), both[1])


def test_vectors_of_different_dimensions_are_rejected():
    with pytest.raises(WrongDimension, match="queries have 3 dimensions and passages 4"):
        training_scores.dense_scores(torch.zeros(1, 3), torch.zeros(1, 4))


def test_score_matrices_compare_each_query_and_its_positive_with_all_texts(both):
    queries, passages = both
    layout = ScoreLayout.of(torch.tensor([[0, 6], [3, -1]]), passages=7)
    subset = queries.take(torch.tensor([0, 1]))
    matrices = training_scores.score_matrices("dense", subset, passages, layout)
    torch.testing.assert_close(matrices.query_passage, subset.dense @ passages.dense.T)
    torch.testing.assert_close(matrices.query_query, subset.dense @ subset.dense.T)
    torch.testing.assert_close(matrices.passage_query, passages.dense[[0, 3]] @ subset.dense.T)
    torch.testing.assert_close(matrices.passage_passage, passages.dense[[0, 3]] @ passages.dense.T)
    assert layout.own_mask().tolist() == [[True] + [False] * 5 + [True], [False] * 3 + [True] + [False] * 3]

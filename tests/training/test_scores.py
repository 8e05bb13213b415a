"""Torch's scores against numpy's, over real tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from m3_integrations import M3Encoder
from m3_integrations.core import checkpoint as checkpoints
from m3_integrations.core.encoded import MODES, score_mode
from m3_integrations.core.errors import MissingMode, WrongDimension
from m3_integrations.core.lexical import LexicalLength
from m3_integrations.training import scores as training_scores
from m3_integrations.training.model import TokenBatch, TrainableM3, fitted
from m3_integrations.training.scores import Layout, multi_vector_scores, sparse_scores

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


FITTED = {"lexical_length": LexicalLength(0.5, 1.5)}


@pytest.fixture(scope="module", params=[{}, PREFIXES, FITTED], ids=["bare", "prefixed", "fitted"])
def encoder(request, bge_m3):
    checkpoint = checkpoints.read(str(bge_m3(hidden=16, colbert_width=8, layers=2)))
    checkpoint.heads.sparse.bias.data += 1  # a random head weighs half of the tokens with nothing
    stated = replace(checkpoint.conventions, **request.param)
    return M3Encoder(replace(checkpoint, conventions=stated), max_length=64, device="cpu")


@pytest.fixture(scope="module")
def both(encoder):
    """The representations of queries and passages, by the model in training."""
    model = TrainableM3.of(encoder.checkpoint).eval()

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


def test_an_empty_text_scores_nothing_lexically(both):
    sparse = training_scores.scores(*both, MODES)["sparse"]
    assert not sparse[QUERIES.index("")].any()
    assert not sparse[:, PASSAGES.index("")].any()


def test_a_text_without_lexical_weights_spoils_no_gradient_of_those_that_are_fitted():
    weights = torch.tensor([[0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    found = fitted(weights, torch.tensor([[5, 6], [5, 6]]), LexicalLength(0.5, 1.5))
    found.sum().backward()
    np.testing.assert_allclose(found.detach()[0], torch.tensor([0.3, 0.4]) / (0.5 + 0.5 * 0.5 / 1.5))
    assert torch.isfinite(weights.grad).all()


def test_a_token_that_comes_twice_counts_once_in_the_length_of_its_text():
    weights, ids = torch.tensor([[0.3, 0.1, 0.4]]), torch.tensor([[5, 5, 6]])
    found = fitted(weights, ids, LexicalLength(1.0, 0.5))
    np.testing.assert_allclose(found, weights)  # the length of 0.3 and 0.4 is the pivot


def random_texts(texts, length, seed, vocabulary=9):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (texts, length), generator=generator)
    return torch.randn(texts, length, generator=generator, dtype=torch.float64, requires_grad=True), ids


def rows_over_the_vocabulary(weights, ids, vocabulary=9):
    """What the scores would be with a column a token: slow, wide and plain."""
    rows = [[weights[i][ids[i] == token].amax() if (ids[i] == token).any() else weights.new_zeros(())
             for token in range(vocabulary)] for i in range(len(ids))]  # fmt: skip
    return torch.stack([torch.stack(row) for row in rows])


def test_lexical_gradients_are_those_of_rows_as_wide_as_the_vocabulary():
    (queries, asked), (passages, offered) = random_texts(4, 6, seed=0), random_texts(5, 11, seed=1)
    judge = torch.randn(4, 5, dtype=torch.float64)
    weighed = torch.relu(queries), torch.relu(passages)
    wide = rows_over_the_vocabulary(weighed[0], asked) @ rows_over_the_vocabulary(weighed[1], offered).T
    narrow = sparse_scores(weighed[0], asked, weighed[1], offered)
    torch.testing.assert_close(narrow, wide)
    expected = torch.autograd.grad((wide * judge).sum(), [queries, passages], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((narrow * judge).sum(), [queries, passages]), expected)


def test_lexical_scores_make_nothing_as_wide_as_the_vocabulary():
    weights, ids = torch.ones(2, 3, requires_grad=True), torch.tensor([[5, 10**12, 7], [10**12, 5, 5]])
    assert sparse_scores(weights, ids, weights, ids).tolist() == [[3, 2], [2, 2]]


def test_queries_without_a_weight_score_zero_and_pass_a_gradient():
    weights, ids = torch.zeros(2, 3, requires_grad=True), torch.arange(6).view(2, 3)
    scores = sparse_scores(weights, ids, torch.ones(4, 3), torch.arange(12).view(4, 3))
    scores.sum().backward()
    assert scores.tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("at_once", [1, 50, 10**6])
def test_late_interaction_is_the_same_in_any_portions(at_once):
    generator = torch.Generator().manual_seed(0)
    queries, passages = torch.randn(3, 4, 8, generator=generator), torch.randn(5, 6, 8, generator=generator)
    kept = torch.rand(3, 4, generator=generator) > 0.3, torch.rand(5, 6, generator=generator) > 0.3
    queries.requires_grad_()
    portions = multi_vector_scores(queries, kept[0], passages, kept[1], at_once)
    for i in range(3):
        for j in range(5):
            best = (queries[i][kept[0][i]] @ passages[j][kept[1][j]].T).amax(dim=1)
            assert portions[i, j].item() == pytest.approx(best.mean().item(), abs=1e-6)


def test_a_text_without_vectors_scores_zero_and_spoils_no_gradient():
    vectors = torch.randn(2, 3, 4, requires_grad=True)
    kept = torch.tensor([[True, True, False], [False, False, False]])
    scores = multi_vector_scores(vectors, kept, vectors, kept)
    scores.sum().backward()
    assert scores[1].tolist() == [0, 0]
    assert scores[0, 1] == 0
    assert torch.isfinite(vectors.grad).all()
    assert not vectors.grad[1].any()


def test_padding_neither_scores_nor_learns():
    vectors = torch.randn(2, 3, 4)
    kept = torch.tensor([[True, True, False], [True, True, True]])
    padded = torch.cat([vectors, 99 * torch.ones(2, 2, 4)], dim=1).requires_grad_()
    longer = torch.cat([kept, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    scores = multi_vector_scores(padded, longer, padded, longer)
    scores.sum().backward()
    torch.testing.assert_close(scores, multi_vector_scores(vectors, kept, vectors, kept))
    assert not padded.grad[~longer].any()


def test_a_mode_that_was_not_encoded_is_named(both):
    with pytest.raises(MissingMode, match="encode that mode too"):
        training_scores.score_mode("sparse", both[0]._replace(sparse=None), both[1])


def test_vectors_of_other_widths_are_refused():
    with pytest.raises(WrongDimension, match="queries are 3 wide and passages 4"):
        training_scores.dense_scores(torch.zeros(1, 3), torch.zeros(1, 4))


def test_directions_compare_each_query_and_its_positive_with_everything(both):
    queries, passages = both
    layout = Layout.of(torch.tensor([[0, 6], [3, -1]]), passages=7)
    some = queries.take(torch.tensor([0, 1]))
    ways = training_scores.directions("dense", some, passages, layout)
    torch.testing.assert_close(ways.query_passage, some.dense @ passages.dense.T)
    torch.testing.assert_close(ways.query_query, some.dense @ some.dense.T)
    torch.testing.assert_close(ways.passage_query, passages.dense[[0, 3]] @ some.dense.T)
    torch.testing.assert_close(ways.passage_passage, passages.dense[[0, 3]] @ passages.dense.T)
    assert layout.own().tolist() == [[True] + [False] * 5 + [True], [False] * 3 + [True] + [False] * 3]

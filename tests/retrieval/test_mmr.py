"""Maximal marginal relevance against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from m3_integrations import Passage, Retriever, ingest
from m3_integrations.retrieval.mmr import maximal_marginal_relevance, mmr_rerank

PASSAGES = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
RELEVANCE = np.array([0.9, 0.8, 0.3], np.float32)


def test_a_different_passage_precedes_a_duplicate():
    chosen = maximal_marginal_relevance(RELEVANCE, PASSAGES, 3)
    assert [row for row, _ in chosen] == [0, 2, 1]
    added = [0.5 * 0.9, 0.5 * 0.3 - 0.5 * 0, 0.5 * 0.8 - 0.5 * 1]
    assert [each for _, each in chosen] == pytest.approx(added)


def test_lambda_1_is_relevance_alone_and_0_diversity_alone():
    assert [row for row, _ in maximal_marginal_relevance(RELEVANCE, PASSAGES, 3, 1)] == [0, 1, 2]
    assert [row for row, _ in maximal_marginal_relevance(RELEVANCE, PASSAGES, 2, 0)] == [0, 2]


def test_k_above_the_number_of_passages_returns_all():
    assert len(maximal_marginal_relevance(RELEVANCE, PASSAGES, 9)) == 3
    assert maximal_marginal_relevance(RELEVANCE[:0], PASSAGES[:0], 2) == []


@given(arrays(np.float32, (6, 3), elements=st.floats(-1, 1, width=32)), st.floats(0, 1))
def test_each_selection_is_the_best_remaining_and_marginal_relevance_never_rises(passages, lambda_mult):
    relevance = passages @ np.array([1, 0, 0], np.float32)
    chosen = maximal_marginal_relevance(relevance, passages, 6, lambda_mult)
    rows = [row for row, _ in chosen]
    assert sorted(rows) == list(range(6))
    for i, (_, added) in enumerate(chosen):
        overlaps = [max((float(passages[row] @ passages[j]) for j in rows[:i]), default=0.0) for row in range(6)]
        left = [lambda_mult * relevance[row] - (1 - lambda_mult) * overlaps[row] for row in rows[i:]]
        assert added == pytest.approx(max(left), abs=1e-5)
        assert i < 2 or added <= chosen[i - 1][1] + 1e-5


@pytest.mark.parametrize(
    ("k", "lambda_mult", "message"), [(0, 0.5, "k must be at least 1"), (1, 1.5, "between 0 and 1")]
)
def test_invalid_arguments_raise(k, lambda_mult, message):
    with pytest.raises(ValueError, match=message):
        maximal_marginal_relevance(RELEVANCE, PASSAGES, k, lambda_mult)


def test_matches_are_compared_by_their_dense_vectors(index, hash_encoder):
    ingest(hash_encoder, index, [Passage("a", "red cat"), Passage("b", "red cat"), Passage("c", "blue dog")])
    matches = Retriever(hash_encoder, index).retrieve("red cat", 3)
    assert [match.passage.id for match in matches] == ["a", "b", "c"]
    chosen = mmr_rerank(index, matches, 2, lambda_mult=0.1)
    assert [match.passage for match in chosen] == [matches[0].passage, matches[2].passage]
    assert chosen[0].score == pytest.approx(0.1 * matches[0].score)
    assert all(sum(match.by_mode.values()) == match.score for match in chosen)
    assert mmr_rerank(index, [], 2) == []

"""Maximal marginal relevance against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from m3_integrations import Passage, Retriever, ingest
from m3_integrations.retrieval.diversity import diversify, maximal_marginal_relevance

PASSAGES = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
RELEVANCE = np.array([0.9, 0.8, 0.3], np.float32)


def test_a_repetition_gives_way_to_something_else():
    chosen = maximal_marginal_relevance(RELEVANCE, PASSAGES, 3)
    assert [row for row, _ in chosen] == [0, 2, 1]
    added = [0.5 * 0.9, 0.5 * 0.3 - 0.5 * 0, 0.5 * 0.8 - 0.5 * 1]
    assert [each for _, each in chosen] == pytest.approx(added)


def test_relevance_alone_and_variety_alone():
    assert [row for row, _ in maximal_marginal_relevance(RELEVANCE, PASSAGES, 3, 1)] == [0, 1, 2]
    assert [row for row, _ in maximal_marginal_relevance(RELEVANCE, PASSAGES, 2, 0)] == [0, 2]


def test_there_are_no_more_than_there_are():
    assert len(maximal_marginal_relevance(RELEVANCE, PASSAGES, 9)) == 3
    assert maximal_marginal_relevance(RELEVANCE[:0], PASSAGES[:0], 2) == []


@given(arrays(np.float32, (6, 3), elements=st.floats(-1, 1, width=32)), st.floats(0, 1))
def test_each_choice_is_the_best_that_was_left_and_adds_no_more_than_the_second(passages, balance):
    relevance = passages @ np.array([1, 0, 0], np.float32)
    chosen = maximal_marginal_relevance(relevance, passages, 6, balance)
    rows = [row for row, _ in chosen]
    assert sorted(rows) == list(range(6))
    for i, (_, added) in enumerate(chosen):
        overlaps = [max((float(passages[row] @ passages[j]) for j in rows[:i]), default=0.0) for row in range(6)]
        left = [balance * relevance[row] - (1 - balance) * overlaps[row] for row in rows[i:]]
        assert added == pytest.approx(max(left), abs=1e-5)
        assert i < 2 or added <= chosen[i - 1][1] + 1e-5


@pytest.mark.parametrize(("k", "balance", "said"), [(0, 0.5, "k must be at least 1"), (1, 1.5, "between 0 and 1")])
def test_what_means_nothing_is_refused(k, balance, said):
    with pytest.raises(ValueError, match=said):
        maximal_marginal_relevance(RELEVANCE, PASSAGES, k, balance)


def test_matches_are_compared_by_their_dense_vectors(index, hash_encoder):
    ingest(hash_encoder, index, [Passage("a", "red cat"), Passage("b", "red cat"), Passage("c", "blue dog")])
    matches = Retriever(hash_encoder, index).retrieve("red cat", 3)
    assert [match.passage.id for match in matches] == ["a", "b", "c"]
    chosen = diversify(index, matches, 2, balance=0.1)
    assert [match.passage for match in chosen] == [matches[0].passage, matches[2].passage]
    assert chosen[0].score == pytest.approx(0.1 * matches[0].score)
    assert all(sum(match.by_mode.values()) == match.score for match in chosen)
    assert diversify(index, [], 2) == []

"""Batches of like length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from m3_integrations.models.batching import Batches


def taken(batches: Batches) -> list[list[int]]:
    every = []
    while batches.remaining:
        every.append(batches.peek().tolist())
        batches.pop()
    return every


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100), st.booleans())
def test_every_sequence_comes_once_and_each_batch_keeps_its_bound(lengths, tokens, padded):
    batches = taken(Batches(lengths, tokens, padded=padded))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        some = [lengths[i] for i in batch]
        assert len(batch) == 1 or (max(some) * len(some) if padded else sum(some)) <= tokens


def test_the_longest_come_first():
    batches = taken(Batches([3, 9, 5, 9], 18))
    assert batches == [[1, 3], [2, 0]]


def test_texts_in_a_row_count_by_their_own_length():
    assert taken(Batches([10, 6, 4, 9, 1], 20, padded=False)) == [[0, 3], [1, 2, 4]]
    assert taken(Batches([10, 6, 4, 9, 1], 20)) == [[0, 3], [1, 2, 4]]
    assert taken(Batches([10, 6, 4], 20, padded=False)) == [[0, 1, 2]]
    assert taken(Batches([10, 6, 4], 20)) == [[0, 1], [2]]


@pytest.mark.parametrize("padded", [False, True])
def test_halving_holds_for_the_batches_that_follow(padded):
    batches = Batches([4] * 8, 16, padded=padded)
    batches.halve()
    assert np.array_equal([len(batch) for batch in taken(batches)], [2, 2, 2, 2])


def test_a_batch_holds_at_least_one_token():
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        Batches([1], 0)

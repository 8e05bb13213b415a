"""Putting the answers of several modes together, in numbers that a reader can add up."""

from __future__ import annotations

import pytest

from m3_integrations.core.scoring import reciprocal_rank_fusion, weighted_sum


def test_the_parts_of_a_weighted_sum_carry_their_weights_and_add_up():
    total, parts = weighted_sum({"dense": 0.5, "sparse": 2.0, "multi_vector": 0.25}, {"dense": 1, "sparse": 0.3})
    assert parts == {"dense": 1 * 0.5, "sparse": 0.3 * 2.0}
    assert total == 1 * 0.5 + 0.3 * 2.0


def test_reciprocal_ranks_are_summed_over_the_rankings():
    assert reciprocal_rank_fusion([["a", "b", "c"], ["c", "a"], ["d"]]) == [
        ("a", 1 / (60 + 1) + 1 / (60 + 2)),
        ("c", 1 / (60 + 3) + 1 / (60 + 1)),
        ("d", 1 / (60 + 1)),
        ("b", 1 / (60 + 2)),
    ]


def test_a_small_k_rewards_the_first_rank():
    assert reciprocal_rank_fusion([["a", "b"], ["b", "a"], ["b"]], k=0) == [
        ("b", 1 / 2 + 1 / 1 + 1 / 1),
        ("a", 1 / 1 + 1 / 2),
    ]


def test_equal_fused_scores_come_by_id():
    assert [id for id, _ in reciprocal_rank_fusion([["b", "a"], ["a", "b"], ["c"]])] == ["a", "b", "c"]


def test_fusing_nothing_gives_nothing():
    assert reciprocal_rank_fusion([]) == reciprocal_rank_fusion([[], []]) == []


def test_a_ranking_that_repeats_an_id_is_refused():
    with pytest.raises(ValueError, match="a ranking repeats an id"):
        reciprocal_rank_fusion([["a", "a"]])


def test_a_negative_k_is_refused():
    with pytest.raises(ValueError, match="k must be at least 0, got -1"):
        reciprocal_rank_fusion([["a"]], k=-1)

"""Every text is scored exactly, and the best come first."""

from __future__ import annotations

import pytest

from m3_integrations import score
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import MissingMode
from m3_integrations.retrieval.reranking import rerank
from m3_integrations.testing import HashEncoder

TEXTS = ["green house", "blue bridge", "bridge", "", "blue bridge"]
WEIGHTS = {"dense": 0.5, "sparse": 0.25, "multi_vector": 2.0}


def test_scores_equal_those_of_score(hash_encoder):
    ranked = rerank(hash_encoder, "blue bridge", TEXTS, WEIGHTS)
    expected = score(hash_encoder.encode_queries(["blue bridge"]), hash_encoder.encode_passages(TEXTS), WEIGHTS)[0]
    assert {each.position: each.score for each in ranked} == pytest.approx(dict(enumerate(expected)), abs=1e-6)


def test_results_are_best_first_with_ties_by_position(hash_encoder):
    ranked = rerank(hash_encoder, "blue bridge", TEXTS, WEIGHTS)
    assert [each.position for each in ranked][:3] == [1, 4, 2]
    assert sorted(each.position for each in ranked) == [0, 1, 2, 3, 4]


def test_by_mode_adds_up_to_the_score(hash_encoder):
    for each in rerank(hash_encoder, "blue bridge", TEXTS, WEIGHTS):
        assert each.by_mode.keys() == WEIGHTS.keys()
        assert sum(each.by_mode.values()) == each.score


@pytest.mark.parametrize("mode", MODES)
def test_one_mode_alone_can_rank(hash_encoder, mode):
    ranked = rerank(hash_encoder, "blue bridge", TEXTS, {mode: 1.0})
    assert all(each.by_mode == {mode: each.score} for each in ranked)


def test_the_default_weights_are_the_encoders():
    encoder = HashEncoder(weights={"dense": 0.0, "sparse": 2.0})
    assert rerank(encoder, "bridge", TEXTS) == rerank(encoder, "bridge", TEXTS, {"sparse": 2.0})


def test_no_texts_give_no_results(hash_encoder):
    assert rerank(hash_encoder, "bridge", []) == []


def test_a_weighted_mode_that_the_encoder_lacks_raises():
    with pytest.raises(MissingMode, match="'sparse' is not available"):
        rerank(HashEncoder(modes=("dense",)), "bridge", TEXTS, {"sparse": 1.0})


def test_weights_of_0_raise_even_without_texts(hash_encoder):
    with pytest.raises(MissingMode, match="modes is empty"):
        rerank(hash_encoder, "bridge", [], {"dense": 0.0})

"""Spread pulls against the softmax over all, and the cases at its ends."""

from __future__ import annotations

import numpy as np
import pytest

from m3_integrations.nudging.method.closed_form import unit as unit_rows
from m3_integrations.nudging.method.propagation import NearestPulled, PropagatedPulls, Propagation
from tests.nudging.nudging_problems import unit


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    passages = unit(rng.standard_normal((40, 8))).astype(np.float32)
    return passages, np.arange(3, 30, 2), rng.standard_normal((14, 8)).astype(np.float32)


def spread_pulls(world, spread, nearest):
    passages, pulled, pulls = world
    known = PropagatedPulls.of(pulled, pulls, NearestPulled.of(passages, passages[pulled], nearest=nearest), spread)
    return known.take(np.arange(len(passages)))


def softmax_mean(world, temperature):
    passages, pulled, pulls = world
    weights = np.exp(passages @ passages[pulled].T / temperature)
    return weights / weights.sum(axis=1, keepdims=True) @ unit_rows(pulls)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 3.0])
def test_with_all_neighbours_near_it_is_the_softmax_weighted_mean_of_their_pulls(world, temperature):
    passages, pulled, _ = world
    alone = np.setdiff1d(np.arange(len(passages)), pulled)
    spread = spread_pulls(world, Propagation(temperature, self_weight=1.0), nearest=14)
    np.testing.assert_allclose(spread[alone], softmax_mean(world, temperature)[alone], atol=1e-5)


def test_far_neighbours_count_as_their_mean(world):
    # Hot enough, all weigh alike: then the mean of the far is all there is to know of them.
    spread = spread_pulls(world, Propagation(1e3, self_weight=0.0), nearest=3)
    np.testing.assert_allclose(spread, softmax_mean(world, 1e3), atol=1e-4)


def test_the_nearest_alone_is_followed_at_a_low_temperature(world):
    passages, pulled, pulls = world
    spread = spread_pulls(world, Propagation(1e-3, self_weight=1.0), nearest=5)
    nearest = (passages @ passages[pulled].T).argmax(axis=1)
    np.testing.assert_allclose(spread[0], unit_rows(pulls)[nearest[0]], atol=1e-3)


def test_a_pulled_passage_keeps_its_own_share(world):
    _, pulled, pulls = world
    kept = spread_pulls(world, Propagation(0.1, self_weight=0.4), nearest=14)[pulled]
    np.testing.assert_allclose(kept, 0.4 * unit_rows(pulls) + 0.6 * softmax_mean(world, 0.1)[pulled], atol=1e-5)
    own = spread_pulls(world, Propagation(0.1, self_weight=1.0), nearest=14)[pulled]
    np.testing.assert_allclose(own, unit_rows(pulls), atol=1e-6)


def test_one_pulled_passage_is_followed_by_all(world):
    passages, pulled, pulls = world
    spread = spread_pulls((passages, pulled[:1], pulls[:1]), Propagation(0.1, self_weight=1.0), nearest=14)
    np.testing.assert_allclose(spread, np.repeat(unit_rows(pulls[:1]), len(passages), axis=0), atol=1e-6)


def test_an_approximate_search_finds_nearly_the_same():
    rng = np.random.default_rng(1)
    passages = unit(rng.standard_normal((3000, 8))).astype(np.float32)
    pulled = np.arange(0, 3000, 2)
    exact = NearestPulled.of(passages, passages[pulled])
    near = NearestPulled.of(passages, passages[pulled], exact=0)
    found = [len(set(a) & set(b)) for a, b in zip(exact.places.tolist(), near.places.tolist(), strict=True)]
    assert np.mean(found) > 0.8 * exact.places.shape[1]


def test_a_part_of_the_passages_is_pulled_as_it_is_among_all(world):
    passages, pulled, pulls = world
    part, spread = passages[10:21], Propagation(0.1, self_weight=0.4)
    alone = PropagatedPulls.of(pulled - 10, pulls, NearestPulled.of(part, passages[pulled], len(passages)), spread)
    np.testing.assert_array_equal(alone.take(np.arange(11)), spread_pulls(world, spread, nearest=16)[10:21])

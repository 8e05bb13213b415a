"""Intervals of paired gains."""

from __future__ import annotations

import numpy as np
import pytest

from m3_integrations.evaluation import bootstrap_interval


def test_equal_gains_have_an_interval_without_width():
    assert bootstrap_interval(np.full(20, 0.25)) == (0.25, 0.25)


def test_no_gains_have_no_interval():
    assert bootstrap_interval(np.empty(0)) == (0.0, 0.0)


def test_the_interval_is_that_of_the_normal_approximation_for_many_gains():
    gains = np.random.default_rng(7).normal(0.1, 0.5, 2000)
    half = 1.96 * gains.std() / np.sqrt(len(gains))
    low, high = bootstrap_interval(gains)
    assert (low, high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.1 * half)

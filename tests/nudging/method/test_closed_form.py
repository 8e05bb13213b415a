"""The closed forms against their definitions, on the inputs that break naive ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from m3_integrations.nudging.judged import Judged
from m3_integrations.nudging.method.closed_form import pull, rotate, translate

EAST, NORTH = np.eye(2)

coordinates = st.floats(-1, 1, width=32)


@st.composite
def problems(draw):
    """Unit passages and arbitrary pulls of the same shape, in either precision."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    n, dim = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    raw = draw(arrays(np.float64, (2, n, dim), elements=coordinates))
    lengths = np.linalg.norm(raw[0], axis=1, keepdims=True)
    passages = np.where(lengths > 1e-3, raw[0] / np.maximum(lengths, 1e-3), np.eye(dim)[[0] * n])
    return passages.astype(dtype), raw[1].astype(dtype)


def chord(gamma):
    return np.sqrt(gamma)


@given(problems(), st.floats(0, 4))
def test_a_turn_keeps_length_and_stays_within_its_chord(problem, gamma):
    passages, pulls = problem
    turned = rotate(passages, pulls, gamma)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), 1, atol=1e-6)
    assert np.all(np.linalg.norm(turned - passages, axis=1) <= chord(gamma) + 1e-6)
    assert turned.dtype == passages.dtype


@given(problems(), st.floats(0, 4))
def test_no_other_point_within_the_chord_is_nearer_to_the_pull(problem, gamma):
    passages, pulls = (each.astype(np.float64) for each in problem)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)  # of length 1 in float64 too
    turned = rotate(passages, pulls, gamma)
    others = np.random.default_rng(0).standard_normal((400, passages.shape[1]))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    for passage, towards, answer in zip(passages, pulls, turned, strict=True):
        allowed = others[((others - passage) ** 2).sum(axis=1) <= gamma]
        assert np.all(allowed @ towards <= answer @ towards + 1e-9)


def test_an_optimiser_finds_what_the_turn_says():
    rng = np.random.default_rng(1)
    for gamma in (0.05, 0.4, 1.5):
        passage, towards = rng.standard_normal((2, 4))
        passage /= np.linalg.norm(passage)
        found = scipy.optimize.minimize(
            lambda v, g=towards: -(g @ v),
            passage,
            constraints=[
                {"type": "eq", "fun": lambda v: v @ v - 1},
                {"type": "ineq", "fun": lambda v, d=passage, g=gamma: g - (v - d) @ (v - d)},
            ],
        )
        answer = rotate(passage[None], towards[None], gamma)[0]
        assert answer @ towards == pytest.approx(found.x @ towards, abs=1e-5)


@given(problems(), st.floats(0, 10))
def test_a_push_moves_each_pulled_passage_by_gamma_along_its_pull(problem, gamma):
    passages, pulls = problem
    moved = translate(passages, pulls, gamma) - passages
    pulls = pulls.astype(np.float64)
    pulled = np.linalg.norm(pulls, axis=1) > 0
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), np.where(pulled, gamma, 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.einsum("nd,nd->n", moved, pulls), gamma * np.linalg.norm(pulls, axis=1), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_passages_without_a_way_to_go_stay_to_the_bit(dtype):
    rng = np.random.default_rng(2)
    passages = rng.standard_normal((3, 384)).astype(dtype)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    pulls = np.stack([np.zeros_like(passages[0]), passages[1], 7 * passages[2]])
    np.testing.assert_array_equal(rotate(passages, pulls, 1.0), passages)
    np.testing.assert_array_equal(translate(passages, np.zeros_like(passages), 1.0), passages)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_pull_nearly_along_its_passage_gives_no_nan(dtype):
    passages = np.full((1, 384), 384**-0.5, dtype)
    pulls = passages.copy()
    pulls[0, 0] += np.finfo(dtype).eps
    np.testing.assert_allclose(rotate(passages, pulls, 0.3), passages, atol=1e-6)


def test_an_opposite_pull_turns_by_the_whole_chord_and_always_the_same_way():
    turned = rotate(EAST[None], -EAST[None], 2.0)
    np.testing.assert_allclose(np.abs(turned), [NORTH], atol=1e-12)
    np.testing.assert_array_equal(turned, rotate(EAST[None], -3 * EAST[None], 2.0))
    np.testing.assert_allclose(rotate(EAST[None], -EAST[None], 4.0), [-EAST], atol=1e-12)


def test_a_pull_with_a_negative_cosine_is_followed():
    back = np.array([[-1.0, 1.0]])
    assert rotate(EAST[None], back, 0.5)[0] @ EAST == pytest.approx(1 - 0.5 / 2)
    np.testing.assert_allclose(rotate(EAST[None], back, 4.0), back / np.sqrt(2))


def test_a_turn_ends_at_its_pull():
    np.testing.assert_allclose(rotate(EAST[None], NORTH[None], 2.0), [NORTH], atol=1e-12)
    np.testing.assert_allclose(rotate(EAST[None], NORTH[None], 3.0), [NORTH], atol=1e-12)


def test_tiny_and_huge_pulls_point_as_well_as_others():
    for scale in (1e-30, 1e30):
        pulls = (scale * NORTH[None]).astype(np.float32)
        np.testing.assert_allclose(translate(EAST[None].astype(np.float32), pulls, 1.0), [EAST + NORTH])


def test_a_pull_is_the_sum_of_its_queries_by_weight_and_grade():
    judged = Judged.of(np.eye(3), [{0: 1.0}, {0: 2.0, 2: 1.0}, {}], weights=[3.0, 1.0, 5.0])
    expected = [[3 * 1.0, 1 * 2.0, 0], [0, 0, 0], [0, 1 * 1.0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(pull(judged, 4), expected)


def test_gammas_out_of_range_are_refused():
    for gamma in (-0.1, 4.1, float("nan")):
        with pytest.raises(ValueError, match="0 <= gamma <= 4"):
            rotate(EAST[None], NORTH[None], gamma)
    for gamma in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="at least 0"):
            translate(EAST[None], NORTH[None], gamma)


def test_what_cannot_be_moved_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="divide each row by its length"):
        rotate(2 * EAST[None], NORTH[None], 0.1)
    with pytest.raises(ValueError, match="of one shape"):
        rotate(EAST[None], NORTH[None, :1], 0.1)
    with pytest.raises(ValueError, match="passages hold NaN or infinity, first in row 1"):
        translate(np.array([EAST, [np.nan, 0]]), np.array([EAST, NORTH]), 0.1)
    with pytest.raises(ValueError, match="pulls hold NaN or infinity, first in row 0"):
        translate(EAST[None], np.array([[np.inf, 0]]), 0.1)

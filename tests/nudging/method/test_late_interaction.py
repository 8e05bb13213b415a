"""NUDGE for late interaction: who pulls what, and what the ladders say is what the moved vectors score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, strategies as st

from m3_integrations.core.encoded import Encoded, MultiVectors
from m3_integrations.core.scoring import multi_vector_scores, score_mode
from m3_integrations.nudging.api import nudge
from m3_integrations.nudging.corpus import EncodedCorpus
from m3_integrations.nudging.judged import Judged
from m3_integrations.nudging.method.late_interaction import MaxSimAlignment, MovedVectors, rotate_matched
from m3_integrations.nudging.method.propagation import Propagation
from m3_integrations.nudging.method.trajectories import NudgeM
from m3_integrations.nudging.method.variants import Variant
from m3_integrations.nudging.optimize.hybrid import apply_updates, dense_move, multi_vector_move, sparse_move
from m3_integrations.nudging.selection.cross_validation import SPLITS, splits
from m3_integrations.nudging.selection.folds import CrossFitFolds
from m3_integrations.nudging.selection.score_grids import (
    AnalyticScores,
    Pairs,
    dense_curves,
    multi_vector_grids,
    sparse_curves,
    sparse_pulls,
)
from tests.nudging.nudging_problems import encoded_problem, unit

AXES = np.eye(3, dtype=np.float32)
NO_MEAN = np.zeros(3)


def test_each_vector_of_a_query_pulls_the_vector_that_it_matches():
    query = unit(np.array([[0.9, 0.1, 0], [0.8, 0, 0.2], [0, 0.1, 0.9]])).astype(np.float32)
    places, pulls = MaxSimAlignment.of(AXES, [query], [2.0], NO_MEAN).pulls()
    assert places.tolist() == [0, 2]  # nothing matches the second
    np.testing.assert_allclose(pulls, [2 * (query[0] + query[1]), 2 * query[2]], rtol=1e-6)


def test_a_centred_query_pulls_by_what_it_does_not_share_with_the_others():
    query = np.array([[1.0, 0, 0]], np.float32)
    mean = np.array([0.5, 0.5, 0])
    assert MaxSimAlignment.of(AXES, [query], [1.0], mean).pulls(center=0.5)[1].tolist() == [[0.75, -0.25, 0]]


def test_only_matched_vectors_turn_and_by_the_rule_of_nudge_n():
    query = unit(np.array([[0.6, 0.8, 0]], np.float64)).astype(np.float32)
    matched = MaxSimAlignment.of(AXES[[0, 2]], [query], [1.0], NO_MEAN).pulls()
    gamma = 0.1
    angle = math.acos(1 - gamma / 2)
    np.testing.assert_allclose(
        rotate_matched(AXES[[0, 2]], matched, gamma), [[math.cos(angle), math.sin(angle), 0]], atol=1e-6
    )
    np.testing.assert_allclose(rotate_matched(AXES[[0, 2]], matched, 4.0), query, atol=1e-6)  # it arrives, and stops


def test_moved_vectors_go_where_they_belong_in_any_order_of_passages():
    passages = MultiVectors.of([AXES, AXES[:1], AXES[:2]])
    moved = MovedVectors.of([(1, np.array([0]), AXES[2:]), (2, np.array([1]), AXES[2:])], 3)
    put_back = moved.put_into(passages.take([2, 0, 1]), np.array([2, 0, 1]))
    assert [each.tolist() for each in put_back] == [AXES[[0, 2]].tolist(), AXES.tolist(), AXES[2:].tolist()]
    assert moved.among(np.array([0, 2])).rows.tolist() == [2]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("center", [0.0, 0.7])
def test_the_late_ladder_is_the_score_of_the_turned_passages(seed, center):
    passages, train, validation = encoded_problem(seed)
    corpus, gammas = EncodedCorpus(passages), np.array([0.0, 0.02, 0.3])
    grid = multi_vector_grids(corpus, _alone(train, validation), _everyone(passages, validation), gammas, [center])[0]
    for gamma in gammas:
        moved = apply_updates(passages, {"multi_vector": multi_vector_move(corpus, train, gamma, center)})
        exact = multi_vector_scores(validation.in_modes.multi_vector, moved.multi_vector)
        np.testing.assert_allclose(grid.at(gamma).reshape(exact.shape), exact, atol=2e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("center", [0.0, 1.0])
def test_the_sparse_ladder_is_the_score_of_the_pushed_passages(seed, center):
    passages, train, validation = encoded_problem(seed)
    corpus = EncodedCorpus(passages)
    (curves,) = sparse_curves(corpus, _alone(train, validation), _everyone(passages, validation), [center])
    for gamma in (0.0, 0.5, 3.0):
        moved = apply_updates(passages, {"sparse": sparse_move(corpus, train, gamma, center)})
        exact = score_mode("sparse", validation.in_modes, moved)
        np.testing.assert_allclose(NudgeM().level(gamma, curves).reshape(exact.shape), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["nudge-n", "nudge-m"])
@pytest.mark.parametrize("spread", [None, Propagation(0.05, 0.4)])
def test_the_dense_ladder_is_the_score_of_the_moved_passages(method, spread):
    passages, train, validation = encoded_problem(0)
    corpus, plan = EncodedCorpus(passages), Variant(method, spread, 0.5)
    curves = dense_curves(passages.dense, _alone(train, validation), _everyone(passages, validation), [plan])[0]
    grid = AnalyticScores(curves, plan.trajectory, np.zeros(1))
    for gamma in (0.0, 0.1, 0.6):
        moved = apply_updates(passages, {"dense": dense_move(corpus, train, plan, gamma)})
        exact = score_mode("dense", validation.in_modes, moved)
        np.testing.assert_allclose(grid.at(gamma).reshape(exact.shape), exact, atol=2e-6)


def test_each_number_is_left_out_once_in_every_split_and_never_beside_itself():
    left_out = np.zeros(23, int)
    for held, rest in splits(23):
        assert sorted([*held, *rest]) == list(range(23))
        left_out[held] += 1
    assert (left_out == SPLITS).all()
    assert list(splits(1)) == []  # there is nobody else to choose


def test_one_question_proves_nothing():
    passages, train, validation = encoded_problem(0)
    nudged = nudge(passages, train.take([0]), validation.take([0]))
    assert not nudged.moved
    assert (nudged.choice.gain, nudged.choice.error) == (0, 0)


def test_a_panel_is_not_pulled_by_its_own_questions():
    passages, train, _ = encoded_problem(1)
    folds, evaluated_rows = CrossFitFolds.by_group(train, np.arange(len(train)) % 3)
    assert sorted(evaluated_rows.tolist()) == list(range(len(train)))
    corpus, gamma = EncodedCorpus(passages), 0.2
    pairs = _everyone(passages, folds.eval_queries)
    grid = multi_vector_grids(corpus, folds, pairs, np.array([0.0, gamma]), [0.0])[0].at(gamma)
    for fold in range(3):
        rest = train.take(np.flatnonzero(np.arange(len(train)) % 3 != fold))
        moved = apply_updates(passages, {"multi_vector": multi_vector_move(corpus, rest, gamma, 0.0)})
        evaluated = folds.eval_in(fold)
        exact = multi_vector_scores(folds.eval_queries.take(evaluated).in_modes.multi_vector, moved.multi_vector)
        np.testing.assert_allclose(grid.reshape(-1, len(passages))[evaluated], exact, atol=2e-6)


def test_a_sparse_pull_keeps_its_strongest_terms_and_is_never_negative():
    passages, train, _ = encoded_problem(2)
    rows, pulls = sparse_pulls(train)
    assert (pulls.data > 0).all()
    np.testing.assert_allclose(np.sqrt(pulls.multiply(pulls).sum(axis=1)), 1, rtol=1e-5)
    pushed = sparse_move(EncodedCorpus(passages), train, 0.5)
    assert pushed.rows.tolist() == rows.tolist()
    assert (pushed.values.data >= 0).all()


def test_a_term_that_many_questions_say_pulls_less_once_pulls_are_centred():
    sparse = scipy.sparse.csr_array(np.array([[1, 1, 0], [1, 0, 1]], np.float32))  # the first term is in both
    asked = Judged.of(Encoded(sparse=sparse), [{0: 1.0}, {1: 1.0}])
    rows, pulls = sparse_pulls(asked, center=1.0)
    assert rows.tolist() == [0, 1]
    both, own = 1 / 3, 1 / 2
    expected = np.array([[both, own, 0], [both, 0, own]]) / np.hypot(both, own)
    np.testing.assert_allclose(pulls.toarray(), expected, rtol=1e-6)


@given(st.floats(0, 1.2))
def test_between_two_rungs_a_score_lies_between_theirs(angle):
    passages, train, validation = encoded_problem(3)
    rungs = np.array([4 * math.sin(each / 2) ** 2 for each in (0, 0.4, 0.8, 1.2)])
    grid = multi_vector_grids(
        EncodedCorpus(passages), _alone(train, validation), _everyone(passages, validation), rungs, [0.0]
    )[0]
    at = grid.at(4 * math.sin(angle / 2) ** 2)
    above = min(3, int(angle / 0.4) + 1)
    low, high = grid.table[above - 1], grid.table[above]
    assert (at >= np.minimum(low, high) - 1e-6).all()
    assert (at <= np.maximum(low, high) + 1e-6).all()


def _alone(train, validation):
    return CrossFitFolds(train, validation, np.zeros(len(validation), np.int64), [np.empty(0, np.int64)])


def _everyone(passages, eval_queries):
    n = len(passages)
    return Pairs(np.repeat(np.arange(len(eval_queries)), n), np.tile(np.arange(n), len(eval_queries)))

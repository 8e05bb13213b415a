"""The exact gamma against brute force: every metric, at every gamma, for both methods."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from ir_measures import RR, P, R, Success, nDCG

from m3_integrations.nudging.judged import Judged
from m3_integrations.nudging.method.closed_form import pull, pulls_of_rows, rotate, translate
from m3_integrations.nudging.method.pulls import KnownPulls
from m3_integrations.nudging.method.trajectories import NudgeM, NudgeN
from m3_integrations.nudging.selection.gamma_sweep import Sweep, sweep
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.running_top_k import RunningTopK, numbered, unmoved_blocks
from tests.nudging.nudging_problems import metric_by_hand, random_problem

METRICS = ["ndcg@3", "recall@2", "mrr@4", "precision@3", "accuracy@1", "ndcg@100"]
TRAJECTORIES = {"nudge-n": (NudgeN(), rotate), "nudge-m": (NudgeM(), translate)}


def swept(passages, train, validation, background, metric, method):
    rows, pulls = pulls_of_rows(train)
    metric, queries = RankMetric.of(metric), validation.queries
    still = RunningTopK.empty(len(queries), metric.k).update(unmoved_blocks(passages, rows), queries)
    still = still.update(numbered([background], len(passages), queries.shape[1]), queries)
    return sweep(passages, KnownPulls(rows, pulls), validation, metric, TRAJECTORIES[method][0], still)


def by_hand(passages, train, validation, background, metric, method, gamma):
    moved = TRAJECTORIES[method][1](passages, pull(train, len(passages)), gamma)
    return metric_by_hand(metric, validation, np.concatenate([moved, background]))


@pytest.mark.parametrize("method", ["nudge-n", "nudge-m"])
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    passages=st.integers(3, 40),
    background=st.integers(0, 20),
    dim=st.integers(2, 8),
    gamma=st.floats(1e-3, 3.9),
)
def test_the_metric_is_right_at_every_gamma(method, metric, seed, passages, background, dim, gamma):
    problem = random_problem(seed, passages=passages, background=background, dim=dim)
    steps = swept(*problem, metric, method)
    assert steps.before == pytest.approx(by_hand(*problem, metric, method, 0.0))
    if not len(steps.gammas) or np.abs(steps.gammas - gamma).min() > 1e-9:
        assert steps.level(gamma) == pytest.approx(by_hand(*problem, metric, method, gamma))


@pytest.mark.parametrize("method", ["nudge-n", "nudge-m"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_gamma_of_a_fine_grid_beats_the_exact_one(method, metric, seed):
    problem = random_problem(seed)
    gamma, best = swept(*problem, metric, method).best()
    assert best == pytest.approx(by_hand(*problem, metric, method, gamma))
    grid = np.linspace(0, 3.9, 60) ** 2 / 3.9
    assert max(by_hand(*problem, metric, method, each) for each in grid) <= best + 1e-9


def test_the_answer_is_the_middle_of_the_first_best_interval():
    steps = Sweep(np.zeros(1), np.ones(1), np.array([0.2, 0.4, 0.6]), np.zeros(3, int), np.array([1.0, -1, 1]), 1.0)
    assert steps.best() == (pytest.approx((0.2 + 0.4) / 2), 1.0)


def test_the_answer_is_zero_where_nothing_beats_it():
    steps = Sweep(np.ones(1), np.ones(1), np.array([0.2, 0.4]), np.zeros(2, int), np.array([-1.0, 1.0]), 1.0)
    assert steps.best() == (0.0, 1.0)


def test_an_interval_without_an_end_has_a_middle():
    steps = Sweep(np.zeros(1), np.ones(1), np.array([0.5]), np.zeros(1, int), np.ones(1), np.inf)
    assert steps.best() == (1 + 2 * 0.5, 1.0)


def test_an_interval_too_narrow_for_float32_is_passed_over():
    gammas = np.array([0.2, 0.2 + 1e-9])
    assert Sweep(np.zeros(1), np.ones(1), gammas, np.zeros(2, int), np.array([1.0, -1.0]), 1.0).best()[0] == 0


def test_a_crossing_is_where_two_scores_are_equal():
    # Passage 0 is pulled along the query, passage 1 stays: cos(60°) + gamma = cos(0.4) at the crossing.
    query, ahead = np.array([[1.0, 0.0]]), np.array([np.cos(0.4), np.sin(0.4)])
    passages = np.array([[0.5, np.sqrt(0.75)], ahead])
    judged = Judged.of(query, [{0: 1.0}])
    steps = swept(passages, judged, judged, passages[:0], "accuracy@1", "nudge-m")
    np.testing.assert_allclose(steps.gammas, [np.cos(0.4) - 0.5])


def test_weights_of_queries_weigh_the_metric():
    passages, train, validation, background = random_problem(3)
    heavy = Judged(
        validation.queries, validation.offsets, validation.rows, validation.grades, np.arange(1.0, len(validation) + 1)
    )
    steps = swept(passages, train, heavy, background, "ndcg@3", "nudge-n")
    assert steps.level(0.3) == pytest.approx(by_hand(passages, train, heavy, background, "ndcg@3", "nudge-n", 0.3))


def test_a_part_of_the_queries_is_swept_as_if_alone():
    passages, train, validation, background = random_problem(4)
    some = np.array([5, 1, 2])
    part = swept(passages, train, validation, background, "ndcg@3", "nudge-n").only(some)
    alone = swept(passages, train, validation.take(some), background, "ndcg@3", "nudge-n")
    np.testing.assert_allclose(part.at(0.37), alone.at(0.37))
    np.testing.assert_allclose(part.start, alone.start)


@pytest.mark.parametrize(
    ("name", "measure"),
    [("ndcg@5", nDCG @ 5), ("recall@5", R @ 5), ("mrr@5", RR @ 5), ("precision@5", P @ 5), ("accuracy@1", Success @ 1)],
)
def test_metrics_equal_those_of_ir_measures(name, measure):
    passages, train, validation, background = random_problem(5, validation=30)
    steps = swept(passages, train, validation, background, name, "nudge-n")
    moved = np.concatenate([rotate(passages, pull(train, len(passages)), 0.31), background])
    qrels, run = [], []
    for i, scores in enumerate(validation.queries @ moved.T):
        answers = slice(validation.offsets[i], validation.offsets[i + 1])
        pairs = zip(validation.rows[answers], validation.grades[answers], strict=True)
        qrels += [ir_measures.Qrel(str(i), str(row), int(grade)) for row, grade in pairs]
        # By rank, so that equal scores are in the order of rows there too.
        ranked = np.lexsort((np.arange(len(scores)), -np.round(scores, 11)))
        run += [ir_measures.ScoredDoc(str(i), str(row), float(-rank)) for rank, row in enumerate(ranked)]
    assert steps.level(0.31) == pytest.approx(ir_measures.calc_aggregate([measure], qrels, run)[measure])


def test_an_unknown_metric_is_refused_with_those_that_are_known():
    for name in ("map@10", "ndcg", "recall@0", "nDCG@10"):
        with pytest.raises(ValueError, match="use ndcg@10, recall@10"):
            RankMetric.of(name)

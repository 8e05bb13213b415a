"""The reference code (PyPI nudge-ft, by the paper's authors): the same vectors where it is right, better where not."""

from __future__ import annotations

import nudge as nudge_ft
import numpy as np
import pytest

from m3_integrations.nudging.api import nudge
from m3_integrations.nudging.judged import Judged


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


class Problem:
    """Passages, and queries each of which lies near the passage that answers it, in both libraries' forms."""

    def __init__(self, seed, *, passages=80, train=120, validation=60, dim=24, noise=0.7):
        rng = np.random.default_rng(seed)
        self.passages = unit(rng.standard_normal((passages, dim)))
        self.train, self.train_rows = self._queries(rng, train, noise)
        self.validation, self.validation_rows = self._queries(rng, validation, noise)

    def _queries(self, rng, n, noise):
        rows = rng.integers(0, len(self.passages), n)
        offset = unit(np.ones(self.passages.shape[1]))
        return unit(self.passages[rows] + offset + noise * unit(rng.standard_normal((n, len(offset))))), rows

    def ours(self, method, **options):
        train = Judged.of(self.train, [{int(row): 1.0} for row in self.train_rows])
        validation = Judged.of(self.validation, [{int(row): 1.0} for row in self.validation_rows])
        return nudge(self.passages, train, validation, method=method, propagate=None, **options)

    def theirs(self, method, **options):
        """Fresh copies, for it writes into what it is given."""
        model = nudge_ft.NUDGEN() if method == "nudge-n" else nudge_ft.NUDGEM()
        return model.finetune_embeddings(
            self.passages.copy(),
            {"q_embs": self.train.copy(), "q_ans_indx": [[int(row)] for row in self.train_rows]},
            {"q_embs": self.validation.copy(), "q_ans_indx": [[int(row)] for row in self.validation_rows]},
            **options,
        )

    def accuracy(self, passages):
        return np.mean((self.validation @ passages.T).argmax(axis=1) == self.validation_rows)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [0.05, 0.3])
@pytest.mark.parametrize("method", ["nudge-n", "nudge-m"])
def test_the_vectors_are_the_same_for_a_given_gamma(method, gamma, seed):
    problem = Problem(seed)
    ours, theirs = problem.ours(method, gamma=gamma), problem.theirs(method, gamma=gamma)
    np.testing.assert_allclose(ours.passages, theirs, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("method", ["nudge-n", "nudge-m"])
def test_our_gamma_is_never_worse_by_its_own_criterion(method, seed):
    problem = Problem(seed)
    ours = problem.ours(method, metric="accuracy@1")
    assert problem.accuracy(ours.passages) == pytest.approx(ours.after)
    assert ours.after >= problem.accuracy(problem.theirs(method)) - 1e-9


def test_a_query_equal_to_its_passage_gives_no_nan():
    problem = Problem(0)
    problem.passages[:] = np.sign(problem.passages) * np.float32(
        24**-0.5
    )  # their length is 1 to the last bit or nearly
    problem.train = problem.passages[problem.train_rows]
    assert np.isfinite(problem.ours("nudge-n", gamma=0.3).passages).all()
    np.testing.assert_allclose(problem.ours("nudge-n", gamma=0.3).passages, problem.passages, atol=1e-6)


def test_one_unlabelled_validation_query_does_not_switch_tuning_off():
    problem = Problem(1)
    train = Judged.of(problem.train, [{int(row): 1.0} for row in problem.train_rows])
    answers = [{int(row): 1.0} for row in problem.validation_rows]
    answers[0] = {}
    ours = nudge(
        problem.passages,
        train,
        Judged.of(problem.validation, answers),
        method="nudge-n",
        propagate=None,
        metric="accuracy@1",
    )
    theirs = nudge_ft.NUDGEN().finetune_embeddings(
        problem.passages.copy(),
        {"q_embs": problem.train.copy(), "q_ans_indx": [[int(row)] for row in problem.train_rows]},
        {"q_embs": problem.validation.copy(), "q_ans_indx": [list(each) for each in answers]},
    )
    np.testing.assert_allclose(
        theirs, problem.passages, atol=1e-6
    )  # what it does: 0 / 0 is no accuracy, and gamma stays 0
    assert ours.gamma > 0
    assert ours.unanswered_validation == 1


def test_a_passage_whose_pull_points_away_is_turned_too():
    problem = Problem(2, passages=6, train=1)
    problem.train = unit(-problem.passages[problem.train_rows] + 0.5 * np.roll(problem.passages[problem.train_rows], 1))
    row = int(problem.train_rows[0])
    before = problem.passages[row]
    theirs, ours = problem.theirs("nudge-n", gamma=0.3)[row], problem.ours("nudge-n", gamma=0.3).passages[row]
    np.testing.assert_allclose(theirs, before, atol=1e-6)
    assert ours @ problem.train[0] > before @ problem.train[0] + 0.1
    assert np.sum((ours - before) ** 2) == pytest.approx(0.3, abs=1e-5)


def test_fewer_background_rows_than_k_will_do():
    problem = Problem(3)
    background = unit(np.random.default_rng(0).standard_normal((2, 24)))
    with pytest.raises(RuntimeError, match="k"):
        problem.theirs("nudge-n", nontrain_embeddings=background, val_k=5)
    ours = problem.ours("nudge-n", metric="recall@2", background=background)
    assert ours.gamma > 0
    assert ours.after > ours.before

"""A log with wrong labels does no harm, and the order of a log never matters."""

from __future__ import annotations

import re

import numpy as np
import pytest

from m3_integrations.core.encoded import MODES
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.nudging.api import nudge
from m3_integrations.nudging.judged import Judged
from m3_integrations.nudging.method.variants import candidate_variants
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.nudging.selection.cross_validation import Evidence
from m3_integrations.nudging.selection.folds import (
    CrossFitFolds,
    control_answers,
    distinct_queries,
    indiscriminate_answers,
)
from tests.nudging.help_desk import ENCODER, asked, everything, filled, nothing_differs
from tests.nudging.nudging_problems import encoded_problem, metric_by_hand, unit

SEEDS = range(2)


class Desk:
    """Passages, a log of questions that lie to one side of their answers, and new questions.

    Some passages are asked for much more often than others, as in real logs.
    """

    def __init__(self, seed: int, passages: int = 100, questions: int = 300, dim: int = 16):
        self.rng = np.random.default_rng(seed)
        self.passages = unit(self.rng.standard_normal((passages, dim))).astype(np.float32)
        self.offset = 1.2 * unit(self.rng.standard_normal(dim))
        popularity = np.arange(1, passages + 1) ** -0.5
        rows = self.rng.choice(passages, questions, p=popularity / popularity.sum())
        self.vectors, self.answers = self._asking(rows), [{int(row): 1.0} for row in rows]
        rows = self.rng.choice(passages, 200, p=popularity / popularity.sum())
        self.test = Judged.of(self._asking(rows), [{int(row): 1.0} for row in rows])

    def _asking(self, rows):
        noise = 0.2 * self.rng.standard_normal((len(rows), self.passages.shape[1]))
        return unit(self.passages[rows] + self.offset + noise).astype(np.float32)

    def effect(self, vectors, answers):
        """Return the change of the test metric by a nudge with this log, a fifth of which is for validation."""
        kept = len(vectors) * 4 // 5
        nudged = nudge(
            self.passages,
            Judged.of(vectors[:kept], answers[:kept]),
            Judged.of(vectors[kept:], answers[kept:]),
        )
        before, after = (metric_by_hand("ndcg@10", self.test, each) for each in (self.passages, nudged.passages))
        return after - before


def shuffled(desk, vectors, answers):
    return vectors, [answers[i] for i in desk.rng.permutation(len(answers))]


def random_answers(desk, vectors, answers):
    return vectors, [{int(desk.rng.integers(len(desk.passages))): 1.0} for _ in answers]


def popular(desk, vectors, answers):
    few = desk.rng.choice(len(desk.passages), 4, replace=False)
    return vectors, [{int(desk.rng.choice(few)): 1.0} for _ in answers]


def one_for_all(desk, vectors, answers):
    return vectors, [{7: 1.0} for _ in answers]


def popular_besides(desk, vectors, answers):
    return vectors, [{**each, 3: 1.0, 5: 1.0} for each in answers]


def duplicated(desk, vectors, answers):
    rows = np.repeat(np.arange(40), desk.rng.integers(1, 9, 40))
    rows = desk.rng.permutation(rows)
    return vectors[rows], [answers[i] for i in rows]


def contradictory(desk, vectors, answers):
    others = random_answers(desk, vectors, answers)[1]
    order = desk.rng.permutation(2 * len(answers))
    return np.concatenate([vectors, vectors])[order], [[*answers, *others][i] for i in order]


def few(desk, vectors, answers):
    return vectors[:30], answers[:30]


def few_shuffled(desk, vectors, answers):
    return few(desk, *shuffled(desk, vectors, answers))


CORRUPTIONS = [
    shuffled,
    random_answers,
    popular,
    one_for_all,
    popular_besides,
    duplicated,
    contradictory,
    few,
    few_shuffled,
]


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_corrupted_log_does_no_harm(corrupt, seed):
    desk = Desk(seed)
    assert desk.effect(*corrupt(desk, desk.vectors, desk.answers)) > -0.005


@pytest.mark.parametrize("seed", SEEDS)
def test_a_true_log_still_teaches(seed):
    desk = Desk(seed)
    assert desk.effect(desk.vectors, desk.answers) > 0.03


@pytest.mark.parametrize("corrupt", [popular_besides, contradictory], ids=lambda corrupt: corrupt.__name__)
def test_what_is_true_in_a_log_is_learned_in_spite_of_what_is_not(corrupt):
    desk = Desk(0)
    assert desk.effect(*corrupt(desk, desk.vectors, desk.answers)) > 0.02


def test_answers_named_with_no_regard_to_the_question_are_found():
    desk = Desk(0)
    rng = np.random.default_rng(1)
    about_one = [{**each, 3: 1.0} if rng.random() < 0.3 else each for each in desk.answers]
    for answers in (popular_besides(desk, desk.vectors, desk.answers)[1], about_one):
        log = Judged.of(desk.vectors, answers).merge_copies()
        found = indiscriminate_answers(log, log.take([]))
        assert found.tolist() == ([3] if answers is about_one else [3, 5])
        assert indiscriminate_answers(permuted(log, 2), log.take([])).tolist() == found.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_popular_answers_of_like_questions_are_kept(seed):
    desk = Desk(seed)
    log = Judged.of(desk.vectors, desk.answers).merge_copies()
    assert np.bincount(log.rows).max() > 10
    assert not len(indiscriminate_answers(log, log.take([])))


def permuted(judged, seed):
    return judged.take(np.random.default_rng(seed).permutation(len(judged)))


def test_permuting_a_log_of_vectors_changes_nothing():
    desk = Desk(4)
    train, validation = (
        Judged.of(desk.vectors[part], desk.answers[part]) for part in (slice(0, 240), slice(240, None))
    )
    one, other = (
        nudge(desk.passages, train, validation),
        nudge(desk.passages, permuted(train, 1), permuted(validation, 2)),
    )
    assert one.moved > 0
    assert one.vectors.tobytes() == other.vectors.tobytes()
    assert (one.gamma, one.choice, one.summary) == (other.gamma, other.choice, other.summary)


def test_permuting_a_log_in_all_modes_changes_nothing():
    passages, train, validation = encoded_problem(3, passages=20, train=60, validation=20)
    one, other = nudge(passages, train, validation), nudge(passages, permuted(train, 1), permuted(validation, 2))
    assert (one.weights, one.choice) == (other.weights, other.choice)
    assert nothing_differs(one.passages, other.passages)


def test_permuting_questions_changes_no_bit_of_an_index():
    train, validation = asked(80, "t", 1), asked(30, "v", 2)
    one, other = filled(MemoryIndex()), filled(MemoryIndex())
    report = Nudger(ENCODER, one).fit(train, validation, modes=MODES)
    again = Nudger(ENCODER, other).fit(train[::-1], validation[::-1], modes=MODES)
    assert report.moved
    assert nothing_differs(everything(one), everything(other))
    assert (report.plan, report.summary, report.warnings) == (again.plan, again.summary, again.warnings)


def test_copies_of_a_question_are_one_question_with_all_their_answers():
    vectors = unit(np.random.default_rng(0).standard_normal((3, 4)))
    judged = Judged.of(vectors[[0, 1, 0, 2]], [{5: 1.0}, {6: 2.0}, {5: 1.0, 7: 1.0}, {}], weights=[1, 3, 1, 1])
    merged = judged.merge_copies()
    found = {
        merged.queries[i].tobytes(): (merged.weights[i], dict(zip(*_answers(merged, i), strict=True)))
        for i in range(len(merged))
    }
    # Weight 1 + 1; passage 5 has 2 / 2 of it, passage 7 has 1 / 2.
    assert found == {
        vectors[0].tobytes(): (2.0, {5: 1.0, 7: 0.5}),
        vectors[1].tobytes(): (3.0, {6: 2.0}),
        vectors[2].tobytes(): (1.0, {}),
    }


def _answers(judged, i):
    part = slice(judged.offsets[i], judged.offsets[i + 1])
    return judged.rows[part].tolist(), judged.grades[part].tolist()


def test_texts_decide_what_is_a_copy():
    judged = Judged.of(np.eye(3), [{0: 1.0}, {1: 1.0}, {2: 1.0}], texts=["a", "b", "a"])
    assert sorted(judged.merge_copies().weights.tolist()) == [1.0, 2.0]


def test_a_validation_question_that_trains_too_does_not_evaluate():
    queries = np.eye(8)
    answers = [{i: 1.0} for i in range(8)]
    train = Judged.of(queries[:6], answers[:6])
    _, fresh = distinct_queries(train, Judged.of(queries[4:], answers[4:]), cross_fitted=False)
    assert sorted(fresh.rows.tolist()) == [6, 7]
    _, none = distinct_queries(train, train, cross_fitted=True)
    assert len(none) == 0
    _, kept = distinct_queries(train, train, cross_fitted=False)
    assert len(kept) == 6


def test_the_control_exchanges_answers_of_one_fold_and_popularity():
    rng = np.random.default_rng(0)
    rows = [*[0] * 30, *[1] * 30, *range(2, 62)]
    train = Judged.of(rng.standard_normal((120, 4)), [{row: 1.0} for row in rows])
    validation = Judged.of(rng.standard_normal((120, 4)), [{row: 1.0} for row in rows])
    folds = CrossFitFolds.k_fold(train.merge_copies(), validation.merge_copies(), few=0)
    control = control_answers(folds)
    assert sorted(control.rows.tolist()) == sorted(folds.eval_queries.rows.tolist())
    assert ((control.rows < 2) == (folds.eval_queries.rows < 2)).all()
    rare = folds.eval_queries.rows >= 2
    assert (control.rows != folds.eval_queries.rows)[rare].all()


def test_few_questions_do_not_move_a_whole_corpus():
    assert all(variant.propagation is None for variant in candidate_variants("auto", "auto", None, 1500, 30))
    assert any(variant.propagation for variant in candidate_variants("auto", "auto", None, 1500, 75))


@pytest.mark.parametrize(
    ("changed", "agreement", "required"),
    [(11, 5.0, 2.228), (11, 1.0, 4.144), (1001, 5.0, 1.962), (2, 5.0, np.inf)],
    ids=["ten degrees of freedom", "doubtful answers", "many", "too few"],
)
def test_a_gain_needs_more_evidence_if_few_questions_change_or_answers_are_doubtful(changed, agreement, required):
    # Quantiles 0.975 and 0.999 of Student's t with one degree of freedom less.
    assert Evidence(0.1, 0.1, changed, agreement).required == pytest.approx(required, abs=1e-3)


def test_evidence_counts_the_questions_that_change():
    evidence = Evidence.of(np.array([0.5, 0.5, 0.5, 0.0, 0.0]), np.ones(5))
    assert evidence.changed == pytest.approx(3)
    assert evidence.gain == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("corrupt", "sentence"),
    [
        (
            lambda desk, *log: log,
            r"^\d+ of 100 passages moved; ndcg@10 .* was 0.\d+ and is 0.\d+\. You can trust it: ",
        ),
        (shuffled, r"^None of 100 passages moved\. The answers fit their questions no better than .* check the log: "),
    ],
    ids=["true", "shuffled"],
)
def test_two_sentences_say_what_was_done_and_whether_to_trust_it(corrupt, sentence):
    desk = Desk(0)
    vectors, answers = corrupt(desk, desk.vectors, desk.answers)
    train, validation = (Judged.of(vectors[part], answers[part]) for part in (slice(0, 240), slice(240, None)))
    summary = nudge(desk.passages, train, validation).summary
    assert len(summary.split(". ")) == 2
    assert re.search(sentence, summary)


def test_a_fit_reports_its_progress_and_can_be_cancelled():
    train, validation, seen = asked(80, "t", 1), asked(30, "v", 2), []
    index = filled(MemoryIndex())
    before = everything(index)

    class Cancelled(Exception):
        pass

    def cancel(progress):
        if progress.done > 0.5:
            raise Cancelled

    nudger = Nudger(ENCODER, index)
    with pytest.raises(Cancelled):
        nudger.fit(train, validation, modes=MODES, on_progress=cancel)
    assert nothing_differs(everything(index), before)
    assert nudger.versions() == nudger.queries() == []
    nudger.fit(train, validation, modes=MODES, on_progress=seen.append)
    done = [each.done for each in seen]
    assert done == sorted(done)
    assert 0 <= done[0] < done[-1] <= 1
    assert seen[-1].seconds_left >= 0

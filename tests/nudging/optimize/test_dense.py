"""nudge(): what it chooses, what it keeps, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from m3_integrations.nudging.api import nudge
from m3_integrations.nudging.judged import Judged
from m3_integrations.nudging.method.closed_form import pull, rotate, translate
from tests.nudging.nudging_problems import metric_by_hand, random_problem, unit


def topics(seed=0, *, passages=60, queries=240, dim=16, shift=1.0):
    """Passages and questions of different kinds: every question lies off its passage by the same shift, and some noise.

    Half of the passages are asked for in training, all of them in validation.
    """
    rng = np.random.default_rng(seed)
    offset = shift * unit(rng.standard_normal(dim))
    vectors = unit(rng.standard_normal((passages, dim)))

    def judged(rows):
        noise = 0.2 * rng.standard_normal((len(rows), dim))
        return Judged.of(unit(vectors[rows] + offset + noise).astype(np.float32), [{int(row): 1.0} for row in rows])

    return (
        vectors.astype(np.float32),
        judged(rng.integers(0, passages // 2, queries)),
        judged(rng.integers(0, passages, queries)),
    )


@pytest.mark.parametrize(("method", "move"), [("nudge-n", rotate), ("nudge-m", translate)])
def test_a_given_gamma_gives_the_closed_form(method, move):
    passages, train, validation, _ = random_problem(0, dtype=np.float32)
    nudged = nudge(passages, train, validation, method=method, propagate=None, gamma=0.4)
    np.testing.assert_allclose(nudged.passages, move(passages, pull(train, len(passages)), 0.4), atol=1e-6)


@pytest.mark.parametrize("method", ["nudge-n", "nudge-m"])
@pytest.mark.parametrize("spread", [None, "neighbors"])
def test_the_promised_metric_is_that_of_the_moved_passages(method, spread):
    passages, train, validation, background = random_problem(1, passages=60, validation=30, dtype=np.float32)
    nudged = nudge(passages, train, validation, method=method, propagate=spread, metric="ndcg@5", background=background)
    assert nudged.before == pytest.approx(metric_by_hand("ndcg@5", validation, np.concatenate([passages, background])))
    moved = np.concatenate([nudged.passages, background])
    assert nudged.after == pytest.approx(metric_by_hand("ndcg@5", validation, moved), abs=1e-5)
    assert nudged.after > nudged.before


def test_auto_moves_passages_where_questions_are_of_another_kind():
    nudged = nudge(*topics())
    assert nudged.after > nudged.before + 0.05
    assert nudged.choice.gain > 2 * nudged.choice.error
    assert nudged.moved > 0


def test_on_few_validation_queries_the_training_queries_judge_too():
    passages, train, validation = topics()
    few = nudge(passages, train, validation.take(np.arange(6)))
    assert few.moved > 0
    assert few.choice.is_significant


def test_spread_helps_passages_that_no_question_answers_for():
    passages, train, validation = topics(shift=2.0)
    alone = nudge(passages, train, validation, method="nudge-n", propagate=None)
    spread = nudge(passages, train, validation, method="nudge-n", propagate="auto")
    assert spread.propagation is not None
    assert spread.after > alone.after


def test_auto_moves_nothing_where_the_training_queries_are_noise():
    passages, train, validation = topics()
    rng = np.random.default_rng(1)
    noise = Judged.of(
        unit(rng.standard_normal(train.queries.shape)).astype(np.float32),
        [{int(row): 1.0} for row in rng.integers(0, len(passages), len(train))],
    )
    nudged = nudge(passages, noise, validation)
    assert nudged.gamma == 0
    assert nudged.moved == 0
    np.testing.assert_array_equal(nudged.passages, passages)
    assert nudged.after == nudged.before


def test_only_passages_that_moved_are_kept():
    passages, train, validation, _ = random_problem(2, passages=50, train=5)
    nudged = nudge(passages, train, validation, method="nudge-n", propagate=None, gamma=0.1)
    np.testing.assert_array_equal(nudged.rows, np.unique(train.rows))
    stayed = np.setdiff1d(np.arange(50), nudged.rows)
    np.testing.assert_array_equal(nudged.passages[stayed], passages[stayed])


def test_an_unanswered_validation_query_is_left_out_and_counted():
    passages, train, validation, _ = random_problem(3)
    answers = [
        dict(zip(each.rows.tolist(), each.grades.tolist(), strict=True))
        for each in (validation.take([i]) for i in range(len(validation)))
    ]
    more = Judged.of(np.concatenate([validation.queries, passages[:2]]), [*answers, {}, {}])
    nudged, same = nudge(passages, train, more), nudge(passages, train, validation)
    assert nudged.unanswered_validation == 2
    assert (nudged.gamma, nudged.before, nudged.after) == (same.gamma, same.before, same.after)


def test_a_background_comes_as_an_array_or_as_blocks_seen_once():
    passages, train, validation, background = random_problem(4)
    whole = nudge(passages, train, validation, method="nudge-n", background=background)
    blocks = nudge(passages, train, validation, method="nudge-n", background=iter([background[:3], background[3:]]))
    assert (whole.gamma, whole.after) == (blocks.gamma, blocks.after)


def test_a_background_smaller_than_k_will_do():
    passages, train, validation, background = random_problem(5)
    nudged = nudge(passages, train, validation, metric="recall@10", method="nudge-n", background=background[:1])
    assert nudged.after >= nudged.before


def test_a_memory_map_is_read_and_left_alone(tmp_path):
    passages, train, validation, _ = random_problem(6, dtype=np.float32)
    path = tmp_path / "passages.npy"
    np.save(path, passages)
    mapped = np.load(path, mmap_mode="r")
    nudged = nudge(mapped, train, validation, method="nudge-n", propagate=None)
    np.testing.assert_array_equal(
        nudged.vectors, nudge(passages, train, validation, method="nudge-n", propagate=None).vectors
    )
    np.testing.assert_array_equal(np.load(path), passages)


def test_passages_of_other_lengths_are_pushed_not_turned():
    passages, train, validation = topics()
    assert nudge(2 * passages, train, validation).method == "nudge-m"
    with pytest.raises(ValueError, match="divide each row by its length"):
        nudge(2 * passages, train, validation, method="nudge-n")


def test_one_passage_of_another_length_is_moved_only_if_it_must_be():
    passages, train, validation = topics()
    passages[-1] = 0  # an empty text; no training query asks for it
    assert nudge(passages, train, validation).moved > 0
    assert nudge(passages, train, validation, method="nudge-n").propagation is None
    with pytest.raises(ValueError, match="passage 59 has length 0"):
        nudge(passages, train, validation, method="nudge-n", propagate="neighbors")


def test_a_given_gamma_needs_no_validation():
    passages, train, validation, _ = random_problem(9)
    nobody = Judged.of(validation.queries, [{} for _ in range(len(validation))])
    assert nudge(passages, train, nobody, method="nudge-n", gamma=0.2).moved > 0


def test_nothing_to_pull_moves_nothing():
    passages, _, validation, _ = random_problem(7)
    nobody = Judged.of(validation.queries, [{} for _ in range(len(validation))])
    nudged = nudge(passages, nobody, validation)
    assert (nudged.moved, nudged.gamma, nudged.unanswered_train) == (0, 0.0, len(validation))


def test_where_no_validation_query_has_an_answer_folds_of_the_training_queries_choose():
    passages, train, validation = topics()
    nobody = Judged.of(validation.queries, [{} for _ in range(len(validation))])
    nudged = nudge(passages, train, nobody)
    assert nudged.moved > 0
    assert 0 < nudged.before < nudged.after


def test_what_cannot_be_nudged_is_refused_with_the_way_out():
    passages, train, validation, background = random_problem(8)
    nobody = Judged.of(validation.queries, [{} for _ in range(len(validation))])
    with pytest.raises(ValueError, match="or give gamma"):
        nudge(passages, train, nobody, method="nudge-n")
    with pytest.raises(ValueError, match="encode both with one model"):
        nudge(passages[:, :-1], train, validation)
    with pytest.raises(ValueError, match="there are 3 passages"):
        nudge(passages[:3], train, validation)
    with pytest.raises(ValueError, match="background blocks are"):
        nudge(passages, train, validation, background=background[:, :-1])
    with pytest.raises(ValueError, match="0 <= gamma <= 4"):
        nudge(passages, train, validation, method="nudge-n", gamma=-1.0)
    with pytest.raises(ValueError, match="re-encode it"):
        nudge(np.where(np.arange(len(passages))[:, None] == train.rows[0], np.nan, passages), train, validation)
    with pytest.raises(ValueError, match="passage 30 holds NaN"):
        nudge(passages, train, validation, background=np.full_like(background, np.nan))
    with pytest.raises(ValueError, match="'auto' or 'nudge-n' or 'nudge-m', got 'x'"):
        nudge(passages, train, validation, method="x")
    with pytest.raises(ValueError, match="'auto' or 'neighbors' or None, got 'far'"):
        nudge(passages, train, validation, propagate="far")

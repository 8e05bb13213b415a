"""Judged queries as arrays, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from m3_integrations.nudging.judged import Judged

TWO = np.eye(2, dtype=np.float32)


def test_grades_of_zero_and_less_are_no_answers():
    judged = Judged.of(TWO, [{0: 0.0, 3: 2.0, 1: -1.0}, {}])
    assert judged.rows.tolist() == [3]
    assert judged.counts.tolist() == [1, 0]


def test_taking_queries_keeps_their_answers():
    judged = Judged.of(np.eye(3), [{0: 1.0}, {1: 1.0, 2: 3.0}, {4: 1.0}], weights=[1, 2, 3])
    taken = judged.take([2, 1])
    assert taken.rows.tolist() == [4, 1, 2]
    assert taken.grades.tolist() == [1, 1, 3]
    assert taken.weights.tolist() == [3, 2]
    assert taken.offsets.tolist() == [0, 1, 3]


def test_queries_without_an_answer_or_a_weight_are_not_answered():
    judged = Judged.of(np.eye(3), [{0: 1.0}, {}, {1: 1.0}], weights=[1, 1, 0])
    assert judged.answered().rows.tolist() == [0]


def test_a_query_cap_bounds_all_that_one_query_pulls():
    judged = Judged.of(TWO, [{0: 1.0, 1: 1.0}, {1: 1.0}], weights=[8.0, 1.0])
    assert judged.capped(per_query=4.0).pair_weights.tolist() == [4 / 2, 4 / 2, 1]


def test_a_passage_cap_keeps_its_strongest_queries_and_the_earlier_of_equals():
    judged = Judged.of(np.eye(3), [{0: 1.0}, {0: 2.0, 1: 1.0}, {0: 1.0}]).capped(per_passage=2)
    assert judged.rows.tolist() == [0, 0, 1]
    assert judged.grades.tolist() == [1, 2, 1]
    assert judged.counts.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("queries", "answers", "weights", "message"),
    [
        (TWO, [{0: 1.0}], None, "2 queries, 1 answers"),
        (TWO[0], [{0: 1.0}], None, r"write queries\[None\]"),
        (TWO * np.nan, [{}, {}], None, "query 0 holds NaN"),
        (TWO, [{0: 1.0}, [1]], None, "write {row: grade}"),
        (TWO, [{0: 1.0}, {-1: 1.0}], None, "query 1 is answered by -1"),
        (TWO, [{0: float("nan")}, {}], None, "query 0 grades row 0 with nan"),
        (TWO, [{}, {}], [1.0], "one weight a query"),
        (TWO, [{}, {}], [1.0, -1.0], "clip them"),
    ],
)
def test_what_is_no_judgement_is_refused_with_the_way_out(queries, answers, weights, message):
    with pytest.raises(ValueError, match=message):
        Judged.of(queries, answers, weights)


def test_an_answer_beyond_the_passages_is_named():
    with pytest.raises(ValueError, match="query 1 is answered by row 7, but there are 5 passages"):
        Judged.of(TWO, [{0: 1.0}, {7: 1.0}]).require_rows(5)


def test_a_cap_must_be_above_zero():
    judged = Judged.of(TWO, [{0: 1.0}, {}])
    with pytest.raises(ValueError, match="leave it out for no cap"):
        judged.capped(per_query=0)
    with pytest.raises(ValueError, match="leave it out for no cap"):
        judged.capped(per_passage=0)

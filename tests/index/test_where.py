from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.index.columns import Columns
from m3_integrations.index.where import Field, all_of, any_of, look_up, none_of
from m3_integrations.testing.contract import metadata, wheres


@given(st.lists(metadata, max_size=12), wheres, st.integers(0, 12))
def test_columns_pass_the_rows_whose_metadata_matches(rows, where, first):
    columns = Columns()
    for upto in (min(first, len(rows)), len(rows)):
        start = columns.filled(where.fields())
        columns.fill(where.fields(), list(enumerate(rows))[start:upto], upto)
        assert columns.passing(where, upto).tolist() == [where.matches(row) for row in rows[:upto]]
    assert columns.copy().passing(where, len(rows)).tolist() == [where.matches(row) for row in rows]


@given(metadata, wheres)
def test_none_of_is_what_any_of_is_not(row, where):
    assert none_of(where).matches(row) != any_of(where).matches(row) == all_of(where).matches(row)


@pytest.mark.parametrize(("operator", "opposite"), [("==", "!="), ("in", "not in")])
@given(row=metadata, values=st.lists(st.none() | st.booleans() | st.integers(-3, 3), max_size=3))
def test_an_operator_and_its_opposite_never_agree(operator, opposite, row, values):
    asked = values if operator == "in" else (values or [None])[0]
    assert Field("a", operator, asked).matches(row) != Field("a", opposite, asked).matches(row)


def test_a_key_with_a_dot_comes_before_the_way_down():
    assert look_up({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert look_up({"a": {"b.c": 3}}, "a.b.c") == 3


def test_true_is_not_1():
    assert not Field("x", "==", 1).matches({"x": True})
    assert not Field("x", "in", [1, 0]).matches({"x": True})
    assert not Field("x", "contains", 1).matches({"x": [True]})
    assert Field("x", "==", 1.0).matches({"x": 1})


def test_a_list_among_the_values_of_in_is_found():
    assert Field("x", "in", [["a"], "b"]).matches({"x": ["a"]})
    assert not Field("x", "in", [["a"], "b"]).matches({"x": ["b"]})


def test_thousands_of_values_are_looked_up_at_once():
    where = Field("x", "in", list(range(100_000)))
    start = time.perf_counter()
    assert sum(where.matches({"x": i}) for i in range(90_000, 110_000)) == 10_000
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("operator", "value", "what"),
    [
        ("in", "abc", "takes a list of values"),
        ("<", None, "a number or a string"),
        ("exists", 1, "True or False"),
        ("~", 1, "the operators are"),
    ],
)
def test_a_condition_without_meaning_is_refused(operator, value, what):
    with pytest.raises(UnsupportedFilter, match=what):
        Field("x", operator, value)

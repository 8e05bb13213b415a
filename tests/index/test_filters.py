from __future__ import annotations

import time

import pytest
from hypothesis import given, strategies as st

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.index.filters import Field, all_of, any_of, look_up, none_of
from m3_integrations.index.local.metadata_columns import MetadataColumns
from m3_integrations.testing.sample_data import metadata, wheres


@given(st.lists(metadata, max_size=12), wheres, st.integers(0, 12))
def test_columns_match_the_rows_whose_metadata_matches(rows, where, first):
    columns = MetadataColumns()
    for upto in (min(first, len(rows)), len(rows)):
        start = columns.known_rows(where.fields())
        columns.fill(where.fields(), list(enumerate(rows))[start:upto], upto)
        assert columns.matching_rows(where, upto).tolist() == [where.matches(row) for row in rows[:upto]]
    assert columns.copy().matching_rows(where, len(rows)).tolist() == [where.matches(row) for row in rows]


@given(metadata, wheres)
def test_none_of_is_the_negation_of_any_of(row, where):
    assert none_of(where).matches(row) != any_of(where).matches(row) == all_of(where).matches(row)


@pytest.mark.parametrize(("operator", "opposite"), [("==", "!="), ("in", "not in")])
@given(row=metadata, values=st.lists(st.none() | st.booleans() | st.integers(-3, 3), max_size=3))
def test_an_operator_and_its_opposite_never_agree(operator, opposite, row, values):
    value = values if operator == "in" else (values or [None])[0]
    assert Field("a", operator, value).matches(row) != Field("a", opposite, value).matches(row)


def test_a_key_with_a_dot_takes_precedence_over_a_path():
    assert look_up({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert look_up({"a": {"b.c": 3}}, "a.b.c") == 3


def test_true_is_not_1():
    assert not Field("x", "==", 1).matches({"x": True})
    assert not Field("x", "in", [1, 0]).matches({"x": True})
    assert not Field("x", "contains", 1).matches({"x": [True]})
    assert Field("x", "==", 1.0).matches({"x": 1})


def test_in_finds_a_list_among_its_values():
    assert Field("x", "in", [["a"], "b"]).matches({"x": ["a"]})
    assert not Field("x", "in", [["a"], "b"]).matches({"x": ["b"]})


def test_thousands_of_values_are_looked_up_by_hash():
    where = Field("x", "in", list(range(100_000)))
    start = time.perf_counter()
    assert sum(where.matches({"x": i}) for i in range(90_000, 110_000)) == 10_000
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("operator", "value", "message"),
    [
        ("in", "abc", "takes a list of values"),
        ("<", None, "a number or a string"),
        ("exists", 1, "True or False"),
        ("~", 1, "the operators are"),
    ],
)
def test_an_invalid_condition_is_an_error(operator, value, message):
    with pytest.raises(UnsupportedFilter, match=message):
        Field("x", operator, value)

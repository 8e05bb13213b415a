"""Filters as text mean what the same filters in Python mean."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from m3_integrations import Field, all_of, any_of, none_of
from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.index import parse_where


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("year >= 2020", Field("year", ">=", 2020)),
        ("2020 <= year", Field("year", ">=", 2020)),
        ('lang == "de"', Field("lang", "==", "de")),
        ("lang != 'de'", Field("lang", "!=", "de")),
        ('lang in ["de", "en"]', Field("lang", "in", ["de", "en"])),
        ('lang not in ("de",)', Field("lang", "not in", ["de"])),
        ('"tea" in tags', Field("tags", "contains", "tea")),
        ('"tea" not in tags', none_of(Field("tags", "contains", "tea"))),
        ('contains(tags, "tea")', Field("tags", "contains", "tea")),
        ('icontains(title, "TEA")', Field("title", "icontains", "TEA")),
        ("exists(year)", Field("year", "exists", True)),
        ("not exists(year)", none_of(Field("year", "exists", True))),
        ("draft == true and seen == null", all_of(Field("draft", "==", True), Field("seen", "==", None))),
        ("author.name == 'Li Chun'", Field("author.name", "==", "Li Chun")),
        ('field("page count") > -1.5', Field("page count", ">", -1.5)),
        ("2000 <= year < 2010", all_of(Field("year", ">=", 2000), Field("year", "<", 2010))),
        (
            "a == 1 or b == 2 and not c == 3",
            any_of(Field("a", "==", 1), all_of(Field("b", "==", 2), none_of(Field("c", "==", 3)))),
        ),
    ],
)
def test_a_text_is_the_filter_that_it_says(text, where):
    assert parse_where(text) == where


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("year = 2020", "cannot be read"),
        ("lang == de", r'de is no value; put quotes around a text: "de"'),
        ("year", "year is no condition"),
        ("1 == 2", "1|2 is no field"),
        ("lang is None", "use == or !="),
        ("__import__('os').system('true') == 1", "is no field"),
        ("open('x')", "is no condition"),
        ("lang in 'de'", "takes a list"),
        ("year == 1j", "is no value"),
        ("(" * 500, "cannot be read"),
        ("not " * 2000 + "a == 1", "cannot be read"),
        ("a == 1 " + "or a == 1 " * 2000, "write at most"),
        ("a == '\0'", "cannot be read"),
    ],
)
def test_another_text_is_refused_with_an_example(text, message):
    with pytest.raises(UnsupportedFilter, match=message):
        parse_where(text)


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("year = 2020", 5, "write == instead of ="),
        ("  year >= ", 9, "it ends too early"),
        ('lang == "é" AND year == 1', 12, "write and instead of AND"),
        ("a == 1 && b == 2", 8, "write and instead of &&"),
        ("a <> 1", 2, "write != instead of <>"),
        (" name == 'é' and lang == de", 25, "put quotes around a text"),
        ("(year", 0, "was never closed"),
        ("a == 1 or\nb = 2", 9, "cannot be read"),
        ("", None, "it is empty"),
    ],
)
def test_an_error_says_where_the_filter_is_wrong(text, position, reason):
    with pytest.raises(UnsupportedFilter, match=re.escape(reason)) as error:
        parse_where(text)
    assert error.value.position == position


VALUES = st.one_of(st.integers(), st.text(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))


@given(value=VALUES, stored=VALUES, operator=st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
def test_every_value_compares_as_it_does_in_python(value, stored, operator):
    if isinstance(value, bool) and operator not in ("==", "!="):
        value = int(value)
    assert parse_where(f"f {operator} {value!r}").matches({"f": stored}) == Field("f", operator, value).matches(
        {"f": stored}
    )

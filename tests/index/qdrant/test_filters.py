"""`Where` as a Qdrant filter matches what it matches in memory."""

from __future__ import annotations

import json
from decimal import Decimal

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from m3_integrations import Field, MemoryIndex, Passage, QdrantIndex, all_of, any_of, none_of
from m3_integrations.core.encoded import Encoded
from m3_integrations.index.filters import ABSENT, look_up
from m3_integrations.index.qdrant.filter_fields import NotExpressible, chunks, field_key, named
from m3_integrations.index.qdrant.filters import to_qdrant_filter
from m3_integrations.index.qdrant.points import passage, payload, point_id
from m3_integrations.index.records import PassageRecord

texts = st.text(st.characters(codec=None), max_size=14)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2))
names = texts | st.sampled_from(["a", "a.b", "a.b.c", "", ".", "a.", ".a"])
metadata = st.recursive(
    st.dictionaries(names, scalars, max_size=3), lambda inner: st.dictionaries(names, scalars | inner, max_size=3)
)


@given(texts, texts)
@example("a" * 6, "a" * 6 + "\x00")
@example("é", "e\u0301")
@example("\ud800", "\uffff")
def test_chunks_sort_as_their_strings_do(one, other):
    assert (one < other) == (chunks(one) < chunks(other))
    assert (one == other) == (chunks(one) == chunks(other))


@given(metadata)
def test_named_yields_exactly_the_names_that_resolve(fields):
    found = dict(named(fields))
    assert all(look_up(fields, name) == value for name, value in found.items())
    for name in {f"{one}.{other}" for one in [*fields, *found] for other in ["a", "b", "", "b.c"]}:
        assert (look_up(fields, name) is ABSENT) == (name not in found)


@given(texts.filter(bool), texts, metadata)
@example("json:x", 'json:"x"', {"n": 0.1 + 0.2, "big": 2**70})
@example("\ud83d\ude00", "😀", {"\ud83d": "\ude00"})
def test_a_passage_round_trips_through_its_payload(id, text, fields):
    entry = PassageRecord.from_passage(Passage(id, text, fields))
    on_the_wire = json.dumps(payload(entry), ensure_ascii=False).encode("utf-8")
    assert passage(json.loads(on_the_wire)) == entry.to_passage()


def test_point_ids_and_field_keys_are_distinct():
    assert len({point_id(id) for id in ("a", "A", "é", "e\u0301", "\ud800", "", "😀", "\ud83d\ude00")}) == 8
    assert len({field_key(name) for name in ("a", "a.b", "_a", "", "a b", "A")}) == 6


METADATA = [
    {"s": "2024-05-01T10:00", "n": 3},
    {"s": "2024-05-01", "n": 3.0},
    {"s": "2024-05", "n": True},
    {"s": "2024-05-01\x00", "n": 2**60},
    {"s": "x" * 60, "n": 2**60 + 1},
    {"s": "x" * 59 + "y", "n": -0.0},
    {"s": "a \ud800 lone", "n": [3]},
    {"s": "", "n": "3"},
    {"s": ["2024-05-01", "", None, {"a": 1}, [1, True]], "n": None},
    {"n": {"deep": {"er": 3}, "s.t": 4}},
    {},
]
VALUES = [
    *("2024-05-01", "2024-05-01T10:00", "2024", "", "x" * 60, "x" * 47, "x" * 48, "\ud800", "lone", "\x00", None),
    *(3, 3.0, True, False, 0, 1, 2**60, 2**60 + 1, float(2**60), -1, float("nan"), float("inf"), "3"),
    *([3], (3,), ["2024-05-01"], {"a": 1}, [1, True], [1, 1], {"deep": {"er": 3}, "s.t": 4}, Decimal(3)),
]


@pytest.fixture(scope="module", params=["engine", "in-memory"])
def indexes(request, tmp_path_factory):
    location = tmp_path_factory.mktemp("qdrant") if request.param == "engine" else ":memory:"
    with QdrantIndex.open(location, "c") as index:
        reference = MemoryIndex()
        for each in (index, reference):
            vectors = Encoded(dense=np.eye(len(METADATA), dtype=np.float32))
            each.add([Passage(f"{i:02d}", "", fields) for i, fields in enumerate(METADATA)], vectors)
        yield index, reference


@pytest.mark.parametrize("operator", ["==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains"])
def test_each_operator_equals_that_of_the_reference_index(indexes, operator):
    index, reference = indexes
    for value in VALUES:
        if operator[0] in "<>" and not isinstance(value, (str, int, float)):
            continue
        for name in ("s", "n", "n.deep.er", "n.s.t", "none"):
            where = Field(name, operator, [value, "else"] if "in" in operator.split() else value)
            assert index.ids(where) == reference.ids(where), where


def test_filters_that_qdrant_cannot_express_are_decided_on_the_client(indexes):
    index, reference = indexes
    hard = Field("n", ">", 2**60)
    with pytest.raises(NotExpressible):
        to_qdrant_filter(any_of(hard))
    for where in (hard, none_of(hard), all_of(Field("s", "exists"), any_of(hard, Field("n", "==", 3)))):
        assert index.ids(where) == reference.ids(where)
        query = Encoded(dense=np.ones((1, len(METADATA)), np.float32))
        assert index.search("dense", query, 20, where) == reference.search("dense", query, 20, where)


def test_a_field_index_changes_no_result(indexes):
    index, reference = indexes
    index.create_field_index("s")
    index.create_field_index("n")
    for where in (Field("n", "<", 4), Field("s", ">=", "2024-05-01")):
        assert index.ids(where) == reference.ids(where)

"""Where as a filter of Qdrant: decided by facts and fields as by the metadata itself."""

from __future__ import annotations

import json
from decimal import Decimal

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from m3_integrations import Field, MemoryIndex, Passage, QdrantIndex, all_of, any_of, none_of
from m3_integrations.core.encoded import Encoded
from m3_integrations.index.entries import Entry
from m3_integrations.index.qdrant_facts import Undecidable, chunks, field_key, named
from m3_integrations.index.qdrant_filter import filter_of
from m3_integrations.index.qdrant_payload import passage, payload, point_id
from m3_integrations.index.where import ABSENT, look_up

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
def test_every_name_that_finds_something_is_known_and_no_other(kept):
    found = dict(named(kept))
    assert all(look_up(kept, name) == value for name, value in found.items())
    for name in {f"{one}.{other}" for one in [*kept, *found] for other in ["a", "b", "", "b.c"]}:
        assert (look_up(kept, name) is ABSENT) == (name not in found)


@given(texts.filter(bool), texts, metadata)
@example("json:x", 'json:"x"', {"n": 0.1 + 0.2, "big": 2**70})
@example("\ud83d\ude00", "😀", {"\ud83d": "\ude00"})
def test_a_passage_comes_back_to_the_letter(id, text, kept):
    entry = Entry.of(Passage(id, text, kept))
    on_the_wire = json.dumps(payload(entry), ensure_ascii=False).encode("utf-8")
    assert passage(json.loads(on_the_wire)) == entry.passage()


def test_ids_of_points_and_keys_of_fields_are_told_apart():
    assert len({point_id(id) for id in ("a", "A", "é", "e\u0301", "\ud800", "", "😀", "\ud83d\ude00")}) == 8
    assert len({field_key(name) for name in ("a", "a.b", "_a", "", "a b", "A")}) == 6


KEPT = [
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
ASKED = [
    *("2024-05-01", "2024-05-01T10:00", "2024", "", "x" * 60, "x" * 47, "x" * 48, "\ud800", "lone", "\x00", None),
    *(3, 3.0, True, False, 0, 1, 2**60, 2**60 + 1, float(2**60), -1, float("nan"), float("inf"), "3"),
    *([3], (3,), ["2024-05-01"], {"a": 1}, [1, True], [1, 1], {"deep": {"er": 3}, "s.t": 4}, Decimal(3)),
]


@pytest.fixture(scope="module", params=["engine", "stand-in"])
def indexes(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("qdrant") if request.param == "engine" else ":memory:"
    with QdrantIndex.open(place, "c") as index:
        judge = MemoryIndex()
        for each in (index, judge):
            vectors = Encoded(dense=np.eye(len(KEPT), dtype=np.float32))
            each.add([Passage(f"{i:02d}", "", kept) for i, kept in enumerate(KEPT)], vectors)
        yield index, judge


@pytest.mark.parametrize("operator", ["==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains"])
def test_each_operator_means_what_it_means_in_memory(indexes, operator):
    index, judge = indexes
    for value in ASKED:
        if operator[0] in "<>" and not isinstance(value, (str, int, float)):
            continue
        for name in ("s", "n", "n.deep.er", "n.s.t", "none"):
            where = Field(name, operator, [value, "else"] if "in" in operator.split() else value)
            assert index.ids(where) == judge.ids(where), where


def test_what_qdrant_cannot_decide_is_decided_here_within_any_tree(indexes):
    index, judge = indexes
    hard = Field("n", ">", 2**60)
    with pytest.raises(Undecidable):
        filter_of(any_of(hard))
    for where in (hard, none_of(hard), all_of(Field("s", "exists"), any_of(hard, Field("n", "==", 3)))):
        assert index.ids(where) == judge.ids(where)
        query = Encoded(dense=np.ones((1, len(KEPT)), np.float32))
        assert index.search("dense", query, 20, where) == judge.search("dense", query, 20, where)


def test_a_field_may_be_indexed(indexes):
    index, judge = indexes
    index.index_field("s")
    index.index_field("n")
    for where in (Field("n", "<", 4), Field("s", ">=", "2024-05-01")):
        assert index.ids(where) == judge.ids(where)

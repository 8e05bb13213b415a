"""Conversions of nodes and filters in both directions."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

import pytest
from llama_index.core.schema import Document, ImageNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.core.types import Passage
from m3_integrations.index.filters import Field, all_of, any_of, none_of
from m3_integrations.llama_index.convert import to_filters, to_node, to_passage, to_where

WHOLE = TextNode(
    id_="n",
    text="a red cat",
    metadata={"title": "Cats", "secret": "x", "doc_id": "mine", "nested": {"a": [1, None]}},
    excluded_embed_metadata_keys=["secret"],
    excluded_llm_metadata_keys=["title"],
    relationships={
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book", metadata={"b": 1}),
        NodeRelationship.NEXT: RelatedNodeInfo(node_id="n2"),
    },
    start_char_idx=3,
    end_char_idx=12,
)


@pytest.mark.parametrize(
    "node",
    [WHOLE, TextNode(id_="e", text=""), ImageNode(id_="i", text="x", image_url="u"), IndexNode(text="i", index_id="q")],
)
def test_nodes_round_trip(node):
    assert to_node(to_passage(node)) == node


def test_the_passage_text_is_the_embedded_text():
    text = to_passage(WHOLE).text
    assert "title: Cats" in text
    assert "secret" not in text


def test_filters_see_the_users_own_metadata_fields():
    assert Field("doc_id", "==", "mine").matches(to_passage(WHOLE).metadata)
    assert Field("ref_doc_id", "==", "book").matches(to_passage(WHOLE).metadata)
    assert Field("nested.a", "contains", 1).matches(to_passage(WHOLE).metadata)


def test_a_node_with_metadata_of_another_store_round_trips():
    node = TextNode(id_="n", text="red", metadata={"_node_content": "{}", "_node_type": "Document"})
    assert to_node(to_passage(node)) == node


def test_documents_round_trip():
    back = to_node(to_passage(Document(id_="d", text="red", metadata={"a": 1})))
    assert (back.node_id, back.get_content(), back.metadata) == ("d", "red", {"a": 1})


def test_a_passage_not_made_from_a_node_becomes_a_text_node():
    assert to_node(Passage("p", "red", {"a": 1})) == TextNode(id_="p", text="red", metadata={"a": 1})


@pytest.mark.parametrize(
    "where",
    [
        Field("a", "==", 1),
        Field("a", "in", ["x", "y"]),
        Field("a", "not in", [1, 2]),
        Field("a", "contains", "x"),
        Field("a", "==", None),
        all_of(Field("a", ">", 1), Field("a", "<=", 2.5)),
        none_of(any_of(Field("a", "<", 1), all_of(Field("b", ">=", 2))), Field("c", "!=", "x")),
        all_of(),
    ],
)
def test_where_round_trips_through_filters(where):
    back = to_where(to_filters(where))
    assert back == (all_of(where) if isinstance(where, Field) else where)


@pytest.mark.parametrize("where", [Field("a", "exists", True), Field("a", "==", True), any_of()])
def test_a_where_without_equivalent_filters_is_rejected(where):
    with pytest.raises(UnsupportedFilter, match="LlamaIndex"):
        to_filters(where)


@pytest.mark.parametrize(
    ("operator", "value", "message"),
    [
        ("text_match_insensitive", 3, "'text_match_insensitive' on 'a' takes a string, got 3"),
        ("text_match", None, "'text_match' on 'a' takes a string, got None"),
        ("any", "x", "'any' on 'a' takes a list of values, got 'x'"),
        ("all", None, "'all' on 'a' takes a list of values, got None"),
        ("in", None, "'in' takes a list of values, got None"),
        (">", None, "'>' compares with a number or a string, got None"),
    ],
)
def test_an_unsupported_filter_is_rejected(operator, value, message):
    filters = MetadataFilters(filters=[MetadataFilter(key="a", operator=FilterOperator(operator), value=value)])
    with pytest.raises(UnsupportedFilter, match=message):
        to_where(filters)


def test_an_object_of_another_type_is_rejected_as_a_filter():
    with pytest.raises(UnsupportedFilter, match="MetadataFilters or a Where"):
        to_where({"a": 1})


def test_dates_and_times_round_trip():
    when = {"day": date(2024, 5, 1), "at": [datetime(2024, 5, 1, 12, 30, tzinfo=UTC), {"hour": time(7, 15)}]}
    node = TextNode(id_="n", text="red", metadata={"when": when})
    passage = to_passage(node)
    assert to_node(passage) == node
    assert Field("when.day", "<", "2025-01-01").matches(passage.metadata)
    assert not Field("when.day", "<", "2024-01-01").matches(passage.metadata)

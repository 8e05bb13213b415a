"""Nodes and filters, there and back."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

import pytest
from llama_index.core.schema import Document, ImageNode, IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.core.texts import Passage
from m3_integrations.index.where import Field, all_of, any_of, none_of
from m3_integrations.llama_index.convert import filters_of, node_of, passage_of, where_of

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
def test_a_node_comes_back_as_it_went(node):
    assert node_of(passage_of(node)) == node


def test_a_node_is_found_by_the_text_that_is_embedded():
    text = passage_of(WHOLE).text
    assert "title: Cats" in text
    assert "secret" not in text


def test_a_filter_looks_at_the_fields_that_the_user_gave():
    assert Field("doc_id", "==", "mine").matches(passage_of(WHOLE).metadata)
    assert Field("ref_doc_id", "==", "book").matches(passage_of(WHOLE).metadata)
    assert Field("nested.a", "contains", 1).matches(passage_of(WHOLE).metadata)


def test_a_node_whose_metadata_another_store_wrote_comes_back_as_itself():
    node = TextNode(id_="n", text="red", metadata={"_node_content": "{}", "_node_type": "Document"})
    assert node_of(passage_of(node)) == node


def test_a_document_keeps_its_id_text_and_metadata():
    back = node_of(passage_of(Document(id_="d", text="red", metadata={"a": 1})))
    assert (back.node_id, back.get_content(), back.metadata) == ("d", "red", {"a": 1})


def test_a_passage_that_was_no_node_becomes_a_text_node():
    assert node_of(Passage("p", "red", {"a": 1})) == TextNode(id_="p", text="red", metadata={"a": 1})


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
def test_a_where_comes_back_as_it_went(where):
    back = where_of(filters_of(where))
    assert back == (all_of(where) if isinstance(where, Field) else where)


@pytest.mark.parametrize("where", [Field("a", "exists", True), Field("a", "==", True), any_of()])
def test_a_where_that_llama_index_cannot_say_is_an_error(where):
    with pytest.raises(UnsupportedFilter, match="LlamaIndex"):
        filters_of(where)


@pytest.mark.parametrize(
    ("operator", "value", "said"),
    [
        ("text_match_insensitive", "x", r"'text_match_insensitive' on 'a' is not supported; use one of .*'text_match'"),
        ("text_match", None, "'text_match' on 'a' takes a string, got None"),
        ("any", "x", "'any' on 'a' takes a list of values, got 'x'"),
        ("all", None, "'all' on 'a' takes a list of values, got None"),
        ("in", None, "'in' takes a list of values, got None"),
        (">", None, "'>' compares with a number or a string, got None"),
    ],
)
def test_a_filter_that_cannot_be_said_is_an_error_that_names_it(operator, value, said):
    filters = MetadataFilters(filters=[MetadataFilter(key="a", operator=FilterOperator(operator), value=value)])
    with pytest.raises(UnsupportedFilter, match=said):
        where_of(filters)


def test_something_else_is_no_filter():
    with pytest.raises(UnsupportedFilter, match="MetadataFilters or a Where"):
        where_of({"a": 1})


def test_dates_and_times_come_back_as_what_they_were():
    when = {"day": date(2024, 5, 1), "at": [datetime(2024, 5, 1, 12, 30, tzinfo=UTC), {"hour": time(7, 15)}]}
    node = TextNode(id_="n", text="red", metadata={"when": when})
    passage = passage_of(node)
    assert node_of(passage) == node
    assert Field("when.day", "<", "2025-01-01").matches(passage.metadata)
    assert not Field("when.day", "<", "2024-01-01").matches(passage.metadata)

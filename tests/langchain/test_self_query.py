"""M3Translator with LangChain's SelfQueryRetriever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from langchain_classic.retrievers.self_query.base import SelfQueryRetriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.langchain import M3Embeddings, M3Translator, M3VectorStore

EAST = timezone(timedelta(hours=2))
DOCUMENTS = [
    Document(
        id="a", page_content="red cat", metadata={"year": 1999, "tags": ["x"], "at": datetime(2024, 1, 1, tzinfo=UTC)}
    ),
    Document(
        id="b", page_content="red dog", metadata={"year": 2024, "tags": ["y"], "at": datetime(2024, 1, 2, tzinfo=EAST)}
    ),
    Document(id="c", page_content="red bird", metadata={"year": 2010}),
]


def compare(comparator, attribute, value):
    return Comparison(Comparator(comparator), attribute, value)


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (None, "abc"),
        (compare("eq", "year", 2010), "c"),
        (compare("ne", "year", 2010), "ab"),
        (compare("gte", "year", 2010), "bc"),
        (compare("in", "year", [1999, 2024]), "ab"),
        (compare("nin", "year", [1999, 2024]), "c"),
        (compare("contain", "tags", "x"), "a"),
        (compare("gt", "at", {"datetime": "2024-01-01T21:00:00+0000", "type": "datetime"}), "b"),
        (compare("lt", "at", {"date": "2024-01-02", "type": "date"}), "ab"),
        (Operation(Operator.AND, [compare("gt", "year", 2000), compare("lt", "year", 2020)]), "c"),
        (Operation(Operator.OR, [compare("gt", "year", 2020), compare("lt", "year", 2000)]), "ab"),
        (Operation(Operator.NOT, [compare("eq", "year", 2010)]), "ab"),
    ],
)
async def test_a_self_query_retriever_filters_the_store(hash_encoder, any_index, filter, expected):
    store = M3VectorStore(M3Embeddings(encoder=hash_encoder), any_index)
    store.add_documents(DOCUMENTS)
    retriever = SelfQueryRetriever(
        vectorstore=store,
        query_constructor=RunnableLambda(lambda _: StructuredQuery("red", filter)),
        structured_query_translator=M3Translator(),
    )
    assert sorted(each.id for each in retriever.invoke("red things")) == list(expected)
    assert sorted(each.id for each in await retriever.ainvoke("red things")) == list(expected)


def test_a_value_without_order_is_refused():
    with pytest.raises(UnsupportedFilter, match="compares with a number or a string"):
        M3Translator().visit_structured_query(StructuredQuery("red", compare("gt", "year", ["x"])))

"""M3Retriever and its conversions."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from m3_integrations.core.errors import UnsupportedFilter, WrongEncoder
from m3_integrations.core.types import SearchPlan
from m3_integrations.index.filters import Field
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.langchain import M3Embeddings, M3Retriever
from m3_integrations.langchain.convert import to_document, to_passage, to_where
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.testing import HashEncoder

DOCUMENTS = [
    Document(id="cat", page_content="a red cat", metadata={"year": 2019, "lang": "en", "tags": ["pet", "red"]}),
    Document(id="dog", page_content="a blue dog", metadata={"year": 2020, "lang": "de", "tags": ["pet"]}),
    Document(id="bird", page_content="a green bird", metadata={"year": 2021, "lang": "de", "by": {"name": "Ada"}}),
    Document(id="fish", page_content="a red fish", metadata={"year": 2022, "lang": None}),
]


@pytest.fixture
def retriever(hash_encoder):
    return M3Retriever.from_documents(DOCUMENTS, encoder=hash_encoder, k=4)


def found(documents):
    return [document.id for document in documents]


def test_the_best_document_comes_first_unchanged(retriever):
    assert retriever.invoke("a red cat")[0] == DOCUMENTS[0]


def test_k_of_invoke_overrides_k_of_the_constructor(hash_encoder):
    retriever = M3Retriever.from_documents(DOCUMENTS, encoder=hash_encoder, k=2)
    assert len(retriever.invoke("a")) == 2
    assert len(retriever.invoke("a", k=3)) == 3


def test_k_below_one_is_rejected(retriever):
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retriever.invoke("a", k=0)
    with pytest.raises(ValidationError, match="greater than 0"):
        M3Retriever(index=retriever.index, encoder=retriever.encoder, k=0)


def test_filter_of_invoke_overrides_filter_of_the_constructor(hash_encoder):
    retriever = M3Retriever.from_documents(DOCUMENTS, encoder=hash_encoder, filter={"lang": "de"})
    assert set(found(retriever.invoke("a red cat"))) == {"dog", "bird"}
    assert found(retriever.invoke("a red cat", filter={"lang": "en"})) == ["cat"]
    assert len(retriever.invoke("a red cat", filter={})) == 4


@pytest.mark.parametrize(
    ("filter", "matching"),
    [
        ({"year": 2020}, {"dog"}),
        ({"year": {"$eq": 2020}}, {"dog"}),
        ({"year": {"$ne": 2020}}, {"cat", "bird", "fish"}),
        ({"year": {"$lt": 2020}}, {"cat"}),
        ({"year": {"$lte": 2020}}, {"cat", "dog"}),
        ({"year": {"$gt": 2020}}, {"bird", "fish"}),
        ({"year": {"$gte": 2020, "$lt": 2022}}, {"dog", "bird"}),
        ({"lang": {"$in": ["en", "fr"]}}, {"cat"}),
        ({"lang": {"$nin": ["en", "fr"]}}, {"dog", "bird", "fish"}),
        ({"tags": {"$contains": "pet"}}, {"cat", "dog"}),
        ({"tags": {"$exists": False}}, {"bird", "fish"}),
        ({"lang": None}, {"fish"}),
        ({"by.name": "Ada"}, {"bird"}),
        ({"lang": "de", "year": 2021}, {"bird"}),
        ({"$or": [{"lang": "en"}, {"$and": [{"lang": "de"}, {"year": {"$gt": 2020}}]}]}, {"cat", "bird"}),
        ({"$nor": [{"lang": "de"}, {"year": 2022}]}, {"cat"}),
        ({"$not": {"lang": "de", "year": 2020}}, {"cat", "bird", "fish"}),
        ({"lang": "de", "$not": {"$or": [{"year": 2020}, {"year": 2022}]}}, {"bird"}),
        ({"$and": [Field("year", ">", 2019), {"lang": "de"}]}, {"dog", "bird"}),
        (Field("year", "==", 2022), {"fish"}),
    ],
)
def test_a_filter_selects_the_matching_documents(retriever, filter, matching):
    assert set(found(retriever.invoke("a red cat", filter=filter))) == matching


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"year": {"$near": 2020}}, r"'\$near' on 'year' is not supported; use one of .*'\$gte'"),
        ({"$xor": []}, r"'\$xor' is not supported; use one of .*'\$not'"),
        ({"$and": {"year": 2020}}, r"'\$and' takes a list of filters"),
        ({"$or": ["year"]}, "a filter must be a dict or a Where, got 'year'"),
        ({"$not": 3}, "a filter must be a dict or a Where, got 3"),
        ("year = 2020", "a filter must be a dict or a Where"),
        ({"year": {"$in": "2020"}}, "'in' takes a list of values"),
    ],
)
def test_an_unsupported_filter_is_rejected(filter, message):
    with pytest.raises(UnsupportedFilter, match=message):
        to_where(filter)


async def test_async_matches_sync(retriever):
    options = {"k": 2, "filter": {"lang": "de"}}
    assert await retriever.ainvoke("blue", **options) == retriever.invoke("blue", **options)
    assert await retriever.abatch(["blue", "red"]) == retriever.batch(["blue", "red"])


def test_a_retriever_works_in_a_chain(retriever):
    chain = retriever | RunnableLambda(found)
    assert chain.invoke("a green bird")[0] == "bird"


def test_a_retriever_uses_its_plan(hash_encoder):
    lexical = SearchPlan(propose=("sparse",), weights={"sparse": 1.0})
    retriever = M3Retriever.from_documents(DOCUMENTS, encoder=hash_encoder, plan=lexical)
    assert set(found(retriever.invoke("red"))) == {"cat", "fish"}


def test_a_folder_is_searched_as_memory_is(retriever, hash_encoder, tmp_path):
    with LocalIndex.open(tmp_path / "index", hash_encoder) as index:
        ingest(hash_encoder, index, map(to_passage, DOCUMENTS))
    again = M3Retriever.from_folder(tmp_path / "index", encoder=hash_encoder)
    assert again.invoke("a red cat") == retriever.invoke("a red cat")
    again.index.close()
    with pytest.raises(WrongEncoder):
        M3Retriever.from_folder(tmp_path / "index", encoder=HashEncoder(seed=7))


def test_a_document_without_id_is_added_only_once(hash_encoder):
    retriever = M3Retriever.from_documents([Document("a red cat"), Document("a red cat")], encoder=hash_encoder)
    (only,) = retriever.invoke("cat")
    assert only.id
    assert only.page_content == "a red cat"


def test_equal_texts_with_different_metadata_are_two_documents():
    one, other = (to_passage(Document("a red cat", metadata={"page": page})) for page in (1, 2))
    assert one.id != other.id


@pytest.mark.parametrize("metadata", [{}, {"a": 1, "b": [1, {"c": None}], "d": {"e": 0.5}, "f": "日本"}])
def test_documents_round_trip_through_an_index(hash_encoder, metadata):
    document = Document(id="x", page_content="red", metadata=metadata)
    assert to_document(to_passage(document)) == document
    assert M3Retriever.from_documents([document], encoder=hash_encoder).invoke("red") == [document]


def test_an_index_of_another_encoder_is_rejected_at_the_first_use(hash_encoder, tmp_path):
    with LocalIndex.open(tmp_path / "index", hash_encoder) as index:
        retriever = M3Retriever(index=index, encoder=HashEncoder(seed=7))
        with pytest.raises(WrongEncoder, match=r"was filled by HashEncoder.*seed=0"):
            retriever.invoke("red")


def test_an_unknown_option_is_rejected(hash_encoder):
    with pytest.raises(ValidationError, match="top_k"):
        M3Retriever(index=MemoryIndex(), encoder=hash_encoder, top_k=3)


async def test_none_as_a_query_is_rejected(bge_m3):
    encoder = M3Embeddings(str(bge_m3())).encoder
    retriever = M3Retriever.from_documents(DOCUMENTS, encoder=encoder)
    with pytest.raises(TypeError, match="the text at position 0 is None"):
        retriever.invoke(None)
    with pytest.raises(TypeError, match="the text at position 0 is None"):
        await retriever.ainvoke(None)

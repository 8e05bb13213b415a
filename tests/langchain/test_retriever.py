"""M3Retriever and its conversions, at LangChain's door."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from m3_integrations.core.errors import UnsupportedFilter, WrongEncoder
from m3_integrations.core.plan import SearchPlan
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.where import Field
from m3_integrations.langchain import M3Embeddings, M3Retriever
from m3_integrations.langchain.convert import document_of, passage_of, where_of
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


def test_the_document_that_says_it_comes_first_as_it_was_given(retriever):
    assert retriever.invoke("a red cat")[0] == DOCUMENTS[0]


def test_k_of_invoke_goes_before_k_of_the_constructor(hash_encoder):
    retriever = M3Retriever.from_documents(DOCUMENTS, encoder=hash_encoder, k=2)
    assert len(retriever.invoke("a")) == 2
    assert len(retriever.invoke("a", k=3)) == 3


def test_k_is_at_least_one(retriever):
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retriever.invoke("a", k=0)
    with pytest.raises(ValidationError, match="greater than 0"):
        M3Retriever(index=retriever.index, encoder=retriever.encoder, k=0)


def test_filter_of_invoke_goes_before_filter_of_the_constructor(hash_encoder):
    retriever = M3Retriever.from_documents(DOCUMENTS, encoder=hash_encoder, filter={"lang": "de"})
    assert set(found(retriever.invoke("a red cat"))) == {"dog", "bird"}
    assert found(retriever.invoke("a red cat", filter={"lang": "en"})) == ["cat"]
    assert len(retriever.invoke("a red cat", filter={})) == 4


@pytest.mark.parametrize(
    ("filter", "passing"),
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
def test_a_filter_lets_through_what_it_says(retriever, filter, passing):
    assert set(found(retriever.invoke("a red cat", filter=filter))) == passing


@pytest.mark.parametrize(
    ("filter", "said"),
    [
        ({"year": {"$near": 2020}}, r"'\$near' on 'year' is not supported; use one of .*'\$gte'"),
        ({"$xor": []}, r"'\$xor' is not supported; use one of .*'\$not'"),
        ({"$and": {"year": 2020}}, r"'\$and' takes a list of filters"),
        ({"$or": ["year"]}, "a filter is a dict or a Where, got 'year'"),
        ({"$not": 3}, "a filter is a dict or a Where, got 3"),
        ("year = 2020", "a filter is a dict or a Where"),
        ({"year": {"$in": "2020"}}, "'in' takes a list of values"),
    ],
)
def test_a_filter_that_cannot_be_said_is_an_error_that_names_it(filter, said):
    with pytest.raises(UnsupportedFilter, match=said):
        where_of(filter)


async def test_async_gives_what_sync_gives(retriever):
    asked = {"k": 2, "filter": {"lang": "de"}}
    assert await retriever.ainvoke("blue", **asked) == retriever.invoke("blue", **asked)
    assert await retriever.abatch(["blue", "red"]) == retriever.batch(["blue", "red"])


def test_it_is_a_link_of_a_chain(retriever):
    chain = retriever | RunnableLambda(found)
    assert chain.invoke("a green bird")[0] == "bird"


def test_a_plan_is_kept_to(hash_encoder):
    lexical = SearchPlan(propose=("sparse",), weights={"sparse": 1.0})
    retriever = M3Retriever.from_documents(DOCUMENTS, encoder=hash_encoder, plan=lexical)
    assert set(found(retriever.invoke("red"))) == {"cat", "fish"}


def test_a_folder_is_found_in_as_memory_is(retriever, hash_encoder, tmp_path):
    with LocalIndex.open(tmp_path / "index", hash_encoder) as index:
        ingest(hash_encoder, index, map(passage_of, DOCUMENTS))
    again = M3Retriever.from_folder(tmp_path / "index", encoder=hash_encoder)
    assert again.invoke("a red cat") == retriever.invoke("a red cat")
    again.index.close()
    with pytest.raises(WrongEncoder):
        M3Retriever.from_folder(tmp_path / "index", encoder=HashEncoder(seed=7))


def test_a_document_without_id_is_kept_once_however_often_it_comes(hash_encoder):
    retriever = M3Retriever.from_documents([Document("a red cat"), Document("a red cat")], encoder=hash_encoder)
    (only,) = retriever.invoke("cat")
    assert only.id
    assert only.page_content == "a red cat"


def test_documents_of_equal_text_and_other_metadata_are_two():
    one, other = (passage_of(Document("a red cat", metadata={"page": page})) for page in (1, 2))
    assert one.id != other.id


@pytest.mark.parametrize("metadata", [{}, {"a": 1, "b": [1, {"c": None}], "d": {"e": 0.5}, "f": "日本"}])
def test_a_document_comes_back_from_an_index_as_it_went(hash_encoder, metadata):
    document = Document(id="x", page_content="red", metadata=metadata)
    assert document_of(passage_of(document)) == document
    assert M3Retriever.from_documents([document], encoder=hash_encoder).invoke("red") == [document]


def test_an_index_that_another_model_filled_is_refused_at_the_first_use(hash_encoder, tmp_path):
    with LocalIndex.open(tmp_path / "index", hash_encoder) as index:
        retriever = M3Retriever(index=index, encoder=HashEncoder(seed=7))
        with pytest.raises(WrongEncoder, match=r"was filled by HashEncoder.*seed=0"):
            retriever.invoke("red")


def test_an_unknown_option_is_refused(hash_encoder):
    with pytest.raises(ValidationError, match="top_k"):
        M3Retriever(index=MemoryIndex(), encoder=hash_encoder, top_k=3)


async def test_a_question_that_is_none_is_an_error(bge_m3):
    encoder = M3Embeddings(str(bge_m3())).encoder
    retriever = M3Retriever.from_documents(DOCUMENTS, encoder=encoder)
    with pytest.raises(TypeError, match="the text at position 0 is None"):
        retriever.invoke(None)
    with pytest.raises(TypeError, match="the text at position 0 is None"):
        await retriever.ainvoke(None)

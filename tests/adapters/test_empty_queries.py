"""A query without content finds nothing: every retriever, store and reranker, over every index."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from m3_integrations import (
    LocalIndex,
    M3Encoder,
    MemoryIndex,
    Passage,
    QdrantIndex,
    Retriever,
    ingest,
    langchain,
    llama_index,
)
from m3_integrations.encoders.base import has_content
from m3_integrations.retrieval.reranking import rerank
from m3_integrations.testing import HashEncoder

EMPTY = ("", "   \n\t", "\u00a0\u3000", "\u200b \u200b")
TEXTS = ["the red bridge", "a green house"]


@pytest.fixture(scope="module")
def encoder(bge_m3):
    return M3Encoder.from_pretrained(str(bge_m3()), device="cpu")


@pytest.fixture(params=["memory", "local", "qdrant"])
def index(request, encoder, tmp_path):
    kinds = {
        "memory": MemoryIndex,
        "local": lambda: LocalIndex.open(tmp_path / "index", encoder),
        "qdrant": lambda: QdrantIndex.open(":memory:", "empty", encoder),
    }
    return kinds[request.param]()


@pytest.mark.parametrize("text", EMPTY)
def test_text_without_a_token_of_its_own_has_no_content(encoder, text):
    assert has_content(encoder, [text, "bridge"]) == [False, True]


@pytest.mark.parametrize("text", ["?", "…", "🌉", "a", "的", "1", "Ġ", "\u200b橋"])
def test_punctuation_emoji_and_every_letter_are_content(encoder, text):
    assert has_content(encoder, [text]) == [True]


def test_other_encoders_decide_by_visible_characters():
    assert has_content(HashEncoder(), [*EMPTY, "bridge"]) == [False] * len(EMPTY) + [True]


@pytest.mark.parametrize("text", EMPTY)
def test_a_retriever_finds_nothing(encoder, index, text):
    retriever = langchain.M3Retriever(index=index, encoder=encoder)
    ingest(encoder, index, [Passage(str(i), each) for i, each in enumerate(TEXTS)])
    assert Retriever(encoder, index).retrieve(text) == []
    assert [len(each) for each in Retriever(encoder, index).retrieve_many([text, "bridge", text], 2)] == [0, 2, 0]
    assert asyncio.run(Retriever(encoder, index).aretrieve(text)) == []
    assert retriever.invoke(text) == []
    assert asyncio.run(retriever.ainvoke(text)) == []


@pytest.mark.parametrize("text", EMPTY)
def test_a_langchain_store_finds_nothing(encoder, index, text):
    store = langchain.M3VectorStore(langchain.M3Embeddings(encoder=encoder), index)
    store.add_texts(TEXTS)
    for mode in ("dense", "sparse", "hybrid"):
        assert store.similarity_search(text, mode=mode) == []
        assert store.similarity_search_with_score(text, mode=mode) == []
        assert asyncio.run(store.asimilarity_search(text, mode=mode)) == []
    assert store.max_marginal_relevance_search(text) == []
    assert store.as_retriever().invoke(text) == []
    assert len(store.similarity_search("bridge", k=2)) == 2


@pytest.mark.parametrize("text", EMPTY)
def test_a_llama_index_store_finds_nothing(encoder, index, text):
    embedding = llama_index.M3Embedding(encoder=encoder)
    store = llama_index.M3VectorStore(index, encoder=encoder)
    store.add([TextNode(text=each, embedding=embedding.get_text_embedding(each)) for each in TEXTS])
    of_text = embedding.get_query_embedding(text)
    for mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.HYBRID):
        query = VectorStoreQuery(query_embedding=of_text, query_str=text, similarity_top_k=2, mode=mode)
        assert store.query(query).ids == []
        assert asyncio.run(store.aquery(query)).ids == []
    retriever = llama_index.M3Retriever(index, encoder)
    assert retriever.retrieve(text) == []
    assert asyncio.run(retriever.aretrieve(text)) == []


def test_an_embedding_of_something_else_is_searched_without_text(encoder, index):
    embedding = llama_index.M3Embedding(encoder=encoder)
    store = llama_index.M3VectorStore(index, encoder=encoder)
    store.add([TextNode(text=each, embedding=embedding.get_text_embedding(each)) for each in TEXTS])
    given = embedding.get_query_embedding("bridge")
    assert len(store.query(VectorStoreQuery(query_embedding=given, query_str="", similarity_top_k=2)).ids) == 2
    found = llama_index.M3Retriever(index, encoder).retrieve(QueryBundle("", embedding=given))
    assert len(found) == 2


@pytest.mark.parametrize("text", EMPTY)
def test_a_reranker_returns_nothing(encoder, text):
    assert rerank(encoder, text, TEXTS) == []
    assert langchain.M3Reranker(encoder=encoder).compress_documents([Document(each) for each in TEXTS], text) == []
    nodes = [NodeWithScore(node=TextNode(text=each)) for each in TEXTS]
    assert llama_index.M3Rerank(encoder=encoder).postprocess_nodes(nodes, query_str=text) == []

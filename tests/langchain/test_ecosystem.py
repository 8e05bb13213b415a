"""M3 components in the chains, callbacks and indexing of langchain-core."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableParallel, RunnablePassthrough

from m3_integrations.langchain import M3Embeddings, M3Reranker, M3Retriever, M3VectorStore
from m3_integrations.langchain.convert import to_passage
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Retriever
from tests.langchain.conftest import DOCUMENTS, TEXTS, Events


def ids(documents):
    return [document.id for document in documents]


# Runnables


def test_config_reaches_the_callbacks(retriever):
    events = Events()
    config = {"callbacks": [events], "tags": ["ours"], "metadata": {"user": "ada"}}
    found = retriever.invoke("a red cat", config)
    assert events.seen == [("start", "a red cat"), ("end", ids(found))]
    assert "ours" in events.tags[0]
    assert events.metadata[0]["user"] == "ada"


async def test_async_callbacks_get_the_same_events_and_errors(retriever):
    events = Events()
    found = await retriever.ainvoke("a red cat", {"callbacks": [events]})
    with pytest.raises(ValueError, match="k must be at least 1"):
        await retriever.ainvoke("a red cat", {"callbacks": [events]}, k=0)
    assert events.seen == [
        ("start", "a red cat"),
        ("end", ids(found)),
        ("start", "a red cat"),
        ("error", ValueError),
    ]


def test_batch_keeps_order_and_max_concurrency(retriever):
    queries = ["a red cat", "a blue dog", "a green bird"]
    expected = [retriever.invoke(query) for query in queries]
    assert retriever.batch(queries) == expected
    assert retriever.batch(queries, {"max_concurrency": 1}) == expected
    assert [found for _, found in sorted(retriever.batch_as_completed(queries))] == expected


def test_k_is_configurable_at_run_time(retriever, counting):
    configurable = retriever.configurable_fields(k=ConfigurableField(id="k"))
    assert len(configurable.invoke("a red cat")) == 2
    assert len(configurable.invoke("a red cat", {"configurable": {"k": 4}})) == 4
    assert counting.queries


async def test_concurrent_queries_are_micro_batched(store, retriever, counting):
    queries = [f"{color} {animal}" for color in ("red", "blue") for animal in ("cat", "dog", "bird", "fish")] * 4
    for ask in (
        retriever.ainvoke,
        store.asimilarity_search,
        store.as_retriever().ainvoke,
        store.embedding.aembed_query,
    ):
        alone = [await ask(query) for query in queries]
        counting.queries.clear()
        assert await asyncio.gather(*map(ask, queries)) == alone
        assert sorted(text for texts in counting.queries for text in texts) == sorted(queries)
        assert len(counting.queries) < len(queries) / 2


async def test_a_reranker_works_in_a_chain(retriever, counting):
    reranker = M3Reranker(encoder=counting, mode="multi_vector", top_n=1)
    chain = RunnableParallel(query=RunnablePassthrough(), documents=retriever) | reranker
    expected = reranker.compress_documents(retriever.invoke("a red cat"), "a red cat")
    assert chain.invoke("a red cat") == expected
    assert await chain.ainvoke("a red cat") == expected
    assert chain.batch(["a red cat"] * 2) == await chain.abatch(["a red cat"] * 2) == [expected] * 2
    assert list(chain.stream("a red cat")) == [expected]
    events = [event async for event in chain.astream_events("a red cat", {"tags": ["ours"]}, version="v2")]
    (end,) = [each for each in events if each["name"] == "M3Reranker" and each["event"] == "on_chain_end"]
    assert end["data"]["output"] == expected
    assert "ours" in end["tags"]


async def test_a_reranker_rejects_other_inputs_with_a_fix(counting):
    reranker = M3Reranker(encoder=counting)
    for wrong in ("a red cat", {"query": "a red cat"}, DOCUMENTS):
        with pytest.raises(
            ValueError, match=r"put RunnableParallel\(query=RunnablePassthrough\(\), documents=retriever\)"
        ):
            reranker.invoke(wrong)
    with pytest.raises(ValueError, match="a dict of query and documents"):
        await reranker.ainvoke("a red cat")


def test_a_rerankers_settings_are_configurable_at_run_time(counting):
    reranker = M3Reranker(encoder=counting, top_n=1).configurable_fields(top_n=ConfigurableField(id="n"))
    found = {"query": "red", "documents": DOCUMENTS}
    assert len(reranker.invoke(found)) == 1
    assert len(reranker.invoke(found, {"configurable": {"n": 3}})) == 3


def answering(retriever, answers=("The cat is red.",)):
    """Build a chain that maps a question to {"context": documents, "answer": text}."""
    prompt = ChatPromptTemplate.from_template("{context}\n\n{question}")
    answer = prompt | FakeListChatModel(responses=list(answers)) | StrOutputParser()
    found = RunnableParallel(context=retriever, question=RunnablePassthrough())
    return found.assign(answer=answer)


async def test_a_chain_with_a_retriever_can_be_streamed(retriever):
    chain = answering(retriever)
    received = {"context": [], "answer": ""}
    for chunk in chain.stream("a red cat"):
        received["context"] = chunk.get("context", received["context"])
        received["answer"] += chunk.get("answer", "")
    assert received == {"context": retriever.invoke("a red cat"), "answer": "The cat is red."}
    pieces = [chunk["answer"] async for chunk in chain.astream("a red cat") if "answer" in chunk]
    assert "".join(pieces) == "The cat is red."
    assert len(pieces) > 1


async def test_chain_events_name_the_retriever_and_its_documents(retriever):
    events = [event async for event in answering(retriever).astream_events("a red cat", version="v2")]
    (end,) = [event for event in events if event["event"] == "on_retriever_end"]
    assert end["name"] == "M3Retriever"
    assert ids(end["data"]["output"]) == ids(retriever.invoke("a red cat"))


# The indexing API


def records():
    manager = InMemoryRecordManager(namespace="m3")
    manager.create_schema()
    return manager


def test_indexing_skips_replaces_and_deletes_documents(counting, any_index):
    store, manager = M3VectorStore(M3Embeddings(encoder=counting), any_index), records()
    documents = [Document(text, metadata={"source": f"s{i}", "by": {"n": [i]}}) for i, text in enumerate(TEXTS)]

    def run(documents, cleanup):
        done = index(documents, manager, store, cleanup=cleanup, source_id_key="source", key_encoder="sha256")
        return done["num_added"], done["num_updated"], done["num_skipped"], done["num_deleted"]

    assert run(documents, "full") == (5, 0, 0, 0)
    counting.passages.clear()
    assert run(documents, "full") == (0, 0, 5, 0)
    assert counting.passages == []
    changed = [Document("a yellow cat", metadata=documents[0].metadata), *documents[1:]]
    assert run(changed, "incremental")[0::3] == (1, 1)
    assert run(changed[:2], "full")[2:] == (2, 3)
    assert {each.page_content for each in store.similarity_search("cat", k=9)} == {"a yellow cat", "a blue dog"}
    assert store.similarity_search("dog", k=1)[0].metadata == documents[1].metadata


async def test_async_indexing_works(counting, any_index):
    store, manager = M3VectorStore(M3Embeddings(encoder=counting), any_index), records()
    manager_options = {"cleanup": "full", "source_id_key": "n", "key_encoder": "sha256"}
    assert (await aindex(DOCUMENTS, manager, store, **manager_options))["num_added"] == 5
    assert (await aindex(DOCUMENTS[:1], manager, store, **manager_options))["num_deleted"] == 4
    assert [each.page_content for each in await store.asimilarity_search("cat")] == ["a red cat"]


def test_documents_of_one_adapter_are_found_through_the_others(counting, any_index):
    ingest(counting, any_index, map(to_passage, DOCUMENTS))
    expected = [match.passage.id for match in Retriever(counting, any_index).retrieve("a red cat", 4)]
    assert ids(M3VectorStore(M3Embeddings(encoder=counting), any_index).similarity_search("a red cat")) == expected
    assert ids(M3Retriever(index=any_index, encoder=counting).invoke("a red cat")) == expected

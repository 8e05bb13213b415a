"""Concurrent async queries are micro-batched, and the event loop is not blocked."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from m3_integrations.llama_index import M3Embedding, M3Index, M3Retriever, M3SparseEmbedding, M3VectorStore
from m3_integrations.testing import HashEncoder

WORDS = ["red", "blue", "green", "cat", "dog", "bird", "old", "new"]
QUESTIONS = [f"{one} {other}" for one in WORDS for other in WORDS]
NODES = [TextNode(id_=f"n{i}", text=text) for i, text in enumerate(QUESTIONS)]


class Counting(HashEncoder):
    """Encoder that counts its batches of queries and waits until its gate is open."""

    def __init__(self):
        super().__init__()
        self.passes = []
        self.gate = threading.Event()
        self.gate.set()

    def encode_queries(self, texts, modes=None, *, show_progress=False):
        self.passes.append(list(texts))
        assert self.gate.wait(10)
        return super().encode_queries(texts, modes)


@pytest.fixture
def encoder():
    return Counting()


async def together(ask):
    return await asyncio.gather(*(ask(question) for question in QUESTIONS))


async def test_64_concurrent_embeddings_equal_64_sequential_ones(encoder):
    embedding = M3Embedding(encoder=encoder)
    one_by_one = [embedding.get_query_embedding(question) for question in QUESTIONS]
    encoder.passes.clear()
    assert await together(embedding.aget_query_embedding) == one_by_one
    assert len(encoder.passes) < 16
    assert sorted(text for texts in encoder.passes for text in texts) == sorted(QUESTIONS)


async def test_concurrent_embeddings_of_a_real_model_equal_sequential_ones(bge_m3):
    embedding = M3Embedding(str(bge_m3()))
    one_by_one = [embedding.get_query_embedding(question) for question in QUESTIONS]
    assert np.allclose(await together(embedding.aget_query_embedding), one_by_one, atol=1e-6)


async def test_concurrent_sparse_embeddings_equal_sequential_ones(encoder):
    sparse = M3SparseEmbedding(encoder=encoder)
    one_by_one = [sparse.get_query_embedding(question) for question in QUESTIONS]
    encoder.passes.clear()
    assert await together(sparse.aget_query_embedding) == one_by_one
    assert len(encoder.passes) < 16


@pytest.mark.parametrize("make", ["retriever", "index", "hybrid", "sparse"])
async def test_concurrent_retrievals_are_micro_batched_and_equal_sequential_ones(encoder, make):
    if make == "retriever":
        retriever = M3Retriever.from_nodes(NODES, encoder, similarity_top_k=3)
    elif make == "index":
        retriever = M3Index(NODES, encoder=encoder).as_retriever(similarity_top_k=3)
    else:
        made = VectorStoreIndex(
            NODES,
            storage_context=StorageContext.from_defaults(vector_store=M3VectorStore(encoder=encoder)),
            embed_model=M3Embedding(encoder=encoder),
        )
        retriever = made.as_retriever(vector_store_query_mode=make, similarity_top_k=3)
    one_by_one = [retriever.retrieve(question) for question in QUESTIONS]
    assert len(encoder.passes) == len(QUESTIONS)
    encoder.passes.clear()
    assert await together(retriever.aretrieve) == one_by_one
    assert len(encoder.passes) < 16


async def test_the_event_loop_is_not_blocked_by_the_model(encoder):
    store = M3VectorStore(encoder=encoder)
    store.add(NODES)
    query = VectorStoreQuery(query_str="red cat", mode=VectorStoreQueryMode.HYBRID)
    encoder.gate.clear()
    waiting = [
        asyncio.create_task(M3Embedding(encoder=encoder).aget_query_embedding("red")),
        asyncio.create_task(store.aquery(query)),
        asyncio.create_task(M3Retriever(store.index, encoder).aretrieve("red cat")),
    ]
    for _ in range(100):
        await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    encoder.gate.set()
    embedding, result, nodes = await asyncio.gather(*waiting)
    assert embedding == HashEncoder().encode_queries(["red"]).dense[0].tolist()
    assert {*result.nodes[0].text.split()} == {*nodes[0].text.split()} == {"red", "cat"}


async def test_an_invalid_text_fails_without_failing_its_batch(bge_m3):
    embedding = M3Embedding(str(bge_m3()))
    good, bad = await asyncio.gather(
        embedding.aget_query_embedding("the bridge"), embedding._aget_query_embedding(None), return_exceptions=True
    )
    assert good == pytest.approx(embedding.get_query_embedding("the bridge"), abs=1e-6)
    assert isinstance(bad, TypeError)
    assert "the text at position 0 is None, not a string; an empty text is ''" in str(bad)

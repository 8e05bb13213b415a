"""M3SparseEmbedding: the sparse mode as a LlamaIndex sparse embedding."""

from __future__ import annotations

import pickle

import pytest
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import SparseEmbeddingEndEvent, SparseEmbeddingStartEvent
from pydantic import Field

from m3_integrations.core.errors import CheckpointError, MissingExtra, MissingMode
from m3_integrations.core.scoring import sparse_scores
from m3_integrations.llama_index import M3SparseEmbedding
from m3_integrations.testing import HashEncoder
from tests.optional import is_installed, requires

TEXTS = ["a red cat", "a blue dog", ""]


@pytest.fixture
def sparse(hash_encoder):
    return M3SparseEmbedding(encoder=hash_encoder)


def test_sparse_embeddings_map_token_ids_to_python_floats(sparse, hash_encoder):
    rows = hash_encoder.encode_passages(TEXTS).sparse
    embeddings = sparse.get_text_embedding_batch(TEXTS)
    assert embeddings == [dict(zip(row.indices.tolist(), row.data.tolist(), strict=True)) for row in rows]
    assert sparse.get_text_embedding(TEXTS[0]) == embeddings[0]
    assert {type(each) for pair in embeddings[0].items() for each in pair} == {int, float}
    assert embeddings[2] == {}


def test_the_inner_product_of_sparse_embeddings_is_the_sparse_score(sparse, hash_encoder):
    query, text = sparse.get_query_embedding("red dog"), sparse.get_text_embedding("a red cat")
    product = sum(weight * text.get(token, 0.0) for token, weight in query.items())
    expected = sparse_scores(
        hash_encoder.encode_queries(["red dog"]).sparse, hash_encoder.encode_passages(TEXTS).sparse
    )
    assert product == pytest.approx(expected[0, 0])


def test_queries_and_passages_get_their_own_prefixes(bge_m3):
    sparse = M3SparseEmbedding(str(bge_m3()), query_prefix="what ", passage_prefix="passage ")
    assert sparse.get_query_embedding("the bridge") != sparse.get_text_embedding("the bridge")


async def test_async_matches_sync(sparse):
    assert await sparse.aget_text_embedding_batch(TEXTS) == sparse.get_text_embedding_batch(TEXTS)
    assert await sparse.aget_text_embedding("red") == sparse.get_text_embedding("red")
    assert await sparse.aget_query_embedding("red") == sparse.get_query_embedding("red")


def test_qdrant_functions_return_indices_and_values(sparse):
    for batch, embed in (
        (sparse.sparse_doc_fn(TEXTS), sparse.get_text_embedding),
        (sparse.sparse_query_fn(TEXTS), sparse.get_query_embedding),
    ):
        columns, weights = batch
        assert [dict(zip(*pair, strict=True)) for pair in zip(columns, weights, strict=True)] == [
            embed(text) for text in TEXTS
        ]


@requires("llama-index-vector-stores-qdrant")
def test_the_qdrant_store_searches_by_sparse_embeddings(sparse, hash_encoder):
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    from m3_integrations.llama_index import M3Embedding

    store = QdrantVectorStore(
        "texts",
        client=QdrantClient(":memory:"),
        enable_hybrid=True,
        sparse_doc_fn=sparse.sparse_doc_fn,
        sparse_query_fn=sparse.sparse_query_fn,
    )
    made = VectorStoreIndex(
        [TextNode(text=text) for text in TEXTS[:2]],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=M3Embedding(encoder=hash_encoder),
    )
    for mode in ("sparse", "hybrid"):
        answer = made.as_retriever(vector_store_query_mode=mode, similarity_top_k=1, sparse_top_k=2).retrieve(
            "blue dog"
        )
        assert answer[0].node.get_content() == "a blue dog"


@requires("llama-index-vector-stores-milvus")
async def test_the_milvus_store_accepts_sparse_embeddings(sparse):
    from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction

    function = sparse.for_milvus()
    assert isinstance(function, BaseSparseEmbeddingFunction)
    assert function.encode_documents(TEXTS) == sparse.get_text_embedding_batch(TEXTS)
    assert function.encode_queries(["red"]) == [sparse.get_query_embedding("red")]
    assert await function.async_encode_queries(["red"]) == [sparse.get_query_embedding("red")]


@pytest.mark.skipif(is_installed("llama-index-vector-stores-milvus"), reason="LlamaIndex's Milvus store is installed")
def test_without_the_milvus_store_the_error_names_the_package(sparse):
    with pytest.raises(MissingExtra, match="pip install llama-index-vector-stores-milvus"):
        sparse.for_milvus()


def test_copies_give_the_same_weights_and_contain_no_model(bge_m3):
    sparse = M3SparseEmbedding(str(bge_m3()), max_length=64, embed_batch_size=7)
    expected = sparse.get_query_embedding("the bridge")
    pickled = pickle.dumps(sparse)
    assert len(pickled) < 4096
    for copy in (M3SparseEmbedding.from_dict(sparse.to_dict()), pickle.loads(pickled)):
        assert copy.to_dict() == sparse.to_dict()
        assert copy.get_query_embedding("the bridge") == expected


def test_a_copy_never_replaces_a_passed_encoder_by_another_model(sparse):
    with pytest.raises(CheckpointError, match="there is no folder 'encoder:"):
        M3SparseEmbedding.from_dict(sparse.to_dict()).get_query_embedding("red")


def test_a_model_without_a_sparse_head_is_rejected():
    with pytest.raises(MissingMode, match="sparse"):
        M3SparseEmbedding(encoder=HashEncoder(modes=["dense"])).get_query_embedding("red")


def test_an_unknown_setting_is_rejected():
    with pytest.raises(ValidationError, match="batch"):
        M3SparseEmbedding(batch=3)


class EventRecorder(BaseEventHandler):
    events: list = Field(default_factory=list)

    def handle(self, event, **_):
        self.events.append(event)


def test_instrumentation_gets_a_start_and_an_end_event(sparse):
    root, recorder = get_dispatcher(), EventRecorder()
    root.add_event_handler(recorder)
    try:
        embedding = sparse.get_query_embedding("red")
    finally:
        root.event_handlers.remove(recorder)
    start, end = recorder.events
    assert isinstance(start, SparseEmbeddingStartEvent)
    assert start.model_dict["class_name"] == "M3SparseEmbedding"
    assert isinstance(end, SparseEmbeddingEndEvent)
    assert end.embeddings == [embedding]

"""M3Embedding and M3VectorStore in ingestion pipelines: caches, upserts and workers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from m3_integrations.llama_index import M3Embedding, M3VectorStore
from m3_integrations.testing import HashEncoder

DOCUMENTS = [Document(id_=f"d{i}", text=f"passage {i} about the bridge", metadata={"page": i}) for i in range(6)]


@pytest.fixture
def store(index, hash_encoder):
    return M3VectorStore(index, hash_encoder)


def stored_texts(store):
    return sorted(each.get_content() for each in store.get_nodes())


def test_two_workers_give_the_same_nodes_as_one_process(bge_m3):
    nodes = [TextNode(id_=f"n{i}", text=f"passage {i} where the bridge is") for i in range(5)]
    pipeline = IngestionPipeline(transformations=[M3Embedding(str(bge_m3()), max_length=64)])
    alone = pipeline.run(nodes=[node.model_copy() for node in nodes])
    pipeline.cache.clear()
    together = pipeline.run(nodes=[node.model_copy() for node in nodes], num_workers=2)
    assert [node.node_id for node in together] == [node.node_id for node in alone]
    assert [node.get_content() for node in together] == [node.get_content() for node in alone]
    assert np.allclose([each.embedding for each in together], [each.embedding for each in alone], atol=1e-6)


def test_pickles_for_workers_contain_no_weights_and_no_cached_rows(bge_m3):
    embedding = M3Embedding(str(bge_m3()))
    store = M3VectorStore(encoder=embedding.encoder)
    embedding.get_text_embedding_batch(["passage"] * 50)
    assert len(store.recent.passages) == 1
    assert len(pickle.dumps([embedding, SentenceSplitter()])) < 16_384


def test_workers_of_one_process_share_the_weights(bge_m3):
    first, second = (pickle.loads(pickle.dumps(M3Embedding(str(bge_m3())))) for _ in range(2))
    assert first.encoder is second.encoder


def test_upserts_replace_only_changed_documents(store, hash_encoder):
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), M3Embedding(encoder=hash_encoder)],
        vector_store=store,
        docstore=SimpleDocumentStore(),
    )
    assert len(pipeline.run(documents=[each.model_copy() for each in DOCUMENTS])) == 6
    assert pipeline.run(documents=[each.model_copy() for each in DOCUMENTS]) == []
    changed = Document(id_="d2", text="another passage", metadata={"page": 2})
    (node,) = pipeline.run(documents=[*(each.model_copy() for each in DOCUMENTS[:2]), changed])
    assert node.get_content() == "another passage"
    assert len(stored_texts(store)) == 6
    assert "passage 2 about the bridge" not in stored_texts(store)


def test_upserts_and_delete_removes_missing_documents(store, hash_encoder):
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), M3Embedding(encoder=hash_encoder)],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    pipeline.run(documents=[each.model_copy() for each in DOCUMENTS])
    pipeline.run(documents=[each.model_copy() for each in DOCUMENTS[3:]])
    assert stored_texts(store) == [each.get_content() for each in DOCUMENTS[3:]]


async def test_an_async_pipeline_fills_a_store(store, hash_encoder):
    pipeline = IngestionPipeline(transformations=[M3Embedding(encoder=hash_encoder)], vector_store=store)
    await pipeline.arun(nodes=[TextNode(id_="n", text="the bridge")])
    assert stored_texts(store) == ["the bridge"]


def test_a_cached_pipeline_gives_the_same_nodes_without_the_model(hash_encoder):
    class Spent(HashEncoder):
        passes = 0

        def encode_passages(self, texts, modes=None, *, show_progress=False):
            self.passes += 1
            return super().encode_passages(texts, modes)

    encoder, cache = Spent(), IngestionCache()
    embedding = M3Embedding(encoder=encoder)
    once, again = (
        IngestionPipeline(transformations=[embedding], cache=cache).run(nodes=[TextNode(id_="n", text="red")])
        for _ in range(2)
    )
    assert once == again
    assert encoder.passes == 1


def test_the_model_of_settings_is_the_default(store, hash_encoder, monkeypatch):
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = M3Embedding(encoder=hash_encoder)
    IngestionPipeline(vector_store=store).run(documents=[each.model_copy() for each in DOCUMENTS])
    made = VectorStoreIndex.from_vector_store(store)
    answer = made.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=1).retrieve("passage 4")
    assert answer[0].node.get_content() == "passage 4 about the bridge"

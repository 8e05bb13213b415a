"""M3Embedding: the dense mode, at LlamaIndex's door."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode

from m3_integrations.core.errors import CheckpointError
from m3_integrations.llama_index import M3Embedding
from m3_integrations.testing import HashEncoder

TEXTS = ["a red cat", "a blue dog", ""]


class CountingEncoder(HashEncoder):
    """Keeps the sizes of the batches of passages."""

    def __init__(self, **options):
        super().__init__(**options)
        self.batches = []

    def encode_passages(self, texts, modes=None, *, show_progress=False):
        self.batches.append(len(texts))
        return super().encode_passages(texts, modes)


@pytest.fixture
def embedding(hash_encoder):
    return M3Embedding(encoder=hash_encoder)


def test_embeddings_are_the_encoders_dense_vectors_as_python_floats(embedding, hash_encoder):
    embeddings = embedding.get_text_embedding_batch(TEXTS)
    assert embeddings == hash_encoder.encode_passages(TEXTS).dense.tolist()
    assert embedding.get_text_embedding(TEXTS[0]) == embeddings[0]
    assert {type(number) for each in embeddings for number in each} == {float}


def test_texts_go_to_the_model_in_batches():
    encoder = CountingEncoder()
    M3Embedding(encoder=encoder).get_text_embedding_batch(["red"] * 300)
    M3Embedding(encoder=encoder, embed_batch_size=100).get_text_embedding_batch(["red"] * 250)
    assert encoder.batches == [256, 44, 100, 100, 50]


async def test_async_gives_what_sync_gives(embedding):
    assert await embedding.aget_text_embedding_batch(TEXTS) == embedding.get_text_embedding_batch(TEXTS)
    assert await embedding.aget_text_embedding("red") == embedding.get_text_embedding("red")
    assert await embedding.aget_query_embedding("red") == embedding.get_query_embedding("red")


def test_several_phrasings_of_a_question_are_averaged(embedding):
    one, other = embedding.get_query_embedding("red"), embedding.get_query_embedding("cat")
    averaged = embedding.get_agg_embedding_from_queries(["red", "cat"])
    assert averaged == pytest.approx(np.mean([one, other], axis=0).tolist())


def test_a_question_and_a_passage_have_the_prefixes_of_their_kind(bge_m3):
    model = str(bge_m3())
    plain = M3Embedding(model, query_prefix="", passage_prefix="")
    swapped = M3Embedding(model, query_prefix="red ", passage_prefix="blue ")
    assert np.allclose(swapped.get_query_embedding("cat"), plain.get_query_embedding("red cat"), atol=1e-5)
    assert np.allclose(swapped.get_text_embedding("cat"), plain.get_text_embedding("blue cat"), atol=1e-5)


def test_token_pooling_is_the_encoders_and_travels(bge_m3):
    embedding = M3Embedding(str(bge_m3()), token_pooling=3)
    copy = M3Embedding.from_dict(embedding.to_dict())
    assert embedding.encoder.token_pooling == copy.encoder.token_pooling == 3
    assert M3Embedding(str(bge_m3())).encoder.fingerprint != embedding.encoder.fingerprint


def test_a_copy_made_from_its_dict_gives_the_same_vectors(mini):
    embedding = M3Embedding(max_length=64, embed_batch_size=7)
    said = embedding.to_dict()
    assert (said["class_name"], said["model_name"], said["embed_batch_size"]) == ("M3Embedding", "m3-mini", 7)
    copy = M3Embedding.from_dict(said)
    assert copy.to_dict() == said
    assert copy.get_query_embedding("cat") == embedding.get_query_embedding("cat")


def test_a_pickled_copy_gives_the_same_vectors_and_carries_no_weights(bge_m3):
    embedding = M3Embedding(str(bge_m3()), max_length=64)
    vector = embedding.get_query_embedding("cat")
    said = pickle.dumps(embedding)
    assert len(said) < 4096
    copy = pickle.loads(said)
    assert copy.to_dict() == embedding.to_dict()
    assert copy.get_query_embedding("cat") == vector
    assert embedding.get_query_embedding("cat") == vector


def test_a_copy_without_its_encoder_fails_rather_than_take_another_model(embedding):
    for copy in (pickle.loads(pickle.dumps(embedding)), M3Embedding.from_dict(embedding.to_dict())):
        with pytest.raises(CheckpointError, match="there is no folder 'encoder:"):
            copy.get_query_embedding("cat")


def test_a_pipeline_gives_nodes_their_embeddings(embedding):
    splitter = SentenceSplitter(chunk_size=16, chunk_overlap=0)
    nodes = IngestionPipeline(transformations=[splitter, embedding]).run(documents=[Document(text="A red cat. " * 20)])
    assert len(nodes) > 1
    assert [node.embedding for node in nodes] == embedding.get_text_embedding_batch([node.text for node in nodes])


async def test_an_async_pipeline_does_as_well(embedding):
    (node,) = await IngestionPipeline(transformations=[embedding]).arun(nodes=[TextNode(text="red")])
    assert node.embedding == embedding.get_text_embedding("red")


def test_a_pipelines_cache_keeps_two_encoders_apart():
    first, second = (M3Embedding(encoder=HashEncoder(seed=seed)) for seed in (1, 2))
    pipeline = IngestionPipeline(transformations=[first])
    pipeline.run(nodes=[TextNode(id_="n", text="red")])
    again = IngestionPipeline(transformations=[second], cache=pipeline.cache)
    assert again.run(nodes=[TextNode(id_="n", text="red")])[0].embedding == second.get_text_embedding("red")


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="batch_size"):
        M3Embedding(batch_size=3)


def test_llama_indexs_own_store_finds_by_it(embedding, monkeypatch):
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = embedding
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS if text])
    assert index.as_retriever(similarity_top_k=1).retrieve("a blue dog")[0].text == "a blue dog"


def test_a_text_that_is_none_says_what_an_empty_text_is(bge_m3):
    embedding = M3Embedding(str(bge_m3()))
    for ask in (embedding.get_text_embedding, embedding.get_query_embedding):
        with pytest.raises(TypeError, match="the text at position 0 is None, not a string; an empty text is ''"):
            ask(None)

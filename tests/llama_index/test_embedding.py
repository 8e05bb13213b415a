"""M3Embedding: the dense mode as a LlamaIndex embedding model."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode, TextNode

from m3_integrations.core.errors import CheckpointError, NotPicklable
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


def test_texts_are_embedded_in_batches():
    encoder = CountingEncoder()
    M3Embedding(encoder=encoder).get_text_embedding_batch(["red"] * 300)
    M3Embedding(encoder=encoder, embed_batch_size=100).get_text_embedding_batch(["red"] * 250)
    assert encoder.batches == [256, 44, 100, 100, 50]


async def test_async_matches_sync(embedding):
    assert await embedding.aget_text_embedding_batch(TEXTS) == embedding.get_text_embedding_batch(TEXTS)
    assert await embedding.aget_text_embedding("red") == embedding.get_text_embedding("red")
    assert await embedding.aget_query_embedding("red") == embedding.get_query_embedding("red")


def test_aggregated_queries_are_averaged(embedding):
    one, other = embedding.get_query_embedding("red"), embedding.get_query_embedding("cat")
    averaged = embedding.get_agg_embedding_from_queries(["red", "cat"])
    assert averaged == pytest.approx(np.mean([one, other], axis=0).tolist())


def test_queries_and_passages_get_their_own_prefixes(bge_m3):
    model = str(bge_m3())
    plain = M3Embedding(model, query_prefix="", passage_prefix="")
    swapped = M3Embedding(model, query_prefix="red ", passage_prefix="blue ")
    assert np.allclose(swapped.get_query_embedding("cat"), plain.get_query_embedding("red cat"), atol=1e-5)
    assert np.allclose(swapped.get_text_embedding("cat"), plain.get_text_embedding("blue cat"), atol=1e-5)


def test_token_pooling_is_passed_to_the_encoder_and_to_copies(bge_m3):
    embedding = M3Embedding(str(bge_m3()), token_pooling=3)
    copy = M3Embedding.from_dict(embedding.to_dict())
    assert embedding.encoder.token_pooling == copy.encoder.token_pooling == 3
    assert M3Embedding(str(bge_m3())).encoder.fingerprint != embedding.encoder.fingerprint


def test_from_dict_of_to_dict_gives_the_same_vectors(mini):
    embedding = M3Embedding(max_length=64, embed_batch_size=7)
    data = embedding.to_dict()
    assert (data["class_name"], data["model_name"], data["embed_batch_size"]) == ("M3Embedding", "m3-mini", 7)
    copy = M3Embedding.from_dict(data)
    assert copy.to_dict() == data
    assert copy.get_query_embedding("cat") == embedding.get_query_embedding("cat")


def test_a_pickled_copy_gives_the_same_vectors_and_contains_no_weights(bge_m3):
    embedding = M3Embedding(str(bge_m3()), max_length=64)
    vector = embedding.get_query_embedding("cat")
    pickled = pickle.dumps(embedding)
    assert len(pickled) < 4096
    copy = pickle.loads(pickled)
    assert copy.to_dict() == embedding.to_dict()
    assert copy.get_query_embedding("cat") == vector
    assert embedding.get_query_embedding("cat") == vector


def test_a_copy_never_replaces_a_passed_encoder_by_another_model(embedding):
    with pytest.raises(CheckpointError, match="there is no folder 'encoder:"):
        M3Embedding.from_dict(embedding.to_dict()).get_query_embedding("cat")
    with pytest.raises(NotPicklable, match="M3Embedding cannot be pickled"):
        pickle.dumps(embedding)


def test_a_pipeline_embeds_nodes(embedding):
    splitter = SentenceSplitter(chunk_size=16, chunk_overlap=0)
    nodes = IngestionPipeline(transformations=[splitter, embedding]).run(documents=[Document(text="A red cat. " * 20)])
    assert len(nodes) > 1
    assert [node.embedding for node in nodes] == embedding.get_text_embedding_batch([node.text for node in nodes])


async def test_an_async_pipeline_embeds_nodes(embedding):
    (node,) = await IngestionPipeline(transformations=[embedding]).arun(nodes=[TextNode(text="red")])
    assert node.embedding == embedding.get_text_embedding("red")


def test_a_pipeline_cache_distinguishes_encoders():
    first, second = (M3Embedding(encoder=HashEncoder(seed=seed)) for seed in (1, 2))
    pipeline = IngestionPipeline(transformations=[first])
    pipeline.run(nodes=[TextNode(id_="n", text="red")])
    again = IngestionPipeline(transformations=[second], cache=pipeline.cache)
    assert again.run(nodes=[TextNode(id_="n", text="red")])[0].embedding == second.get_text_embedding("red")


def test_an_unknown_setting_is_rejected():
    with pytest.raises(ValidationError, match="batch_size"):
        M3Embedding(batch_size=3)


def test_simple_vector_store_searches_by_these_embeddings(embedding, monkeypatch):
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = embedding
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS if text])
    assert index.as_retriever(similarity_top_k=1).retrieve("a blue dog")[0].text == "a blue dog"


def test_none_as_a_text_is_rejected(bge_m3):
    embedding = M3Embedding(str(bge_m3()))
    for ask in (embedding.get_text_embedding, embedding.get_query_embedding):
        with pytest.raises(TypeError, match="the text at position 0 is None, not a string; an empty text is ''"):
            ask(None)


def test_a_node_parser_makes_nodes_that_the_model_reads_whole(bge_m3):
    embedding = M3Embedding(str(bge_m3()), max_length=32)
    text = " ".join(["A red cat sees the blue dog."] * 40)
    document = Document(text=text, metadata={"title": "cats"})
    nodes = embedding.node_parser(chunk_overlap=0).get_nodes_from_documents([document])
    read = [node.get_content(MetadataMode.EMBED) for node in nodes]
    assert len(nodes) > 5
    assert max(embedding.encoder.token_count(read)) <= 32
    assert " ".join(node.get_content() for node in nodes) == text


def test_a_node_parser_refuses_nodes_that_would_be_truncated(bge_m3, hash_encoder):
    folder = str(bge_m3())
    with pytest.raises(ValueError, match=r"chunk_size must be from 1 to 30 tokens, .*got 31; leave it out"):
        M3Embedding(folder, max_length=32).node_parser(chunk_size=31)
    assert M3Embedding(folder, max_length=32, window_overlap=4).node_parser(chunk_size=31).chunk_size == 31
    with pytest.raises(ValueError, match="has no tokenizer to count tokens with"):
        M3Embedding(encoder=hash_encoder).node_parser()

"""M3Embeddings: the dense mode, at LangChain's door."""

from __future__ import annotations

import asyncio
import pickle

import numpy as np
import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from m3_integrations.core.errors import CheckpointError
from m3_integrations.langchain import M3Embeddings
from m3_integrations.testing import HashEncoder

TEXTS = ["a red cat", "a blue dog", ""]


def test_vectors_are_the_encoders_dense_ones_as_python_floats(hash_encoder):
    embeddings = M3Embeddings(encoder=hash_encoder)
    vectors = embeddings.embed_documents(TEXTS)
    assert vectors == hash_encoder.encode_passages(TEXTS).dense.tolist()
    assert {type(number) for vector in [*vectors, embeddings.embed_query("cat")] for number in vector} == {float}


async def test_async_gives_what_sync_gives(hash_encoder):
    embeddings = M3Embeddings(encoder=hash_encoder)
    assert await embeddings.aembed_documents(TEXTS) == embeddings.embed_documents(TEXTS)
    assert await embeddings.aembed_query("cat") == embeddings.embed_query("cat")


def test_no_documents_give_no_vectors(hash_encoder):
    assert M3Embeddings(encoder=hash_encoder).embed_documents([]) == []


def test_a_question_and_a_passage_have_the_prefixes_of_their_kind(bge_m3):
    model = str(bge_m3())
    plain = M3Embeddings(model, query_prefix="", passage_prefix="")
    swapped = M3Embeddings(model, query_prefix="red ", passage_prefix="blue ")
    assert np.allclose(swapped.embed_query("cat"), plain.embed_query("red cat"), atol=1e-5)
    assert np.allclose(swapped.embed_documents(["cat"]), plain.embed_documents(["blue cat"]), atol=1e-5)


def test_a_pickled_copy_gives_the_same_vectors_and_carries_no_weights(bge_m3):
    embeddings = M3Embeddings(str(bge_m3()), max_length=64)
    vector = embeddings.embed_query("cat")
    said = pickle.dumps(embeddings)
    assert len(said) < 4096
    copy = pickle.loads(said)
    assert copy.model_dump() == embeddings.model_dump()
    assert copy.embed_query("cat") == vector
    assert embeddings.embed_query("cat") == vector


def test_token_pooling_is_the_encoders_and_travels(bge_m3):
    embeddings = M3Embeddings(str(bge_m3()), token_pooling=3)
    copy = pickle.loads(pickle.dumps(embeddings))
    assert embeddings.encoder.token_pooling == copy.encoder.token_pooling == 3
    assert M3Embeddings(str(bge_m3())).encoder.fingerprint != embeddings.encoder.fingerprint


def test_a_copy_without_its_encoder_fails_rather_than_take_another_model(hash_encoder):
    copy = pickle.loads(pickle.dumps(M3Embeddings(encoder=hash_encoder)))
    with pytest.raises(CheckpointError, match="there is no folder 'encoder:"):
        copy.embed_query("cat")


def test_encoders_that_differ_have_names_that_differ():
    assert M3Embeddings(encoder=HashEncoder(seed=1)).model != M3Embeddings(encoder=HashEncoder(seed=2)).model


def test_an_unknown_option_is_refused():
    with pytest.raises(ValidationError, match="batchsize"):
        M3Embeddings(batchsize=3)


def test_langchains_vector_store_finds_by_it(hash_encoder):
    store = InMemoryVectorStore(M3Embeddings(encoder=hash_encoder))
    store.add_texts(TEXTS)
    assert [each.page_content for each in store.similarity_search("a blue dog", k=1)] == ["a blue dog"]


async def test_a_text_that_is_none_is_an_error_and_fails_alone(bge_m3):
    embeddings = M3Embeddings(str(bge_m3()))
    with pytest.raises(TypeError, match="the text at position 1 is None, not a string; an empty text is ''"):
        embeddings.embed_documents(["a", None])
    cat, none, dog = await asyncio.gather(
        *map(embeddings.aembed_query, ["a red cat", None, "a blue dog"]), return_exceptions=True
    )
    assert isinstance(none, TypeError)
    assert np.allclose(
        [cat, dog], [embeddings.embed_query("a red cat"), embeddings.embed_query("a blue dog")], atol=1e-5
    )

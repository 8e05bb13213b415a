"""M3Embeddings: the dense mode as LangChain embeddings."""

from __future__ import annotations

import asyncio
import pickle
import warnings

import numpy as np
import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from m3_integrations.core.errors import CheckpointError, NotPicklable, WrongDimension
from m3_integrations.langchain import M3Embeddings, M3SparseEmbeddings
from m3_integrations.testing import HashEncoder

TEXTS = ["a red cat", "a blue dog", ""]


def test_vectors_are_the_encoders_dense_vectors_as_python_floats(hash_encoder):
    embeddings = M3Embeddings(encoder=hash_encoder)
    vectors = embeddings.embed_documents(TEXTS)
    assert vectors == hash_encoder.encode_passages(TEXTS).dense.tolist()
    assert {type(number) for vector in [*vectors, embeddings.embed_query("cat")] for number in vector} == {float}


async def test_async_matches_sync(hash_encoder):
    embeddings = M3Embeddings(encoder=hash_encoder)
    assert await embeddings.aembed_documents(TEXTS) == embeddings.embed_documents(TEXTS)
    assert await embeddings.aembed_query("cat") == embeddings.embed_query("cat")


def test_no_documents_give_no_vectors(hash_encoder):
    assert M3Embeddings(encoder=hash_encoder).embed_documents([]) == []


def test_queries_and_passages_get_their_own_prefixes(bge_m3):
    model = str(bge_m3())
    plain = M3Embeddings(model, query_prefix="", passage_prefix="")
    swapped = M3Embeddings(model, query_prefix="red ", passage_prefix="blue ")
    assert np.allclose(swapped.embed_query("cat"), plain.embed_query("red cat"), atol=1e-5)
    assert np.allclose(swapped.embed_documents(["cat"]), plain.embed_documents(["blue cat"]), atol=1e-5)


def test_a_pickled_copy_gives_the_same_vectors_and_contains_no_weights(bge_m3):
    embeddings = M3Embeddings(str(bge_m3()), max_length=64)
    vector = embeddings.embed_query("cat")
    pickled = pickle.dumps(embeddings)
    assert len(pickled) < 4096
    copy = pickle.loads(pickled)
    assert copy.model_dump() == embeddings.model_dump()
    assert copy.embed_query("cat") == vector
    assert embeddings.embed_query("cat") == vector


def test_token_pooling_is_passed_to_the_encoder_and_to_copies(bge_m3):
    embeddings = M3Embeddings(str(bge_m3()), token_pooling=3)
    copy = pickle.loads(pickle.dumps(embeddings))
    assert embeddings.encoder.token_pooling == copy.encoder.token_pooling == 3
    assert M3Embeddings(str(bge_m3())).encoder.fingerprint != embeddings.encoder.fingerprint


def test_pickling_an_encoder_without_a_name_is_refused_with_a_fix(hash_encoder):
    for component in (M3Embeddings(encoder=hash_encoder), M3SparseEmbeddings(encoder=hash_encoder)):
        with pytest.raises(NotPicklable, match=rf"{type(component).__name__} cannot be pickled: .*save it in a folder"):
            pickle.dumps(component)
    with pytest.raises(CheckpointError, match="there is no folder 'encoder:"):
        M3Embeddings(M3Embeddings(encoder=hash_encoder).model).embed_query("cat")


def test_an_encoder_read_by_name_keeps_its_name_and_options(bge_m3):
    first = M3Embeddings(str(bge_m3()), token_pooling=3)
    second = M3Embeddings(encoder=first.encoder)
    copy = pickle.loads(pickle.dumps(second))
    assert copy.model == second.model == first.model
    assert copy.token_pooling == 3
    assert copy.embed_query("a red cat") == first.embed_query("a red cat")


def test_dimensions_other_than_the_models_are_refused(hash_encoder):
    assert len(M3Embeddings(encoder=hash_encoder, dimensions=32).embed_query("red")) == 32
    with pytest.raises(WrongDimension, match=r"dimensions=8 is not available: .* gives 32 dimensions"):
        M3Embeddings(encoder=hash_encoder, dimensions=8).embed_query("red")


def test_a_text_splitter_makes_chunks_that_the_model_reads_whole(bge_m3):
    embeddings = M3Embeddings(str(bge_m3()), max_length=32)
    text = "\n\n".join(" ".join(["a red cat and the blue dog"] * n) for n in (1, 20, 3)) + "x" * 300
    splitter = pickle.loads(pickle.dumps(embeddings.text_splitter()))
    chunks = splitter.split_text(text)
    assert max(embeddings.encoder.token_count(chunks)) <= 32
    assert all(word in "".join(chunks) for word in text.split())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embeddings.embed_documents(chunks)


def test_a_text_splitter_refuses_chunks_that_would_be_truncated(bge_m3, hash_encoder):
    folder = str(bge_m3())
    with pytest.raises(
        ValueError, match=r"chunk_size must be from 1 to 30 tokens, .*got 31; leave it out, or set window"
    ):
        M3Embeddings(folder, max_length=32).text_splitter(chunk_size=31)
    assert M3Embeddings(folder, max_length=32, window_overlap=4).text_splitter(chunk_size=31)
    with pytest.raises(ValueError, match="has no tokenizer to count tokens with; pass an M3Encoder"):
        M3Embeddings(encoder=hash_encoder).text_splitter()


def test_different_encoders_have_different_names():
    assert M3Embeddings(encoder=HashEncoder(seed=1)).model != M3Embeddings(encoder=HashEncoder(seed=2)).model


def test_an_unknown_option_is_rejected():
    with pytest.raises(ValidationError, match="batchsize"):
        M3Embeddings(batchsize=3)


def test_in_memory_vector_store_searches_by_these_embeddings(hash_encoder):
    store = InMemoryVectorStore(M3Embeddings(encoder=hash_encoder))
    store.add_texts(TEXTS)
    assert [each.page_content for each in store.similarity_search("a blue dog", k=1)] == ["a blue dog"]


async def test_an_invalid_text_fails_without_failing_its_batch(bge_m3):
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

"""Clients of other libraries get the vectors of the encoder, over loopback."""

from __future__ import annotations

import numpy as np
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

TEXTS = ["the old bridge", "волга", "herons nest in tall trees"]


@pytest.fixture
def expected(hash_encoder):
    return hash_encoder.encode_passages(TEXTS).dense


async def test_langchains_client_of_openais_api(url, expected):
    embeddings = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="unused", model="any", check_embedding_ctx_length=False, max_retries=0
    )
    assert np.array_equal(embeddings.embed_documents(TEXTS), expected)
    assert np.array_equal(embeddings.embed_query(TEXTS[0]), expected[0])
    assert np.array_equal(await embeddings.aembed_documents(TEXTS), expected)


async def test_llamaindexs_client_of_openais_api(url, expected):
    embedding = OpenAILikeEmbedding(model_name="any", api_base=f"{url}/v1", api_key="unused", max_retries=0)
    assert np.array_equal(embedding.get_text_embedding_batch(TEXTS), expected)
    assert np.array_equal(embedding.get_query_embedding(TEXTS[0]), expected[0])
    assert np.array_equal(await embedding.aget_text_embedding_batch(TEXTS), expected)

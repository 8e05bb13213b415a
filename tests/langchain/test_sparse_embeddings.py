"""M3SparseEmbeddings and its forms for the partner packages."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys

import numpy as np
import pytest
from langchain_core.documents import Document

from m3_integrations.core.errors import MissingExtra, MissingMode, WrongSparseFormat
from m3_integrations.langchain import M3Embeddings, M3SparseEmbeddings
from m3_integrations.testing import HashEncoder
from tests.optional import is_installed, requires

TEXTS = ["a red cat", "a blue dog", "", "the red cat and the blue dog"]


@pytest.fixture
def sparse(hash_encoder):
    return M3SparseEmbeddings(encoder=hash_encoder)


def test_sparse_vectors_are_the_encoders_weights_as_python_numbers(sparse, hash_encoder):
    expected = hash_encoder.encode_passages(TEXTS).sparse.toarray()
    rows = sparse.embed_documents(TEXTS)
    for row, weights in zip(rows, expected, strict=True):
        assert list(row) == np.flatnonzero(weights).tolist()
        assert list(row.values()) == weights[weights > 0].tolist()
        assert {type(each) for each in row} <= {int}
        assert {type(each) for each in row.values()} <= {float}
    assert rows[2] == {}
    assert sparse.embed_documents([]) == []


async def test_async_matches_sync(sparse):
    assert await sparse.aembed_documents(TEXTS) == sparse.embed_documents(TEXTS)
    assert list(await asyncio.gather(*map(sparse.aembed_query, TEXTS))) == list(map(sparse.embed_query, TEXTS))


def test_a_pickled_copy_gives_the_same_sparse_vectors(bge_m3):
    sparse = M3SparseEmbeddings(str(bge_m3()))
    assert pickle.loads(pickle.dumps(sparse)).embed_query("a red cat") == sparse.embed_query("a red cat")


def test_a_model_without_a_sparse_head_is_rejected():
    with pytest.raises(MissingMode, match="'sparse' is not available"):
        M3SparseEmbeddings(encoder=HashEncoder(modes=("dense",))).embed_query("red")


def test_partner_packages_are_imported_at_the_first_use():
    code = "import sys, m3_integrations.langchain; print([m for m in sys.modules if 'qdrant' in m or 'milvus' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("partner", ["qdrant", "milvus"])
def test_a_missing_partner_package_is_named_with_its_install_command(sparse, partner):
    if is_installed(f"langchain-{partner}"):
        pytest.skip(f"langchain-{partner} is installed")
    with pytest.raises(
        MissingExtra, match=f"'langchain-{partner}' is not installed; run: pip install langchain-{partner}"
    ):
        getattr(sparse, f"for_{partner}")()


def test_reading_rows_as_langchain_qdrant_does_names_for_qdrant(sparse):
    with pytest.raises(WrongSparseFormat, match=r"write QdrantVectorStore\(sparse_embedding=.*for_qdrant\(\)"):
        sparse.embed_query("a red cat").indices  # noqa: B018  # the property raises


@requires("langchain-qdrant")
def test_the_qdrant_store_is_told_to_use_for_qdrant(sparse):
    from langchain_qdrant import QdrantVectorStore, RetrievalMode

    with pytest.raises(WrongSparseFormat, match="for_qdrant"):
        QdrantVectorStore.from_texts(
            TEXTS, sparse_embedding=sparse, location=":memory:", retrieval_mode=RetrievalMode.SPARSE
        )


@requires("langchain-milvus")
def test_milvus_takes_the_embeddings_themselves(sparse):
    from langchain_milvus.utils.sparse import BaseSparseEmbedding

    assert isinstance(M3SparseEmbeddings(encoder=sparse.encoder), BaseSparseEmbedding)


@requires("langchain-qdrant")
async def test_the_qdrant_store_searches_by_sparse_vectors(sparse, hash_encoder):
    from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector

    qdrant = sparse.for_qdrant()
    assert isinstance(qdrant, SparseEmbeddings)
    assert isinstance(pickle.loads(pickle.dumps(qdrant)), SparseEmbeddings)
    row = sparse.embed_query("a red cat")
    assert qdrant.embed_query("a red cat") == SparseVector(indices=list(row), values=list(row.values()))
    assert await qdrant.aembed_query("a red cat") == qdrant.embed_query("a red cat")
    assert await qdrant.aembed_documents(TEXTS) == qdrant.embed_documents(TEXTS)
    for mode in (RetrievalMode.SPARSE, RetrievalMode.HYBRID):
        store = QdrantVectorStore.from_documents(
            [Document(text) for text in TEXTS],
            M3Embeddings(encoder=hash_encoder),
            sparse_embedding=qdrant,
            retrieval_mode=mode,
            location=":memory:",
            collection_name=mode.value,
        )
        assert store.similarity_search("a blue dog", k=1)[0].page_content == "a blue dog"


@requires("langchain-milvus")
async def test_the_milvus_store_searches_by_sparse_vectors(sparse, hash_encoder, tmp_path):
    from langchain_milvus import Milvus
    from langchain_milvus.utils.sparse import BaseSparseEmbedding

    milvus = sparse.for_milvus()
    assert isinstance(milvus, BaseSparseEmbedding)
    assert isinstance(pickle.loads(pickle.dumps(milvus)), BaseSparseEmbedding)
    assert milvus.embed_query("a red cat") == sparse.embed_query("a red cat")
    assert await milvus.aembed_query("a red cat") == milvus.embed_query("a red cat")
    assert await milvus.aembed_documents(TEXTS) == milvus.embed_documents(TEXTS)
    texts = [text for text in TEXTS if text]
    store = Milvus.from_texts(
        texts,
        [M3Embeddings(encoder=hash_encoder), milvus],
        connection_args={"uri": str(tmp_path / "milvus.db")},
        vector_field=["dense", "sparse"],
        index_params=[
            {"metric_type": "IP", "index_type": "FLAT"},
            {"metric_type": "IP", "index_type": "SPARSE_INVERTED_INDEX"},
        ],
        search_params=[{"metric_type": "IP", "params": {}}] * 2,  # the store's own drop weights, which Lite refuses
    )
    found = store.similarity_search("a blue dog", k=1, ranker_type="weighted", ranker_params={"weights": [0.5, 0.5]})
    assert found[0].page_content == "a blue dog"

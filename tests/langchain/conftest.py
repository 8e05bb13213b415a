"""Documents in every kind of index, a counting encoder and recording callbacks."""

from __future__ import annotations

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document

from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.qdrant.index import QdrantIndex
from m3_integrations.langchain import M3Embeddings, M3Retriever, M3VectorStore
from m3_integrations.testing import HashEncoder

TEXTS = ["a red cat", "a blue dog", "a green bird", "the red cat and the blue dog", "nothing of the kind"]
DOCUMENTS = [Document(id=f"d{i}", page_content=text, metadata={"n": i}) for i, text in enumerate(TEXTS)]


class CountingEncoder(HashEncoder):
    """HashEncoder that records the texts it encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.passages: list[list[str]] = []
        self.queries: list[list[str]] = []

    def encode_passages(self, texts, modes=None, *, show_progress=False):
        self.passages.append(list(texts))
        return super().encode_passages(texts, modes)

    def encode_queries(self, texts, modes=None, *, show_progress=False):
        self.queries.append(list(texts))
        return super().encode_queries(texts, modes)


class Events(BaseCallbackHandler):
    """Callback handler that records events and their tags."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []
        self.tags: list[list[str]] = []
        self.metadata: list[dict[str, object]] = []

    def on_retriever_start(self, serialized, query, *, tags=None, metadata=None, **kwargs):
        self.seen.append(("start", query))
        self.tags.append(tags or [])
        self.metadata.append(metadata or {})

    def on_retriever_end(self, documents, **kwargs):
        self.seen.append(("end", [document.id for document in documents]))

    def on_retriever_error(self, error, **kwargs):
        self.seen.append(("error", type(error)))


@pytest.fixture
def counting():
    return CountingEncoder()


@pytest.fixture(params=["memory", "local", "qdrant", "qdrant-in-memory"])
def any_index(request, tmp_path):
    """An empty index of each kind."""
    open_one = {
        "memory": MemoryIndex,
        "local": lambda: LocalIndex.open(tmp_path / "index"),
        "qdrant": lambda: QdrantIndex.open(tmp_path / "qdrant", "passages"),
        "qdrant-in-memory": lambda: QdrantIndex.open(":memory:", "passages"),
    }
    with open_one[request.param]() as opened:
        yield opened


@pytest.fixture
def store(any_index, counting):
    store = M3VectorStore(M3Embeddings(encoder=counting), any_index)
    store.add_documents(DOCUMENTS)
    return store


@pytest.fixture
def retriever(store, counting):
    return M3Retriever(index=store.index, encoder=counting, k=2)

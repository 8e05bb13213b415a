"""Fixtures with every kind of index."""

from __future__ import annotations

import pytest

from m3_integrations import LocalIndex, MemoryIndex, QdrantIndex

# A collection of Qdrant keeps itself: what LlamaIndex persists does not hold it.
persisted = pytest.mark.parametrize("index", ["memory", "local"], indirect=True)


@pytest.fixture(params=["memory", "local", "qdrant", "qdrant-in-memory"])
def index(request, tmp_path, hash_encoder):
    open_one = {
        "memory": MemoryIndex,
        "local": lambda: LocalIndex.open(tmp_path / "index", hash_encoder),
        "qdrant": lambda: QdrantIndex.open(tmp_path / "qdrant", "passages", hash_encoder),
        "qdrant-in-memory": lambda: QdrantIndex.open(":memory:", "passages", hash_encoder),
    }
    with open_one[request.param]() as opened:
        yield opened

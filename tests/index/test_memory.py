"""MemoryIndex passes the contract, of which it is also the reference."""

from __future__ import annotations

import pytest

from m3_integrations.core.types import Passage
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.testing import HashEncoder, IndexContract


class TestMemoryIndex(IndexContract):
    @pytest.fixture
    def index(self):
        with MemoryIndex() as index:
            yield index


def test_passages_added_one_by_one_are_joined_once():
    index, encoder = MemoryIndex(), HashEncoder()
    for i in range(2000):
        index.add([Passage(str(i), "red")], encoder.encode_passages(["red"]))
    assert len(index.search("dense", encoder.encode_queries(["red"]), 2000)[0]) == 2000


def test_replaced_passages_do_not_accumulate_without_searches():
    index, encoder = MemoryIndex(), HashEncoder()
    for i in range(5000):
        index.add([Passage("only", f"red {i}")], encoder.encode_passages([f"red {i % 7}"]))
    assert sum(len(chunk) for chunk in index._logs["dense"]._chunks) < 1100
    assert index.passages() == [Passage("only", "red 4999")]


def test_a_purge_frees_the_embeddings_of_deleted_passages():
    index, encoder = MemoryIndex(), HashEncoder()
    index.delete([], purge=True)
    index.add([Passage("a", "red"), Passage("b", "blue")], encoder.encode_passages(["red", "blue"]))
    index.delete(["a"], purge=True)
    assert [len(chunk) for log in index._logs.values() for chunk in log._chunks] == [1, 1, 1]
    assert index.ids() == ["b"]

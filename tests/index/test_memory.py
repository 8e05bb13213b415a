"""MemoryIndex keeps the contract, which it also judges: so here by its own arithmetic, not by itself alone."""

from __future__ import annotations

import pytest

from m3_integrations.core.texts import Passage
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.testing import HashEncoder, IndexContract


class TestMemoryIndex(IndexContract):
    @pytest.fixture
    def index(self):
        with MemoryIndex() as index:
            yield index


def test_adding_one_by_one_is_joined_once():
    index, encoder = MemoryIndex(), HashEncoder()
    for i in range(2000):
        index.add([Passage(str(i), "red")], encoder.encode_passages(["red"]))
    assert len(index.search("dense", encoder.encode_queries(["red"]), 2000)[0]) == 2000

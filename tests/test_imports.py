"""Importing is light, and each framework's door opens without the other framework."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "llama_index", "langchain_core", "faiss")


def run(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    assert run(f"import sys, m3_integrations; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


def test_values_and_indexes_need_no_framework():
    names = ("MemoryIndex", "LocalIndex", "Passage", "SearchPlan", "score")
    code = f"import sys, m3_integrations as m3; [getattr(m3, name) for name in {names}]"
    assert run(f"{code}; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
FILL = """
from m3_integrations import MemoryIndex, Passage, ingest
from m3_integrations.testing import HashEncoder
encoder, index = HashEncoder(), MemoryIndex()
ingest(encoder, index, [Passage("a", "red bridge"), Passage("b", "green house")])
"""


def test_the_llama_index_door_opens_without_langchain():
    use = """
from m3_integrations.llama_index import M3Retriever
print(M3Retriever(index=index, encoder=encoder).retrieve("green house")[0].node.node_id)
"""
    assert run(BLOCKED.format(absent=("langchain_core", "langchain")) + FILL + use) == "b"


def test_the_langchain_door_opens_without_llama_index():
    use = """
from m3_integrations.langchain import M3Retriever
print(M3Retriever(index=index, encoder=encoder).invoke("green house")[0].page_content)
"""
    assert run(BLOCKED.format(absent=("llama_index",)) + FILL + use) == "green house"


def test_a_name_that_is_not_there_is_an_attribute_error():
    import m3_integrations

    with pytest.raises(AttributeError, match="has no attribute 'M4Encoder'; it has"):
        _ = m3_integrations.M4Encoder
    assert set(m3_integrations.__all__) <= set(dir(m3_integrations))
    for name in m3_integrations.__all__:
        assert getattr(m3_integrations, name) is not None

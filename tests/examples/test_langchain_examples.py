"""The LangChain example and the pages on moving to it run as they stand."""

from __future__ import annotations

import asyncio
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGES = ["from_huggingface_embeddings.md", "from_ensemble_retriever.md"]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page, in their order."""
    said = (EXAMPLES / "migrating" / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", said, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_its_first_block_to_its_last(page, mini, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(blocks(page)) >= 2
    for block in blocks(page):
        assert "assert" in block or "print" in block
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_nothing_of_ours_that_is_not_there(page):
    import m3_integrations.langchain

    said = (EXAMPLES / "migrating" / page).read_text(encoding="utf-8")
    for name in re.findall(r"\bM3\w+", said):
        assert hasattr(m3_integrations.langchain, name)


@pytest.fixture
def example():
    return runpy.run_path(str(EXAMPLES / "langchain_chain.py"))


def test_the_chain_answers_from_the_bridge_that_was_asked_for(example, mini, capsys):
    example["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("from forth")
    assert example["ANSWER"] in lines
    assert lines[-3] == "after 1900: [('日本', datetime.date(1998, 4, 5))]"
    assert lines[-2].endswith(" tower")


def test_the_chain_runs_in_batches_and_async(example, mini):
    from m3_integrations.langchain import M3Embeddings, M3VectorStore

    chain = example["chain_over"](M3VectorStore.from_documents(example["DOCUMENTS"], M3Embeddings(encoder=mini)))
    questions = ["When was the Forth Bridge opened?", "神戸と淡路島を結ぶ橋は？"]
    batched = chain.batch(questions)
    assert [each["context"][0].id for each in batched] == ["forth", "akashi"]
    awaited = asyncio.run(chain.abatch(questions))
    assert [each["context"] for each in awaited] == [each["context"] for each in batched]

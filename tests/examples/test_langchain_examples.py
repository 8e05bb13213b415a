"""The LangChain example and the LangChain migration pages run unchanged."""

from __future__ import annotations

import asyncio
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MIGRATING = EXAMPLES.parent / "docs" / "migrating"
PAGES = ["from_huggingface_embeddings.md", "from_ensemble_retriever.md"]


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page in order."""
    output = (MIGRATING / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", output, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_migration_page_runs(page, mini, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(blocks(page)) >= 2
    for block in blocks(page):
        assert "assert" in block or "print" in block
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_a_migration_page_names_only_existing_classes(page):
    import m3_integrations.langchain

    output = (MIGRATING / page).read_text(encoding="utf-8")
    for name in re.findall(r"\bM3\w+", output):
        assert hasattr(m3_integrations.langchain, name)


@pytest.fixture
def example():
    return runpy.run_path(str(EXAMPLES / "langchain_chain.py"))


def test_the_chain_answers_from_the_right_document(example, mini, capsys):
    example["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("from forth")
    assert example["ANSWER"] in lines
    assert lines[-3] == "after 1900: [('日本', datetime.date(1998, 4, 5))]"
    assert lines[-2].endswith(" tower")


def test_the_chain_runs_in_batches_and_async(example, mini):
    from m3_integrations.langchain import M3Embeddings, M3VectorStore

    chain = example["build_chain"](M3VectorStore.from_documents(example["DOCUMENTS"], M3Embeddings(encoder=mini)))
    questions = ["When was the Forth Bridge opened?", "神戸と淡路島を結ぶ橋は？"]
    batched = chain.batch(questions)
    assert [each["context"][0].id for each in batched] == ["forth", "akashi"]
    awaited = asyncio.run(chain.abatch(questions))
    assert [each["context"] for each in awaited] == [each["context"] for each in batched]

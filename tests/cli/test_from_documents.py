"""The whole path from an empty directory: documents, search, explanations, judgements, a nudge and its revert."""

from __future__ import annotations

import pytest

from m3_integrations import LocalIndex
from m3_integrations.testing.sample_data import same_vectors
from tests.llama_index.test_documents import pdf_of
from tests.optional import requires

WORDS = ("bridge", "волга", "мост", "Brücke", "橋", "αβγ", "क्ष", "안녕", "نهر", "zebra")
PHRASES = ("where is {}", "{} please", "what about {}", "the {} query", "tell me of {}")


@pytest.fixture
def handbook(tmp_path):
    """A folder of Markdown, HTML and PDF files with thirty passages."""
    folder = tmp_path / "handbook"
    folder.mkdir()
    for number, word in enumerate(WORDS):
        (folder / f"{number}.md").write_text(f"# Chapter {number}\n\nOf the {word}, part {number}.\n", encoding="utf-8")
        page = f"<html><body><h1>Page {number}</h1><p>About {word} in {number}.</p></body></html>"
        (folder / f"{number}.html").write_text(page, encoding="utf-8")
    (folder / "paper.pdf").write_bytes(pdf_of(*(f"Page {number} of the paper." for number in range(10))))
    return folder


def write_clicks(path, passages, count):
    """Judgements by people who call passage number i "nick i"."""
    lines = []
    for i in range(count):
        number, time = i % len(passages), i // len(passages)
        lines.append(f"{PHRASES[i % len(PHRASES)].format(f'nick{number}')} {time},{passages[number]}")
    path.write_text("query,passage\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def vectors_of(folder):
    with LocalIndex.open(folder) as index:
        return index.vectors(index.ids())


@requires("llama-index-readers-file")
@requires("beautifulsoup4")
def test_every_step_from_documents_to_a_reverted_nudge(run, run_json, bge_m3, handbook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ("--model", bge_m3())
    assert run_json("index", "docs-index", "handbook", *model)["passages"] == 30
    with LocalIndex.open("docs-index") as index:
        passages = index.ids()
    assert {"handbook/0.md#1", "handbook/0.html#1", "handbook/paper.pdf#1"} <= set(passages)
    best = run_json("search", "docs-index", "the bridge", "-k", 3)["matches"][0]
    explained = run_json("explain", "docs-index", "the bridge")
    assert (explained["id"], explained["text"]) == (best["id"], best["text"])
    original = vectors_of("docs-index")

    few = write_clicks(tmp_path / "few.csv", passages, 10)
    told = run("nudge", "docs-index", few)
    assert told.exit_code == 0, told.output
    assert "10 judged questions are too few to learn from, and nothing was moved" in told.stdout
    assert "give at least 30, better 100 or more" in told.stdout
    assert same_vectors(vectors_of("docs-index"), original)

    clicks = write_clicks(tmp_path / "clicks.csv", passages, 150)
    before = run_json("eval", clicks, "--index", "docs-index")["plans"]["all"]["metrics"]["ndcg@10"]
    learned = run_json("nudge", "docs-index", clicks)
    assert learned["report"]["moved"]
    assert not any("too few" in each for each in learned["report"]["warnings"])
    assert not same_vectors(vectors_of("docs-index"), original)
    after = run_json("eval", clicks, "--index", "docs-index")
    assert after["default"] == "plan of the index"
    assert after["plans"]["plan of the index"]["metrics"]["ndcg@10"] > before

    run("nudge", "docs-index", "--revert")
    assert same_vectors(vectors_of("docs-index"), original)
    assert run_json("eval", clicks, "--index", "docs-index")["plans"]["all"]["metrics"]["ndcg@10"] == before

"""The pages are in plain American English: short sentences, the project's words, no misspellings."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from docs.generators import notebooks
from tests.docs.blocks import ROOT, read_page

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(notebooks.FOLDER.glob("*.ipynb"))]
LONGEST = 50  # words of a sentence
AVOIDED = re.compile(
    r"\b(anew|asker|beside|is asked|is to be had|ladder|lane|nobody|parcel|slack|stranger|to the bit|what is said|"
    r"whilst|utilize|simply|just)\b",
    flags=re.IGNORECASE,
)
# German and French words of examples, a file name on disk, a command, a public class.
SPELLING = [
    "--builtin",
    "clear,rare,en-GB_to_en-US",
    "--ignore-words-list",
    "als,ans,catalogue,ist,judgement,judgements,pont,reencode",
]
_NOT_PROSE = re.compile(
    r"^---\n.*?^---\n|^ *```.*?^ *```$|^\|.*?$|^<!--.*?-->$|^!?\[.*?\]\([^)]*\)$", flags=re.DOTALL | re.MULTILINE
)


def prose(text):
    """The sentences of a page, without code, tables and links' targets."""
    text = re.sub(r"`[^`\n]*`", "CODE", _NOT_PROSE.sub("\n\n", text))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    paragraphs = re.split(r"\n\s*\n|\n *(?:[-*#]|\d+\.) +", text)
    return [
        sentence for each in paragraphs for sentence in re.split(r"(?<=[.!?:;])\s+", " ".join(each.split())) if sentence
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_sentences_are_short_and_in_the_projects_words(file):
    sentences = prose(read_page(file))
    assert [sentence for sentence in sentences if len(sentence.split()) > LONGEST] == []
    assert [sentence for sentence in sentences if AVOIDED.search(sentence)] == []


def test_spelling_is_american():
    names = [str(file) for file in FILES]
    done = subprocess.run([sys.executable, "-m", "codespell_lib", *SPELLING, *names], capture_output=True, text=True)
    assert done.stdout == ""


def test_a_long_sentence_and_an_avoided_word_are_found():
    assert len(max(prose("One. " + "word " * 51 + "end."), key=len).split()) > LONGEST
    assert AVOIDED.search("It is as it was, to the bit.")

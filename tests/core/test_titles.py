"""Titles of passages."""

from __future__ import annotations

import pytest

from m3_integrations import Passage
from m3_integrations.core.titles import LONGEST, body_of, title_of


@pytest.mark.parametrize(
    ("text", "metadata", "title", "body"),
    [
        ("Göltzschtalbrücke\nSie steht im Vogtland.", {"title": "Göltzschtalbrücke"}, "Göltzschtalbrücke", "Sie steht"),
        ("# Install\n\nRun pip.", {}, "Install", "Run pip."),
        ("## Install ##\nRun pip.", {}, "Install", "Run pip."),
        ("Slicings\n********\n\nA slicing selects.", {}, "Slicings", "A slicing selects."),
        ("Run pip.", {"title": " "}, "Run pip.", "Run pip."),
        ("Run pip.", {"title": 7}, "Run pip.", "Run pip."),
        ("Run pip.", {"title": "Install"}, "Install", "Run pip."),
        ("Install\n", {"title": "Install"}, "Install", "Install"),
        ("#hash is no heading", {}, "#hash is no heading", "#hash is no heading"),
    ],
)
def test_a_title_is_that_of_the_metadata_or_the_first_heading_or_the_first_words(text, metadata, title, body):
    passage = Passage("raw-id", text, metadata)
    assert title_of(passage) == title
    assert body_of(passage).startswith(body)
    assert text.endswith(body_of(passage))


def test_first_words_are_cut_between_words():
    title = title_of(Passage("raw-id", "word, " * 40))
    assert title.endswith("word…")
    assert len(title) <= LONGEST + 1


def test_a_text_without_spaces_is_cut_too():
    assert title_of(Passage("raw-id", "橋" * 200)) == "橋" * LONGEST + "…"


def test_an_empty_text_has_an_empty_title():
    assert title_of(Passage("raw-id", "")) == ""

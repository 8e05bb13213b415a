"""Titles of passages, for people: never an id."""

from __future__ import annotations

import re

from m3_integrations.core.types import Passage

LONGEST = 80  # characters of a title made of first words
_HEADING = re.compile(
    r"\s*#{1,6}[ \t]+(?P<marked>[^\n]+?)[ \t#]*(?:\n|$)|\s*(?P<lined>[^\n]+)\n[*=~^#-]{3,}[ \t]*(?:\n|$)"
)


def title_of(passage: Passage) -> str:
    """Return the title of a passage: its metadata's, else its first heading, else its first words."""
    stated = passage.metadata.get("title")
    if isinstance(stated, str) and stated.strip():
        return " ".join(stated.split())
    heading = _HEADING.match(passage.text)
    return (heading["marked"] or heading["lined"]).strip() if heading else first_words(passage.text, LONGEST)


def body_of(passage: Passage) -> str:
    """Return the text of a passage without its title, or the text if it begins with none."""
    heading = _HEADING.match(passage.text)
    if heading:
        return passage.text[heading.end() :].lstrip()
    first, _, rest = passage.text.partition("\n")
    return rest.lstrip() if rest.strip() and " ".join(first.split()) == title_of(passage) else passage.text


def first_words(text: str, longest: int) -> str:
    """Return the beginning of a text on one line, cut between words."""
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    cut = line[: longest + 1].rpartition(" ")[0] or line[:longest]
    return f"{cut.rstrip(' ,;:')}…"

"""Highlighted words of matches: excerpts around them, colors of word pairs, shares of the modes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from m3_integrations.core.encoded import Mode
from m3_integrations.core.titles import body_of, title_of
from m3_integrations.encoders.explain import Explanation, WordMatch
from m3_integrations.encoders.words import TextSpan, words_of
from m3_integrations.retrieval.retriever import Match

HUES = 5  # colors of words on the page
FAINT = 0.55  # of the strongest match of a question; weaker ones, such as those of function words, are shown faintly
INVISIBLE = 0.15  # of the strongest match; weaker ones are not shown
EXCERPT = 200  # characters of a passage


class HighlightedText(NamedTuple):
    """A span of a text and the style of the word that it is: "" or "faint", or "m0" to "m4" for a pair of words."""

    text: str
    style: str


class WordPair(NamedTuple):
    """A word of the question and the word of the passage that it matched, in one style."""

    asked: str
    found: str
    style: str


def shares(match: Match) -> dict[Mode, float]:
    """Return the share of each mode in the score; the shares add up to 1."""
    return {mode: part / match.score if match.score else 0.0 for mode, part in match.by_mode.items()}


def word_pairs(explanation: Explanation) -> list[WordPair]:
    """Return the pairs of words that matched, in the order of the question, without the faint ones."""
    return [
        WordPair(explanation.query[slice(*match.query_at)], explanation.passage[slice(*match.passage_at)], style)
        for match, style in styled_words(explanation)
        if style != "faint"
    ]


def title_segments(match: Match, explanation: Explanation) -> list[HighlightedText]:
    """Split the title of a passage at the words that matched, if the text begins with the title."""
    title, text = title_of(match.passage), explanation.passage
    start = text.find(title, 0, len(text) - len(body_of(match.passage)))
    if start < 0:
        return [HighlightedText(title, "")]
    return split_at_words(text[: start + len(title)], passage_styles(explanation), start)


def word_segments(match: Match, explanation: Explanation) -> list[HighlightedText]:
    """Split the text of a passage, without its title, at the words that matched; joined they are the text."""
    start = len(explanation.passage) - len(body_of(match.passage))
    return split_at_words(explanation.passage, passage_styles(explanation), start)


def excerpt_segments(match: Match, explanation: Explanation) -> list[HighlightedText]:
    """Return the part of a passage's text where the strongest matches are, on about two lines."""
    text = explanation.passage
    start = len(text) - len(body_of(match.passage))
    heat = [(at, stop, value) for at, stop, value in explanation.passage_heat() if at >= start]
    starts = [start, *(_line_start(text, at, start) for at, _, _ in heat)]
    low = max(starts, key=lambda low: (sum(v for at, stop, v in heat if low <= at and stop <= low + EXCERPT), -low))
    high = len(text) if low + EXCERPT >= len(text) else _word_end(text, low + EXCERPT, low)
    dots = HighlightedText("… ", "")
    return [
        *([dots] if low > start else []),
        *split_at_words(text[:high], passage_styles(explanation), low),
        *([HighlightedText(" …", "")] if high < len(text) else []),
    ]


def _line_start(text: str, at: int, least: int) -> int:
    """Return a place a few words before a match, at the start of a sentence or word."""
    low = max(least, at - EXCERPT // 3)
    space = re.search(r"(?<=[.!?。])\s+|\s", text[low:at])
    return low if low == least or not space else low + space.end()


def _word_end(text: str, at: int, least: int) -> int:
    space = text.rfind(" ", least, at)
    return at if space < at - EXCERPT // 4 else space


def styled_words(explanation: Explanation) -> list[tuple[WordMatch, str]]:
    """Return the visible matches, each with the style of its pair."""
    words = explanation.words
    strongest = max((match.strength for match in words), default=0.0)
    visible = [match for match in words if match.strength > INVISIBLE * strongest]
    bold = [match for match in visible if match.strength >= FAINT * strongest]
    hues = {match: f"m{rank % HUES}" for rank, match in enumerate(bold)}
    return [(match, hues.get(match, "faint")) for match in visible]


def passage_styles(explanation: Explanation) -> dict[TextSpan, str]:
    """Return the style of each matched word, and of every other occurrence of it."""
    text = explanation.passage
    pairs = sorted(styled_words(explanation), key=lambda each: each[0].strength)
    by_word = {text[slice(*match.passage_at)].casefold(): style for match, style in pairs if style != "faint"}
    places = {match.passage_at: style for match, style in pairs}
    return {
        **{span: by_word[word] for span in words_of(text) if (word := text[slice(*span)].casefold()) in by_word},
        **places,
    }


def split_at_words(text: str, styles: Mapping[TextSpan, str], start: int = 0) -> list[HighlightedText]:
    """Split a text from `start` at the styled words."""
    cut, at = [], start
    for (first, stop), style in sorted(styles.items()):
        if at <= first and stop <= len(text):
            cut += [HighlightedText(text[at:first], ""), HighlightedText(text[first:stop], style)]
            at = stop
    return [segment for segment in [*cut, HighlightedText(text[at:], "")] if segment.text]

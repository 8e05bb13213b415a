"""Whole words around places of a text, for scripts with and without spaces."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal, NamedTuple

# Han, Hiragana, Thai, Lao, Burmese and Khmer are written without spaces: there, a token is the best guess at a word.
UNSPACED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u309f\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_UNSPACED = re.compile(UNSPACED)
_KATAKANA = re.compile("[\u30a0-\u30ff\uff66-\uff9f]")
_JOINERS = "_\u200c\u200d"


class TextSpan(NamedTuple):
    """A place in a text: text[start:stop]."""

    start: int
    stop: int


def word_at(text: str, start: int, stop: int) -> TextSpan | None:
    """Return the whole word around the first word character of text[start:stop]; None if there is none.

    Args:
        text: Text.
        start: First character of a token.
        stop: End of the token.
    """
    first = next((at for at in range(start, stop) if _kind(text[at])), None)
    if first is None:
        return None
    kind, left, right = _kind(text[first]), first, first + 1
    low, high = (start, stop) if kind == "unspaced" else (0, len(text))
    while left > low and _kind(text[left - 1]) == kind:
        left -= 1
    while right < high and _kind(text[right]) == kind:
        right += 1
    return TextSpan(left, right)


def words_of(text: str) -> list[TextSpan]:
    """Return the words of a text in order; in scripts without spaces, single characters."""
    words, at = [], 0
    while at < len(text):
        word = word_at(text, at, at + 1)
        if word is not None:
            words.append(word)
        at = at + 1 if word is None else word.stop
    return words


@lru_cache(4096)
def _kind(character: str) -> Literal["", "word", "unspaced", "katakana"]:
    """Return the kind of word that a character belongs to, "" for none."""
    if _UNSPACED.match(character):
        return "unspaced"
    if _KATAKANA.match(character):
        return "katakana"
    return "word" if character in _JOINERS or unicodedata.category(character)[0] in "LMN" else ""

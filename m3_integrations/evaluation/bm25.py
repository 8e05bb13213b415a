"""BM25 over the words of passages, the lexical floor of an evaluation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from m3_integrations.core.optional import import_optional
from m3_integrations.core.types import Passage
from m3_integrations.encoders.words import UNSPACED
from m3_integrations.index.base import Hit

_RUNS = re.compile(f"{UNSPACED}+|[^{UNSPACED[1:-1]}]+")


class BM25:
    """BM25 (Lucene's variant, by bm25s) over the terms of passages; see `terms_of`.

    Args:
        passages: Passages to search.

    Raises:
        MissingExtra: If bm25s is not installed.
    """

    def __init__(self, passages: Iterable[Passage]) -> None:
        bm25s: Any = import_optional("bm25s", extra="eval")
        texts = {passage.id: terms_of(passage.text) for passage in passages}
        self._ids = np.array(sorted(texts), dtype=object)
        self._index = bm25s.BM25()
        self._has_terms = any(texts.values())
        if self._has_terms:
            self._index.index([texts[id] for id in self._ids], show_progress=False)

    def search(self, query: str, k: int = 10) -> list[Hit]:
        """Find the best k passages with a term of the query, best first, ties by id.

        Args:
            query: The query.
            k: Number of passages, at least 1.

        Returns:
            At most k hits, best first.
        """
        terms = terms_of(query)
        if not self._has_terms or not terms:
            return []
        scores = np.asarray(self._index.get_scores(terms))
        best = np.argsort(-scores, kind="stable")[:k]
        return [Hit(self._ids[row], float(scores[row])) for row in best.tolist() if scores[row] > 0]


def terms_of(text: str) -> list[str]:
    """Return the words of a text without case; of scripts without spaces, such as Chinese and Thai, character bigrams.

    Args:
        text: Text.
    """
    words = unicodedata.normalize("NFKC", text).casefold().translate(_SEPARATORS).split()
    return [term for word in words for run in _RUNS.findall(word) for term in _terms_of_run(run)]


def _terms_of_run(run: str) -> list[str]:
    if len(run) == 1 or not re.match(UNSPACED, run):
        return [run]
    return [run[start : start + 2] for start in range(len(run) - 1)]


@cache
def _separated(code: int) -> str:
    """Return a letter, mark or digit itself, and a space for anything else."""
    return chr(code) if unicodedata.category(chr(code))[0] in "LMN" else " "


class _Separators:
    """Translation table of every character."""

    def __getitem__(self, code: int) -> str:
        return _separated(code)


_SEPARATORS = _Separators()

"""One passage of the page in full: its words and the heat map, its neighbors, its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from m3_integrations.core.encoded import MODES, Encoded
from m3_integrations.core.types import Passage
from m3_integrations.encoders.explain import EncodedPair, WordHeat, word_heat
from m3_integrations.encoders.words import TextSpan
from m3_integrations.retrieval.highlighting import (
    HighlightedText,
    passage_styles,
    split_at_words,
    styled_words,
    word_segments,
)
from m3_integrations.server.http.page.search import PageResult, PageSearch, can_explain, token_vectors

ROWS = 10  # words of the question in the heat map, at most
COLUMNS = 8  # words of the passage; these fit on a phone
NEIGHBORS = 5
LEVELS = 6  # of heat, 0 to 5
_COLD = 0.15  # words that match more weakly have no row or column


class HeatCell(NamedTuple):
    """How strongly two words match: a level of color from 0 to 5, and percent."""

    level: int
    percent: int


class HeatWord(NamedTuple):
    """A word of a heat map and its style."""

    text: str
    style: str


class HeatMap(NamedTuple):
    """Words of the question (rows) and of the passage (columns), and how strongly they match."""

    rows: list[HeatWord]
    columns: list[HeatWord]
    cells: list[list[HeatCell]]


@dataclass(frozen=True)
class PassageDetails:
    """A passage in full.

    Attributes:
        result: The passage with its words.
        heat: Heat map; None if the model has no late interaction, or no words match.
        neighbors: Most similar passages.
    """

    result: PageResult
    heat: HeatMap | None
    neighbors: Sequence[Passage]

    @property
    def passage(self) -> Passage:
        return self.result.passage

    @property
    def question(self) -> list[HighlightedText]:
        """The question, split at its matched words."""
        styles = {match.query_at: style for match, style in styled_words(self.result.explanation)}
        return split_at_words(self.result.explanation.query, styles)

    @property
    def text(self) -> list[HighlightedText]:
        return word_segments(self.result.match, self.result.explanation)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """Names and values of the metadata, texts as they are and anything else as JSON."""
        return [
            (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in self.passage.metadata.items()
        ]


def describe_passage(search: PageSearch, query: Encoded | None, result: PageResult) -> PassageDetails:
    """Describe a passage in full.

    Args:
        search: The search that found it.
        query: The encoded query; None without a question.
        result: The result, explained.
    """
    heat = None
    if query is not None and "multi_vector" in search.encoder.modes and can_explain(search.encoder):
        (read,) = token_vectors(search.encoder, search.index, [result.passage])
        encoder: Any = search.encoder
        words = word_heat(encoder, search.form.query, result.passage.text, encoded=EncodedPair(query, read))
        heat = heat_map(words, result)
    return PassageDetails(result, heat, find_neighbors(search, result.passage))


def heat_map(heat: WordHeat, result: PageResult) -> HeatMap | None:
    """Return the words that match most strongly, each once, in the order of their texts.

    Args:
        heat: Strengths of all pairs of words.
        result: The result whose words they are, for their styles.
    """
    question, text = result.explanation.query, result.explanation.passage
    if not heat.strengths.size:
        return None
    places = _distinct(text, heat.passage)
    strengths = np.array([heat.strengths[:, columns].max(axis=1) for columns in places.values()]).T
    columns = _strongest(strengths.max(axis=0), COLUMNS)
    if not columns:
        return None
    rows = _strongest(strengths[:, columns].max(axis=1), ROWS)
    by_word = {match.query_at: style for match, style in styled_words(result.explanation)}
    styles = {text[slice(*span)].casefold(): style for span, style in passage_styles(result.explanation).items()}
    spans = [heat.passage[positions[0]] for positions in places.values()]
    shown = [text[slice(*spans[column])] for column in columns]
    return HeatMap(
        [HeatWord(question[slice(*heat.query[row])], by_word.get(heat.query[row], "")) for row in rows],
        [HeatWord(word, styles.get(word.casefold(), "")) for word in shown],
        [[_cell(float(strengths[row, column])) for column in columns] for row in rows],
    )


def find_neighbors(search: PageSearch, passage: Passage) -> list[Passage]:
    """Find the passages whose vectors are the most similar to those of a passage.

    Args:
        search: A search of the index.
        passage: A passage of the index.
    """
    mode = next((mode for mode in MODES if mode in search.index.modes), None)
    if mode is None:
        return []
    (hits,) = search.index.search(mode, search.index.vectors([passage.id], [mode]), NEIGHBORS + 1)
    ids = [hit.id for hit in hits if hit.id != passage.id][:NEIGHBORS]
    known = search.index.content_hashes(ids)  # some may be deleted meanwhile
    return search.index.passages([id for id in ids if id in known])


def _distinct(text: str, spans: Sequence[TextSpan]) -> dict[str, list[int]]:
    """Return the positions of each different word, in the order of the first ones."""
    positions: dict[str, list[int]] = {}
    for position, span in enumerate(spans):
        positions.setdefault(text[slice(*span)].casefold(), []).append(position)
    return positions


def _strongest(strengths: Any, most: int) -> list[int]:
    """Return the positions of the largest strengths, ascending."""
    order = np.argsort(-strengths, kind="stable")[:most]
    return sorted(position for position in order.tolist() if strengths[position] >= _COLD)


def _cell(strength: float) -> HeatCell:
    return HeatCell(min(LEVELS - 1, int(strength * LEVELS + 0.5)), round(100 * strength))

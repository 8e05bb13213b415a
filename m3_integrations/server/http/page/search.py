"""Search results of the page: passages with highlighted words and the part of each mode at its usual weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from m3_integrations.core.encoded import MODES, Encoded, Mode
from m3_integrations.core.errors import UnknownId
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.encoders.base import Encoder
from m3_integrations.encoders.explain import EncodedPair, Explanation, explain
from m3_integrations.index import Index
from m3_integrations.index.filters import Where
from m3_integrations.retrieval.highlighting import HighlightedText, excerpt_segments, title_segments
from m3_integrations.retrieval.retriever import Match, Retriever
from m3_integrations.server.http.page.form import SearchForm

FOUND = 30  # results that the sliders can rank again without a request
SHOWN = 10
EXPLAINED = 10  # results whose words are compared by the model; the others show equal words
USUAL = 100  # percent


class ModeSlider(NamedTuple):
    """The weight of a mode in percent of `base`, its usual weight."""

    mode: Mode
    base: float
    percent: int
    default: int


class PageResult(NamedTuple):
    """A result: the passage found, its words, and the part of each mode in its score at the usual weights."""

    match: Match
    explanation: Explanation
    parts: Mapping[Mode, float]

    @property
    def passage(self) -> Passage:
        return self.match.passage

    @property
    def title(self) -> list[HighlightedText]:
        return title_segments(self.match, self.explanation)

    @property
    def excerpt(self) -> list[HighlightedText]:
        return excerpt_segments(self.match, self.explanation)


@dataclass(frozen=True)
class PageSearch:
    """A search of one index for the page.

    Args:
        encoder: Encoder of the index.
        index: The index.
        form: State of the page.
    """

    encoder: Encoder
    index: Index
    form: SearchForm

    @property
    def sliders(self) -> list[ModeSlider]:
        """A slider for each mode that encoder and index have."""
        usual = self._usual_weights()
        stated = self.form.percents or {}
        recommended = self.encoder.weights
        return [
            ModeSlider(mode, usual.get(mode) or recommended.get(mode) or 1.0, stated.get(mode, default), default)
            for mode in MODES
            if mode in self.encoder.modes & self.index.modes
            for default in [USUAL if usual.get(mode) else 0]
        ]

    def retriever(self) -> Retriever:
        """Return a retriever with the plan of the index, or with the weights of the sliders if one was moved."""
        usual = Retriever(self.encoder, self.index)
        if all(slider.percent == slider.default for slider in self.sliders):
            return usual
        available = self.encoder.modes & self.index.modes
        plan = SearchPlan(
            propose=tuple(mode for mode in usual.plan.propose if mode in available) or tuple(available),
            candidates=usual.plan.candidates,
            weights={slider.mode: slider.base * slider.percent / USUAL for slider in self.sliders},
            sparse_score=usual.sparse_score,
            fusion=usual.fusion,
        )
        return Retriever(self.encoder, self.index, plan)

    def find(self, query: Encoded, where: Where | None) -> list[PageResult]:
        """Find passages, best first.

        Args:
            query: The encoded query, in every mode of the encoder.
            where: Metadata filter.
        """
        if not any(slider.percent for slider in self.sliders):
            return []
        retriever = self.retriever()
        (matches,) = retriever.retrieve_encoded(query, FOUND, where)
        parts = self._parts(retriever, query, matches)
        return [
            PageResult(match, self.equal_words(match.passage), part) for match, part in zip(matches, parts, strict=True)
        ]

    def explain(self, query: Encoded, results: Sequence[PageResult]) -> list[PageResult]:
        """Compare the words of the first results by the model, if it can."""
        if not can_explain(self.encoder):
            return list(results)
        first, others = results[:EXPLAINED], results[EXPLAINED:]
        tokens = token_vectors(self.encoder, self.index, [result.passage for result in first])
        encoder: Any = self.encoder
        explained = [
            result._replace(explanation=self._explanation(encoder, query, result.passage.text, read))
            for result, read in zip(first, tokens, strict=True)
        ]
        return [*explained, *others]

    def _explanation(self, encoder: Any, query: Encoded, text: str, tokens: Encoded) -> Explanation:
        """Return which words matched; the scores by mode are those of the retriever."""
        pair = EncodedPair(query, tokens)
        return explain(encoder, self.form.query, text, encoder.weights, "sum", encoded=pair)

    def equal_words(self, passage: Passage) -> Explanation:
        """Return an explanation by equal words, which needs no model."""
        return Explanation(self.form.query, passage.text, 0.0, {"sparse": 1.0}, (), ())

    def _usual_weights(self) -> Mapping[Mode, float]:
        return Retriever(self.encoder, self.index).weights if self.index.modes else {}

    def _parts(self, retriever: Retriever, query: Encoded, matches: Sequence[Match]) -> list[dict[Mode, float]]:
        """Return the score of each match by mode at the usual weights, also in modes whose slider is at 0."""
        parts: list[dict[Mode, float]] = [{} for _ in matches]
        ids = [match.passage.id for match in matches]
        for mode, base, percent, _ in self.sliders:
            if percent:
                scores = [match.by_mode.get(mode, 0.0) * USUAL / percent for match in matches]
            elif retriever.fusion == "sum":
                scaled = query.with_sparse_score(retriever.sparse_score)
                scores = [base * float(score) for score in self.index.score(mode, scaled, [ids])[0]]
            else:
                scores = [0.0] * len(matches)  # the rank in a mode without a weight is not computed
            for part, score in zip(parts, scores, strict=True):
                part[mode] = score
        return parts


def can_explain(encoder: Encoder) -> bool:
    """Return whether an encoder can compare the words of two texts."""
    return hasattr(encoder, "encode_tokens")


def token_vectors(encoder: Encoder, index: Index, passages: Sequence[Passage]) -> list[Encoded]:
    """Return each passage with one vector per token: the stored ones, or from the encoder if some are missing.

    Args:
        encoder: An encoder that can explain.
        index: The index that holds the passages.
        passages: The passages.
    """
    source: Any = encoder
    texts = [passage.text for passage in passages]
    if not texts:
        return []
    try:
        stored = index.vectors([passage.id for passage in passages]) if encoder.modes <= index.modes else None
    except UnknownId:  # deleted meanwhile
        stored = None
    if stored is None or not _has_all_tokens(source, stored, texts):
        stored = source.encode_tokens(texts)
    return [stored.take([row]) for row in range(len(texts))]


def _has_all_tokens(encoder: Any, stored: Encoded, texts: Sequence[str]) -> bool:
    """Return whether there is a vector for each token: none of them pooled."""
    if "multi_vector" not in stored.modes:
        return True
    return all(
        len(rows) == len(encoder.passage_spans(text)) for rows, text in zip(stored.multi_vector, texts, strict=True)
    )

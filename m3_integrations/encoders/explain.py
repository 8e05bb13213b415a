"""Why a passage matched: which tokens met, and how much each mode gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from m3_integrations.core.display import TextMark, html_table, marked_html
from m3_integrations.core.encoded import MODES, Array, Encoded, Ints, Mode, SparseScore
from m3_integrations.core.scoring import score_mode
from m3_integrations.encoders.words import TextSpan, word_at, words_of
from m3_integrations.models.token_pooling import Groups, groups_of, pool_tokens
from m3_integrations.models.tokenization import Span


class LexicalMatch(NamedTuple):
    """A token in both texts, and its places in them. score: the product of its weights, before the mode's weight."""

    token: str
    query_weight: float
    passage_weight: float
    score: float
    query_at: tuple[TextSpan, ...] = ()
    passage_at: tuple[TextSpan, ...] = ()


class VectorMatch(NamedTuple):
    """A query token and the passage token nearest to it; where each stands in its text.

    score: their inner product over the number of query tokens, so that all add up to the late-interaction score.
    With token pooling the inner product is that with the vector of a group of passage tokens, and the passage token is
    the one of that group which is nearest to the query token.

    strength: 0 to 1, how far the similarity stands out from the passage's mean token, times the sparse weight of the
    query token relative to the query's largest: near 0 for function words and for a nearest token that is not near.
    """

    query_token: str
    passage_token: str
    similarity: float
    score: float
    query_at: tuple[int, int]
    passage_at: tuple[int, int]
    strength: float = 1.0


class WordMatch(NamedTuple):
    """A whole word of the query and the word of the passage that it matched best, as places in their texts.

    strength: That of their tokens' strongest match, 0 to 1.
    """

    query_at: TextSpan
    passage_at: TextSpan
    strength: float


class MatchedSpans(NamedTuple):
    """The words of both texts that matched in one mode, ascending; the strongest has strength 1."""

    query: list[TextMark]
    passage: list[TextMark]


class WordHeat(NamedTuple):
    """How strongly each word of a query matches each word of a passage, by late interaction.

    query, passage: Places of the words, ascending. strengths: shape (query words, passage words), 0 to 1.
    """

    query: list[TextSpan]
    passage: list[TextSpan]
    strengths: Array


@dataclass(frozen=True)
class Explanation:
    """score is the sum of `by_mode`, each mode's score times its weight."""

    query: str
    passage: str
    score: float
    by_mode: Mapping[Mode, float]
    lexical: tuple[LexicalMatch, ...]
    late: tuple[VectorMatch, ...]

    @property
    def words(self) -> list[WordMatch]:
        """The words of the query that matched, in order; by equal words if there is no late interaction."""
        best: dict[TextSpan, WordMatch] = {}
        for match in self._late_words() if self.late else self._equal_words():
            known = best.get(match.query_at)
            if known is None or match.strength > known.strength:
                best[match.query_at] = match
        return sorted(best.values())

    @property
    def spans(self) -> dict[Mode, MatchedSpans]:
        """The words that matched, by mode; a dense vector stands for a whole text and has none."""
        spans: dict[Mode, MatchedSpans] = {}
        if "sparse" in self.by_mode:
            found = [(each.query_at, each.passage_at, each.score) for each in self.lexical]
            spans["sparse"] = MatchedSpans(
                _merge_to_words(self.query, ((at, score) for places, _, score in found for at in places)),
                _merge_to_words(self.passage, ((at, score) for _, places, score in found for at in places)),
            )
        if "multi_vector" in self.by_mode:
            strengths = [(each.query_at, each.passage_at, max(0.0, each.score) * each.strength) for each in self.late]
            spans["multi_vector"] = MatchedSpans(
                _merge_to_words(self.query, ((at, strength) for at, _, strength in strengths)),
                _merge_to_words(self.passage, ((at, strength) for _, at, strength in strengths)),
            )
        return spans

    def _repr_html_(self) -> str:
        rows = [(str(mode), f"{part:.3f}") for mode, part in self.by_mode.items()]
        texts = "".join(
            f"<p><b>{mode}</b></p><p dir='auto'>{marked_html(self.query, found.query)}</p>"
            f"<p dir='auto'>{marked_html(self.passage, found.passage)}</p>"
            for mode, found in self.spans.items()
        )
        return html_table(("score", f"{self.score:.3f}"), rows) + texts

    def passage_heat(self) -> list[tuple[int, int, float]]:
        """(start, stop, heat) of the passage's words that matched, ascending; the strongest heat is 1.

        Returns:
            Start, stop and heat of each word, ascending.
        """
        heat: dict[tuple[int, int], float] = {}
        for place, strength in self._places():
            heat[place] = max(heat.get(place, 0.0), strength)
        strongest = max(heat.values(), default=1.0) or 1.0
        return [(start, stop, warmth / strongest) for (start, stop), warmth in sorted(heat.items())]

    def _places(self) -> Iterator[tuple[tuple[int, int], float]]:
        """Yield the matched places of the passage, punctuation among them, with their strengths."""
        for match in self.late:
            place = word_at(self.passage, *match.passage_at) or match.passage_at
            if place[0] < place[1]:
                yield place, max(0.0, match.score) * match.strength
        if not self.late:
            yield from ((match.passage_at, match.strength) for match in self._equal_words())

    def _late_words(self) -> Iterator[WordMatch]:
        for match in self.late:
            query_word, passage_word = word_at(self.query, *match.query_at), word_at(self.passage, *match.passage_at)
            if query_word and passage_word:
                yield WordMatch(query_word, passage_word, max(0.0, match.score) * match.strength)

    def _equal_words(self) -> Iterator[WordMatch]:
        if "sparse" not in self.by_mode:
            return
        places = {self.passage[slice(*span)].casefold(): span for span in reversed(words_of(self.passage))}
        for span in words_of(self.query):
            if found := places.get(self.query[slice(*span)].casefold()):
                yield WordMatch(span, found, 1.0)


def _merge_to_words(text: str, places: Iterable[tuple[tuple[int, int], float]]) -> list[TextMark]:
    """Return the words around places, each with its largest strength relative to the strongest."""
    best: dict[TextSpan, float] = {}
    for (start, stop), strength in places:
        if strength > 0 and (word := word_at(text, start, stop)):
            best[word] = max(best.get(word, 0.0), strength)
    strongest = max(best.values(), default=1.0)
    return [TextMark(*word, strength / strongest) for word, strength in sorted(best.items())]


class ExplainableEncoder(Protocol):
    """What an encoder needs to be explained."""

    @property
    def modes(self) -> frozenset[Mode]: ...

    @property
    def token_pooling(self) -> int: ...

    def encode_queries(self, texts: Sequence[str]) -> Encoded: ...

    def encode_tokens(self, texts: Sequence[str]) -> Encoded: ...

    def tokens(self, ids: Sequence[int]) -> list[str]: ...

    def query_spans(self, text: str) -> list[Span]: ...

    def passage_spans(self, text: str) -> list[Span]: ...


class EncodedPair(NamedTuple):
    """A query and a passage as batches of one; the passage has one vector per token."""

    query: Encoded
    passage: Encoded


def explain(
    encoder: ExplainableEncoder,
    query: str,
    passage: str,
    weights: Mapping[Mode, float],
    sparse_score: SparseScore,
    idf: Callable[[Ints], Array] | None = None,
    *,
    encoded: EncodedPair | None = None,
) -> Explanation:
    """Say how a score comes about. Weights of modes that the encoder lacks are left out.

    Args:
        encoder: Encoder of the texts.
        query: Query.
        passage: Passage.
        weights: Mode to weight.
        sparse_score: As in `SearchPlan`.
        idf: Inverse document frequency of tokens for `sparse_score="idf"`.
        encoded: Both texts encoded; None encodes them.
    """
    query_rows, read = encoded or encode_pair(encoder, query, passage)
    encoded_query = query_rows.with_sparse_score(sparse_score)
    if idf is not None:
        encoded_query = encoded_query.with_idf(idf)
    found = _pooled(read, encoder.token_pooling)
    by_mode = {
        mode: weights[mode] * float(score_mode(mode, encoded_query, found)[0, 0])
        for mode in MODES
        if mode in encoder.modes and weights.get(mode)
    }
    return Explanation(
        query=query,
        passage=passage,
        score=sum(by_mode.values()),
        by_mode=by_mode,
        lexical=_lexical(encoder, query, passage, encoded_query, found) if "sparse" in encoder.modes else (),
        late=_late(encoder, query, passage, encoded_query, found, read) if "multi_vector" in encoder.modes else (),
    )


def encode_pair(encoder: ExplainableEncoder, query: str, passage: str) -> EncodedPair:
    """Encode a query and a passage, the passage without token pooling."""
    return EncodedPair(encoder.encode_queries([query]), encoder.encode_tokens([passage]))


def word_heat(encoder: ExplainableEncoder, query: str, passage: str, *, encoded: EncodedPair | None = None) -> WordHeat:
    """Compare every word of a query with every word of a passage.

    Args:
        encoder: Encoder with late interaction.
        query: Query.
        passage: Passage.
        encoded: Both texts encoded; None encodes them.

    Raises:
        MissingMode: If the encoder has no late interaction.
    """
    encoded_query, read = encoded or encode_pair(encoder, query, passage)
    similarities = encoded_query.multi_vector[0] @ read.multi_vector[0].T
    query_spans, passage_spans = encoder.query_spans(query), encoder.passage_spans(passage)
    importance = np.array(_importance(encoded_query, [span.id for span in query_spans]), np.float32)
    strengths = _contrasts(similarities, similarities.mean(axis=1, keepdims=True)) * importance[:, None]
    rows, columns = _words_of_spans(query, query_spans), _words_of_spans(passage, passage_spans)
    by_row = np.array([strengths[tokens].max(axis=0) for tokens in rows.values()]).reshape(len(rows), -1)
    heat = np.array([by_row[:, tokens].max(axis=1) for tokens in columns.values()]).reshape(len(columns), len(rows))
    return WordHeat(list(rows), list(columns), heat.T)


def _words_of_spans(text: str, spans: Sequence[Span]) -> dict[TextSpan, list[int]]:
    """Return the words of a text in order, each with the positions of its tokens."""
    words: dict[TextSpan, list[int]] = {}
    for position, span in enumerate(spans):
        word = word_at(text, span.start, span.stop)
        if word is not None:
            words.setdefault(word, []).append(position)
    return dict(sorted(words.items()))


def _lexical(
    encoder: ExplainableEncoder, query: str, passage: str, encoded_query: Encoded, found: Encoded
) -> tuple[LexicalMatch, ...]:
    wanted, present = (dict(zip(rows.indices, rows.data, strict=True)) for rows in (encoded_query.sparse, found.sparse))
    shared = sorted(wanted.keys() & present.keys(), key=lambda id: (-wanted[id] * present[id], id))
    query_at, passage_at = _places(encoder.query_spans(query)), _places(encoder.passage_spans(passage))
    return tuple(
        LexicalMatch(
            token,
            float(wanted[id]),
            float(present[id]),
            float(wanted[id] * present[id]),
            tuple(query_at.get(id, ())),
            tuple(passage_at.get(id, ())),
        )
        for id, token in zip(shared, encoder.tokens(shared), strict=True)
    )


def _places(spans: Sequence[Span]) -> dict[int, list[TextSpan]]:
    """Return the places of each token by its id."""
    places: dict[int, list[TextSpan]] = {}
    for span in spans:
        places.setdefault(span.id, []).append(TextSpan(span.start, span.stop))
    return places


def _pooled(read: Encoded, factor: int) -> Encoded:
    """The passage as `encode_passages` gives it."""
    if factor == 1 or "multi_vector" not in read.modes:
        return read
    return read.with_multi_vector(pool_tokens(read.multi_vector, factor))


def _late(
    encoder: ExplainableEncoder, query: str, passage: str, encoded_query: Encoded, found: Encoded, read: Encoded
) -> tuple[VectorMatch, ...]:
    tokens = read.multi_vector[0]
    groups = groups_of(tokens, encoder.token_pooling)
    similarities, places = _nearest(encoded_query.multi_vector[0], found.multi_vector[0], tokens, groups)
    contrasts = _contrasts(similarities, encoded_query.multi_vector[0] @ found.multi_vector[0].mean(axis=0))
    query_spans, passage_spans = encoder.query_spans(query), encoder.passage_spans(passage)
    query_tokens = encoder.tokens([span.id for span in query_spans])
    passage_tokens = encoder.tokens([span.id for span in passage_spans])
    importance = _importance(encoded_query, [span.id for span in query_spans])
    return tuple(
        VectorMatch(
            query_token=query_tokens[q],
            passage_token=passage_tokens[p],
            similarity=float(similarities[q]),
            score=float(similarities[q]) / len(similarities),
            query_at=(query_spans[q].start, query_spans[q].stop),
            passage_at=(passage_spans[p].start, passage_spans[p].stop),
            strength=float(contrasts[q]) * importance[q],
        )
        for q, p in enumerate(places.tolist())
    )


def _nearest(encoded_query: Array, found: Array, tokens: Array, groups: Groups) -> tuple[Array, Groups]:
    """(query tokens,) twice: the inner product with the best of the vectors found, and which of the tokens in that
    vector's group is nearest."""
    similarities = encoded_query @ found.T
    best = np.argmax(similarities, axis=1)
    within = np.where(groups == best[:, None], encoded_query @ tokens.T, -np.inf)
    return similarities.max(axis=1), np.argmax(within, axis=1)


def _contrasts(similarities: Array, means: Array) -> Array:
    """Return how far similarities stand out from the means of their query tokens, 0 to 1."""
    contrasts: Array = np.clip((similarities - means) / np.maximum(1.0 - means, 1e-6), 0.0, 1.0)
    return contrasts


def _importance(encoded_query: Encoded, ids: Sequence[int]) -> list[float]:
    """Return the sparse weight of each query token relative to the largest; 1 without sparse weights."""
    if "sparse" not in encoded_query.modes or not encoded_query.sparse.nnz:
        return [1.0] * len(ids)
    weights = dict(zip(encoded_query.sparse.indices.tolist(), encoded_query.sparse.data.tolist(), strict=True))
    largest = max(weights.values())
    return [weights.get(id, 0.0) / largest for id in ids]

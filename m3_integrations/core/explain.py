"""Why a passage matched: which tokens met, and how much each mode gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, score_mode
from m3_integrations.core.sequences import Span
from m3_integrations.core.token_pooling import Groups, groups_of, pool_tokens


class LexicalMatch(NamedTuple):
    """A token in both texts. score: the product of its weights, before the mode's weight."""

    token: str
    query_weight: float
    passage_weight: float
    score: float


class VectorMatch(NamedTuple):
    """A query token and the passage token nearest to it; where each stands in its text.

    score: their inner product over the number of query tokens, so that all add up to the late-interaction score.
    With token pooling the inner product is that with the vector of a group of passage tokens, and the passage token is
    the one of that group which is nearest to the query token.
    """

    query_token: str
    passage_token: str
    similarity: float
    score: float
    query_at: tuple[int, int]
    passage_at: tuple[int, int]


@dataclass(frozen=True)
class Explanation:
    """score is the sum of `by_mode`, each mode's score times its weight."""

    query: str
    passage: str
    score: float
    by_mode: Mapping[Mode, float]
    lexical: tuple[LexicalMatch, ...]
    late: tuple[VectorMatch, ...]

    def passage_heat(self) -> list[tuple[int, int, float]]:
        """(start, stop, heat) of the passage's matched places, ascending; the strongest heat is 1."""
        heat: dict[tuple[int, int], float] = {}
        for match in self.late:
            if match.passage_at[0] < match.passage_at[1]:
                heat[match.passage_at] = heat.get(match.passage_at, 0.0) + max(0.0, match.score)
        strongest = max(heat.values(), default=1.0) or 1.0
        return [(start, stop, warmth / strongest) for (start, stop), warmth in sorted(heat.items())]


class Explainable(Protocol):
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


def explain(encoder: Explainable, query: str, passage: str, weights: Mapping[Mode, float]) -> Explanation:
    """Encode both texts and say how their score comes about. Weights of modes that the encoder lacks are left out."""
    asked, read = encoder.encode_queries([query]), encoder.encode_tokens([passage])
    found = _pooled(read, encoder.token_pooling)
    by_mode = {
        mode: weights[mode] * float(score_mode(mode, asked, found)[0, 0])
        for mode in MODES
        if mode in encoder.modes and weights.get(mode)
    }
    return Explanation(
        query=query,
        passage=passage,
        score=sum(by_mode.values()),
        by_mode=by_mode,
        lexical=_lexical(encoder, asked, found) if "sparse" in encoder.modes else (),
        late=_late(encoder, query, passage, asked, found, read) if "multi_vector" in encoder.modes else (),
    )


def _lexical(encoder: Explainable, asked: Encoded, found: Encoded) -> tuple[LexicalMatch, ...]:
    wanted, present = (dict(zip(rows.indices, rows.data, strict=True)) for rows in (asked.sparse, found.sparse))
    shared = sorted(wanted.keys() & present.keys(), key=lambda id: (-wanted[id] * present[id], id))
    return tuple(
        LexicalMatch(token, float(wanted[id]), float(present[id]), float(wanted[id] * present[id]))
        for id, token in zip(shared, encoder.tokens(shared), strict=True)
    )


def _pooled(read: Encoded, factor: int) -> Encoded:
    """The passage as `encode_passages` gives it."""
    if factor == 1 or "multi_vector" not in read.modes:
        return read
    return read.with_multi_vector(pool_tokens(read.multi_vector, factor))


def _late(
    encoder: Explainable, query: str, passage: str, asked: Encoded, found: Encoded, read: Encoded
) -> tuple[VectorMatch, ...]:
    tokens = read.multi_vector[0]
    groups = groups_of(tokens, encoder.token_pooling)
    similarities, places = _nearest(asked.multi_vector[0], found.multi_vector[0], tokens, groups)
    query_spans, passage_spans = encoder.query_spans(query), encoder.passage_spans(passage)
    query_tokens = encoder.tokens([span.id for span in query_spans])
    passage_tokens = encoder.tokens([span.id for span in passage_spans])
    return tuple(
        VectorMatch(
            query_token=query_tokens[q],
            passage_token=passage_tokens[p],
            similarity=float(similarities[q]),
            score=float(similarities[q]) / len(similarities),
            query_at=(query_spans[q].start, query_spans[q].stop),
            passage_at=(passage_spans[p].start, passage_spans[p].stop),
        )
        for q, p in enumerate(places.tolist())
    )


def _nearest(asked: Array, found: Array, tokens: Array, groups: Groups) -> tuple[Array, Groups]:
    """(query tokens,) twice: the inner product with the best of the vectors found, and which of the tokens in that
    vector's group is nearest."""
    similarities = asked @ found.T
    best = np.argmax(similarities, axis=1)
    within = np.where(groups == best[:, None], asked @ tokens.T, -np.inf)
    return similarities.max(axis=1), np.argmax(within, axis=1)

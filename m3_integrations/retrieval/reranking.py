"""Reranking of a list of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from m3_integrations.core.encoded import MODES, Encoded, Mode, check_modes
from m3_integrations.core.scoring import score_mode, weighted_sum
from m3_integrations.core.types import SearchPlan
from m3_integrations.encoders.base import Encoder, has_content


class RerankResult(NamedTuple):
    """A text by its position in the list; `score` is the sum of the weighted scores `by_mode`."""

    position: int
    score: float
    by_mode: Mapping[Mode, float]


def weights_of(mode: Mode | Literal["hybrid"], weights: Mapping[Mode, float] | None) -> Mapping[Mode, float] | None:
    """Return the weights for `rerank` from a mode, or from weights for "hybrid".

    Raises:
        ValueError: If weights are given with a single mode, or are invalid.
    """
    if mode != "hybrid" and weights is not None:
        raise ValueError(f"weights apply to mode='hybrid', but mode is {mode!r}; leave one of them out")
    return SearchPlan(weights=weights).weights if mode == "hybrid" else {mode: 1.0}


def rerank(
    encoder: Encoder, query: str, texts: Sequence[str], weights: Mapping[Mode, float] | None = None
) -> list[RerankResult]:
    """Score texts against a query exactly.

    Args:
        encoder: Encoder.
        query: The question.
        texts: Texts to score.
        weights: Mode weights; by default the encoder's own. {"multi_vector": 1.0} ranks by one mode.

    Returns:
        Results, best first, ties by position; none for a query without content.

    Raises:
        MissingMode: If the encoder lacks a weighted mode.
    """
    weighted = {mode: weight for mode, weight in (weights or encoder.weights).items() if weight}
    modes = check_modes(weighted, MODES)
    if not texts or not has_content(encoder, [query])[0]:
        return []
    return rerank_encoded(encoder.encode_queries([query], modes), encoder.encode_passages(texts, modes), weighted)


def rerank_encoded(query: Encoded, texts: Encoded, weights: Mapping[Mode, float]) -> list[RerankResult]:
    """Score encoded texts against an encoded query exactly.

    Args:
        query: One query.
        texts: Texts to score.
        weights: Mode weights; those of 0 are not summed.

    Returns:
        Results, best first, ties by position.

    Raises:
        MissingMode: If query or texts lack a weighted mode.
    """
    weighted = {mode: weight for mode, weight in weights.items() if weight}
    scores = {mode: score_mode(mode, query, texts)[0] for mode in weighted}
    summed = [weighted_sum({mode: float(scores[mode][i]) for mode in scores}, weighted) for i in range(len(texts))]
    ranked = [RerankResult(position, total, parts) for position, (total, parts) in enumerate(summed)]
    return sorted(ranked, key=lambda each: (-each.score, each.position))

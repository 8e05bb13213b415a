"""Scoring texts that someone else found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from m3_integrations.core.encoded import MODES, Mode, check_modes, score_mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.fusion import weighted_sum
from m3_integrations.core.plan import SearchPlan


class Ranked(NamedTuple):
    """A text by its position in the caller's list. score is the sum of `by_mode`, weights included."""

    position: int
    score: float
    by_mode: Mapping[Mode, float]


def weights_of(mode: Mode | Literal["hybrid"], weights: Mapping[Mode, float] | None) -> Mapping[Mode, float] | None:
    """What `rerank` takes for the hybrid as weighed, or for one mode alone.

    Raises ValueError for weights beside a single mode, or that no plan could have.
    """
    if mode != "hybrid" and weights is not None:
        raise ValueError(f"weights weigh the hybrid, but mode is {mode!r}; leave one of them out")
    return SearchPlan(weights=weights).weights if mode == "hybrid" else {mode: 1.0}


def rerank(
    encoder: Encoder, query: str, texts: Sequence[str], weights: Mapping[Mode, float] | None = None
) -> list[Ranked]:
    """Every text with its exact score against the query, best first, ties by position.

    weights: mode -> weight; None takes the encoder's own, and `{"multi_vector": 1.0}` ranks by one mode alone.
    Raises MissingMode for a weighted mode that the encoder lacks.
    """
    weighted = {mode: weight for mode, weight in (weights or encoder.weights).items() if weight}
    modes = check_modes(weighted, MODES)
    if not texts:
        return []
    asked, found = encoder.encode_queries([query], modes), encoder.encode_passages(texts, modes)
    scores = {mode: score_mode(mode, asked, found)[0] for mode in modes}
    summed = [weighted_sum({mode: float(scores[mode][i]) for mode in scores}, weighted) for i in range(len(texts))]
    ranked = [Ranked(position, total, parts) for position, (total, parts) in enumerate(summed)]
    return sorted(ranked, key=lambda each: (-each.score, each.position))

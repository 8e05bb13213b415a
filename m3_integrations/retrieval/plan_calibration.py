"""Calibration of an index: probabilities and a threshold for the scores of its search plan, stored with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.types import Query, ScoreCalibration, SearchPlan
from m3_integrations.encoders.base import Encoder
from m3_integrations.index.base import Index
from m3_integrations.retrieval.calibration import Threshold, calibrate, fit_threshold
from m3_integrations.retrieval.retriever import Match, Retriever


@dataclass(frozen=True, repr=False)
class PlanCalibration(FieldsDisplay):
    """A calibrated search plan.

    Attributes:
        plan: The plan, with its weights and the calibration of their scores.
        threshold: Minimum score, with its precision and recall on the judged queries.
        queries: Number of judged queries.
        matches: Number of matches that they retrieved.
    """

    plan: SearchPlan
    threshold: Threshold
    queries: int
    matches: int


def calibrate_plan(
    encoder: Encoder,
    index: Index,
    queries: Sequence[Query],
    *,
    method: Literal["logistic", "isotonic"] = "logistic",
    precision: float | None = None,
    k: int = 100,
) -> PlanCalibration:
    """Fit probabilities and a threshold to judged queries, and store them with the plan of the index.

    They hold until the plan changes, such as by a nudge. `match_probabilities` gives them; `m3 search --min-relevance`,
    relevance scores in LangChain and node scores in LlamaIndex use them.

    Args:
        encoder: Encoder of the index.
        index: Index.
        queries: Judged queries; other ones than those that the plan was chosen with.
        method: "logistic" for tens of judgements and more, "isotonic" for thousands.
        precision: Least precision of the matches kept by the threshold; None for the best F1.
        k: Number of matches per query to learn from.

    Returns:
        The stored probabilities and threshold.

    Raises:
        ValueError: If no match is relevant, all are, or no threshold reaches the precision.
    """
    retriever = Retriever(encoder, index)
    found = retriever.retrieve_many([query.text for query in queries], k)
    threshold = fit_threshold(queries, found, precision=precision)
    curve = calibrate(queries, found, method)
    probability = float(np.interp(threshold.score, curve.scores, curve.probabilities))
    calibration = ScoreCalibration(curve.scores, curve.probabilities, probability)
    sparse_score = retriever.sparse_score if "sparse" in retriever.weights else None
    plan = replace(
        retriever.plan,
        weights=dict(retriever.weights),
        modes=None,
        sparse_score=sparse_score,
        calibration=calibration,
    )
    index.plan = plan
    return PlanCalibration(plan, threshold, len(queries), sum(map(len, found)))


def match_probabilities(calibration: ScoreCalibration, matches: Sequence[Match]) -> list[float]:
    """Return the probability that each match is relevant.

    Args:
        calibration: Calibration of the plan that found them, `Retriever.calibration`.
        matches: Matches.
    """
    scores = [match.score for match in matches]
    probabilities: list[float] = np.interp(scores, calibration.scores, calibration.probabilities).tolist()
    return probabilities

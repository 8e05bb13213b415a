"""Calibration: scores as probabilities of relevance, and thresholds.

A score is an inner product, and each mode has its own scale. Dense and late-interaction scores are cosines if the model
normalizes, but many models use a narrow part of the range (0.7 to 0.9 for E5). Sparse scores are sums of products of
small weights: 0.02 is normal, and 0.2 may be the maximum. `Match.by_mode` holds the weighted score of each mode, which
add up to `Match.score`. Scores rank the passages of one question; they are not comparable across questions, models,
modes or weights.

`similarity` divides a score by the weights, and `relevance` clips that to [0, 1]: enough to sort by, not a probability.
With judged questions, `calibrate` fits the probability that a match is relevant, and `fit_threshold` finds the score
from which matches are worth keeping:

    results = retriever.retrieve_many([query.text for query in queries], k=100)
    probability = calibrate(queries, results)            # probability.of(match)
    threshold = fit_threshold(queries, results, precision=0.9)
    threshold.filter(retriever.retrieve("Who built the bridge?"))

Both hold for the model, the plan and the kind of text that they were fitted on, and consider only retrieved passages; a
passage without a judgement counts as not relevant. Use other questions than those that weights were tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.encoded import Fusion, Mode
from m3_integrations.core.scoring import RANK_CONSTANT
from m3_integrations.core.types import Query
from m3_integrations.retrieval.retriever import Match

Doubles: TypeAlias = npt.NDArray[np.float64]
_PULL_TO_ZERO = 1e-6


def similarity(match: Match, weights: Mapping[Mode, float], fusion: Fusion = "sum") -> float:
    """Return the score divided by the weights of its modes: their weighted mean.

    With rank fusion it is scaled to 1 for a passage that every mode ranks first.
    """
    scale = 1 if fusion == "sum" else RANK_CONSTANT + 1
    return scale * match.score / sum(weights[mode] for mode in match.by_mode)


def relevance(match: Match, weights: Mapping[Mode, float], fusion: Fusion = "sum") -> float:
    """Return `similarity` clipped to [0, 1]; for unit dense vectors it is the cosine."""
    return min(1.0, max(0.0, similarity(match, weights, fusion)))


@dataclass(frozen=True, slots=True, repr=False)
class Calibration(FieldsDisplay):
    """The probability that a match is relevant, as a rising, piecewise linear curve over its score.

    Attributes:
        scores: Scores of the points, ascending; the curve is flat beyond them.
        probabilities: Probabilities of the points.
        modes: Modes of the scores fitted.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    modes: frozenset[Mode]

    def of(self, match: Match) -> float:
        """Return the probability that a match is relevant.

        Args:
            match: A match.

        Raises:
            ValueError: If the match was scored by other modes.
        """
        _require_modes(self.modes, match)
        return float(np.interp(match.score, self.scores, self.probabilities))


@dataclass(frozen=True, slots=True)
class Threshold:
    """A minimum score, and its effect on the judged questions, all taken together.

    Attributes:
        score: The minimum score.
        precision: Precision of the matches kept.
        recall: Recall over all relevant passages, found or not.
        modes: Modes of the scores fitted.
    """

    score: float
    precision: float
    recall: float
    modes: frozenset[Mode]

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / (self.precision + self.recall)

    def filter(self, matches: Sequence[Match]) -> list[Match]:
        """Return the matches that reach the threshold, in order.

        Args:
            matches: Matches of one question.

        Raises:
            ValueError: If a match was scored by other modes.
        """
        for match in matches:
            _require_modes(self.modes, match)
        return [match for match in matches if match.score >= self.score]


def calibrate(
    queries: Sequence[Query], found: Sequence[Sequence[Match]], method: Literal["logistic", "isotonic"] = "logistic"
) -> Calibration:
    """Fit the probability that a match is relevant.

    Args:
        queries: Judged questions.
        found: Matches of each question.
        method: "logistic" (Platt, 1999) for tens of judgements and more, "isotonic" (Zadrozny and Elkan, KDD 2002) for
            thousands.

    Returns:
        The fitted probabilities.

    Raises:
        ValueError: If no match is relevant, or all are.
    """
    judged = _judged(queries, found)
    if judged.relevant.all() or not judged.relevant.any():
        raise ValueError(
            f"of {len(judged.scores)} matches {int(judged.relevant.sum())} are relevant, and a calibration needs both "
            "kinds; retrieve more for each query (k=100), and check that its `relevant` names the ids in the index"
        )
    if method == "isotonic":
        return _isotonic(judged)
    if method == "logistic":
        return _logistic(judged)
    raise ValueError(f"the method is 'logistic' or 'isotonic', got {method!r}")


def fit_threshold(
    queries: Sequence[Query], found: Sequence[Sequence[Match]], *, precision: float | None = None
) -> Threshold:
    """Find the score from which matches are kept: the best F1, or the best recall at a given precision.

    The score is midway between the last match kept and the first one dropped.

    Args:
        queries: Judged questions.
        found: Matches of each question.
        precision: Minimum precision; None for the best F1.

    Returns:
        The threshold, with its precision and recall.

    Raises:
        ValueError: If no match is relevant, or no score reaches the precision.
    """
    judged = _judged(queries, found)
    if not judged.relevant.any():
        raise ValueError("no match is relevant; check that each query's `relevant` names the ids in the index")
    cuts = _cuts(judged)
    if precision is None:
        return max(cuts, key=lambda cut: (cut.f1 if cut.recall else 0.0, cut.score))
    precise = [cut for cut in cuts if cut.precision >= precision]
    if not precise:
        best = max(cut.precision for cut in cuts)
        raise ValueError(f"no score gives a precision of {precision}; the best of these queries is {best:.3f}")
    return max(precise, key=lambda cut: (cut.recall, cut.score))


@dataclass(frozen=True, slots=True)
class _LabeledScores:
    """Scores of matches and whether they are relevant, best first, shape (matches,)."""

    scores: Doubles
    relevant: npt.NDArray[np.bool_]
    all_relevant: int
    modes: frozenset[Mode]


def _judged(queries: Sequence[Query], found: Sequence[Sequence[Match]]) -> _LabeledScores:
    if len(queries) != len(found):
        raise ValueError(f"got {len(queries)} queries and {len(found)} lists of matches; give one list for each query")
    wanted = [{id for id, grade in query.relevant.items() if grade > 0} for query in queries]
    matches = [(match, match.passage.id in ids) for ids, each in zip(wanted, found, strict=True) for match in each]
    if not matches:
        raise ValueError("there are no matches to learn from; retrieve for the judged queries first")
    modes = frozenset(matches[0][0].by_mode)
    for match, _ in matches:
        _require_modes(modes, match)
    scores = np.array([match.score for match, _ in matches])
    order = np.argsort(-scores, kind="stable")
    relevant = np.array([is_relevant for _, is_relevant in matches])
    return _LabeledScores(scores[order], relevant[order], sum(map(len, wanted)), modes)


def _require_modes(modes: frozenset[Mode], match: Match) -> None:
    if match.by_mode.keys() != modes:
        raise ValueError(
            f"this was fitted on scores of {sorted(modes)}, and the match was scored by {sorted(match.by_mode)}; fit "
            "it on matches of the plan that it is for"
        )


def _logistic(judged: _LabeledScores) -> Calibration:
    """Fit expit(slope * z + intercept) over standardized scores z, with a slope of at least 0."""
    middle, deviation = judged.scores.mean(), judged.scores.std() or 1.0
    standard = (judged.scores - middle) / deviation
    # Platt's targets add one observation of each class, so that separable scores have a finite fit.
    ones, zeros = judged.relevant.sum(), (~judged.relevant).sum()
    targets = np.where(judged.relevant, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        logits = parameters[0] * standard + parameters[1]
        errors = expit(logits) - targets
        value = np.mean(np.logaddexp(0, logits) - targets * logits) + _PULL_TO_ZERO * parameters[0] ** 2
        return float(value), np.array([np.mean(errors * standard) + 2 * _PULL_TO_ZERO * parameters[0], errors.mean()])

    slope, intercept = minimize(loss, np.zeros(2), jac=True, bounds=[(0, None), (None, None)]).x
    center, width = (-intercept / slope, 12 / slope) if slope > 1e-9 else (0.0, 1.0)
    points = np.linspace(-1, 1, 257) * width + center  # the curve is flat within 1e-5 beyond
    return _curve(points * deviation + middle, expit(slope * points + intercept), judged.modes)


def _isotonic(judged: _LabeledScores) -> Calibration:
    """Fit the rising step function closest to the judgements; equal scores share a step."""
    scores, inverse = np.unique(judged.scores, return_inverse=True)
    counts = np.bincount(inverse)
    shares = np.bincount(inverse, weights=judged.relevant) / counts
    return _curve(scores, isotonic_regression(shares, weights=counts).x, judged.modes)


def _curve(scores: Doubles, probabilities: Doubles, modes: frozenset[Mode]) -> Calibration:
    return Calibration(tuple(scores.tolist()), tuple(np.clip(probabilities, 0, 1).tolist()), modes)


def _cuts(judged: _LabeledScores) -> list[Threshold]:
    """Return one threshold per distinct score."""
    kept_counts = np.append(np.flatnonzero(np.diff(judged.scores)), len(judged.scores) - 1) + 1
    lowest = judged.scores[kept_counts - 1]
    between = np.append((lowest[:-1] + lowest[1:]) / 2, lowest[-1:])
    right = np.cumsum(judged.relevant)[kept_counts - 1]
    columns = np.stack([between, right / kept_counts, right / judged.all_relevant], axis=1)
    return [Threshold(score, precision, recall, judged.modes) for score, precision, recall in columns.tolist()]

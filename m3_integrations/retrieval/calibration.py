"""What scores mean, and how to read them as relevance between 0 and 1.

A score is an inner product, and each mode has a scale of its own. Dense and late-interaction scores are cosines where
the model normalises, yet many models use a narrow part of their range (0.7 to 0.9 for E5, whatever the texts). Lexical
scores are sums of products of small weights: 0.02 is no fault, and 0.2 may be the best that a model ever gives.
`Match.by_mode` says what each mode gave, weights included, and sums to `Match.score`. Scores rank the passages of one
question; they say little across questions, and nothing across models, modes or weights.

`similarity` puts a score on the scale of one mode by dividing by the weights, and `relevance` cuts that to [0, 1]:
enough to sort by, not a probability. Judged questions give better. `calibrate` fits the probability that a match is
relevant, and `fit_threshold` finds the score from which on matches are worth keeping:

    found = retriever.retrieve_many([query.text for query in queries], k=100)
    probability = calibrate(queries, found)            # probability.of(match)
    threshold = fit_threshold(queries, found, precision=0.9)
    threshold.keep(retriever.retrieve("Who built the bridge?"))

Both hold for the model, the plan and the kind of text that they were fitted on, and see only what was retrieved; a
passage that no judgement names counts as not relevant. Judge other questions than those that weights were tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from m3_integrations.core.encoded import Mode
from m3_integrations.core.texts import Query
from m3_integrations.retrieval.retriever import Match

Doubles: TypeAlias = npt.NDArray[np.float64]
_PULL_TO_ZERO = 1e-6


def similarity(match: Match, weights: Mapping[Mode, float]) -> float:
    """The score over the weights of its modes: the modes' own scores, averaged as they are weighed."""
    return match.score / sum(weights[mode] for mode in match.by_mode)


def relevance(match: Match, weights: Mapping[Mode, float]) -> float:
    """`similarity`, cut to [0, 1]; for dense vectors of length 1 it is the cosine."""
    return min(1.0, max(0.0, similarity(match, weights)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The probability that a match is relevant, by its score: a rising curve through (scores, probabilities).

    Between two points it is a straight line, and flat beyond the first and the last. modes: of the scores fitted.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    modes: frozenset[Mode]

    def of(self, match: Match) -> float:
        """The probability that this match is relevant. Raises ValueError for one that other modes scored."""
        _require_modes(self.modes, match)
        return float(np.interp(match.score, self.scores, self.probabilities))


@dataclass(frozen=True, slots=True)
class Threshold:
    """The score that a match needs, and what that gave on the judged questions, all of them taken together.

    recall: of all passages that are judged relevant, found or not. modes: of the scores fitted.
    """

    score: float
    precision: float
    recall: float
    modes: frozenset[Mode]

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / (self.precision + self.recall)

    def keep(self, matches: Sequence[Match]) -> list[Match]:
        """Those that reach the threshold, in their order. Raises ValueError for one that other modes scored."""
        for match in matches:
            _require_modes(self.modes, match)
        return [match for match in matches if match.score >= self.score]


def calibrate(
    queries: Sequence[Query],
    found: Sequence[Sequence[Match]],
    method: Literal["logistic", "isotonic"] = "logistic",
) -> Calibration:
    """Fit the probability that a match is relevant to what judged questions found; found[i] are queries[i]'s matches.

    logistic: one curve of two numbers (Platt, 1999), for tens of judgements and more. isotonic: whatever rises
    (Zadrozny and Elkan, KDD 2002), for thousands. Raises ValueError where no match is relevant, or every one.
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
    """The score from which on matches are kept: with the best F1, or with the best recall at this precision.

    found[i] are queries[i]'s matches. The score stands midway between the last match kept and the first left out.
    Raises ValueError where no match is relevant, and where no score gives the precision, naming the best to be had.
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
        raise ValueError(f"no score gives a precision of {precision}; the best that these queries give is {best:.3f}")
    return max(precise, key=lambda cut: (cut.recall, cut.score))


@dataclass(frozen=True, slots=True)
class _Judged:
    """Matches as arrays, best first: (matches,) scores, (matches,) whether relevant."""

    scores: Doubles
    relevant: npt.NDArray[np.bool_]
    all_relevant: int
    modes: frozenset[Mode]


def _judged(queries: Sequence[Query], found: Sequence[Sequence[Match]]) -> _Judged:
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
    return _Judged(scores[order], relevant[order], sum(map(len, wanted)), modes)


def _require_modes(modes: frozenset[Mode], match: Match) -> None:
    if match.by_mode.keys() != modes:
        raise ValueError(
            f"this was fitted on scores of {sorted(modes)}, and the match was scored by {sorted(match.by_mode)}; fit "
            "it on matches of the plan that it is for"
        )


def _logistic(judged: _Judged) -> Calibration:
    """Probabilities `expit(slope · z + height)`, z the standardised score; the slope is never negative."""
    middle, spread = judged.scores.mean(), judged.scores.std() or 1.0
    standard = (judged.scores - middle) / spread
    # Platt's targets: as if one more of each kind had been seen, so that kinds which a score divides have a finite fit.
    ones, zeros = judged.relevant.sum(), (~judged.relevant).sum()
    targets = np.where(judged.relevant, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        logits = parameters[0] * standard + parameters[1]
        errors = expit(logits) - targets
        value = np.mean(np.logaddexp(0, logits) - targets * logits) + _PULL_TO_ZERO * parameters[0] ** 2
        return float(value), np.array([np.mean(errors * standard) + 2 * _PULL_TO_ZERO * parameters[0], errors.mean()])

    slope, height = minimize(loss, np.zeros(2), jac=True, bounds=[(0, None), (None, None)]).x
    reach = np.linspace(-1, 1, 257) * (12 / slope if slope > 1e-9 else 1.0)  # beyond it the curve is flat within 1e-5
    places = reach - (height / slope if slope > 1e-9 else 0.0)
    return _curve(places * spread + middle, expit(slope * places + height), judged.modes)


def _isotonic(judged: _Judged) -> Calibration:
    """The rising steps closest to the judgements; equal scores share one."""
    scores, inverse = np.unique(judged.scores, return_inverse=True)
    counts = np.bincount(inverse)
    shares = np.bincount(inverse, weights=judged.relevant) / counts
    return _curve(scores, isotonic_regression(shares, weights=counts).x, judged.modes)


def _curve(scores: Doubles, probabilities: Doubles, modes: frozenset[Mode]) -> Calibration:
    return Calibration(tuple(scores.tolist()), tuple(np.clip(probabilities, 0, 1).tolist()), modes)


def _cuts(judged: _Judged) -> list[Threshold]:
    """One threshold for each distinct score: those at and above it are kept."""
    kept = np.append(np.flatnonzero(np.diff(judged.scores)), len(judged.scores) - 1) + 1
    lowest = judged.scores[kept - 1]
    between = np.append((lowest[:-1] + lowest[1:]) / 2, lowest[-1:])
    right = np.cumsum(judged.relevant)[kept - 1]
    columns = np.stack([between, right / kept, right / judged.all_relevant], axis=1)
    return [Threshold(score, precision, recall, judged.modes) for score, precision, recall in columns.tolist()]

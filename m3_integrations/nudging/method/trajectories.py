"""Scores as functions of gamma for NUDGE-M (linear) and NUDGE-N (rotation), and their crossings."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np

from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.method.closed_form import (
    Direction,
    chord_angle,
    direction_to,
    rotate_along,
    translate,
    unit,
)

TOLERANCE = 1e-12  # rounding error of a crossing in float64


class ScoreCurves(NamedTuple):
    """Scores of query-passage pairs as curves, element by element.

    Attributes:
        a: Product of the query with the passage.
        b: Product of the query with the direction of the move.
        end: The t at which the passage arrives; b = 0 and end = 0 if it does not move.
    """

    a: Floats
    b: Floats
    end: Floats

    def take(self, which: Ints) -> ScoreCurves:
        return ScoreCurves(self.a[which], self.b[which], self.end[which])


class Trajectory(Protocol):
    """A way of moving; t runs from 0, and gamma grows with t."""

    def direction(self, passages: Floats, pulls: Floats) -> Direction:
        """Return the unit direction of each passage's move, and the t at which it arrives."""
        ...

    def end(self, arrival: Floats) -> float:
        """Return the t beyond which nothing changes for passages with these arrival times."""
        ...

    def move(self, passages: Floats, pulls: Floats, gamma: float) -> Floats:
        """Return the passages moved by gamma."""
        ...

    def gamma(self, t: Floats) -> Floats:
        """Return the gamma at t."""
        ...

    def score(self, t: Floats, curves: ScoreCurves) -> Floats:
        """Return the scores at t, up to a positive factor that is the same for all."""
        ...

    def level(self, gamma: float, curves: ScoreCurves) -> Floats:
        """Return the scores at gamma."""
        ...

    def curvature_bound(self, step: float) -> float:
        """Return how far a curve of size 1 can leave the range of its values at both ends of a step."""
        ...

    def crossings(self, x: ScoreCurves, y: ScoreCurves) -> list[Floats]:
        """Return every t at which x and y may change order, as arrays of their shape, NaN for none."""
        ...


class NudgeM:
    """NUDGE-M: a + gamma b for gamma from 0 to infinity; divided by 1 + gamma, which keeps ranks, a line in t."""

    def direction(self, passages: Floats, pulls: Floats) -> Direction:
        return Direction(unit(pulls), np.ones(len(pulls)))

    def end(self, arrival: Floats) -> float:
        return 1.0

    def move(self, passages: Floats, pulls: Floats, gamma: float) -> Floats:
        return translate(passages, pulls, gamma)

    def gamma(self, t: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            return np.asarray(t / (1 - t))

    def score(self, t: Floats, curves: ScoreCurves) -> Floats:
        return curves.a + t * (curves.b - curves.a)

    def level(self, gamma: float, curves: ScoreCurves) -> Floats:
        return curves.a + gamma * curves.b

    def curvature_bound(self, step: float) -> float:
        return 0.0

    def crossings(self, x: ScoreCurves, y: ScoreCurves) -> list[Floats]:
        difference = x.a - y.a
        return [_ratio(difference, difference - (x.b - y.b))]


class NudgeN:
    """NUDGE-N: a cos t + b sin t until the passage reaches its pull, constant after; gamma is the squared chord."""

    def direction(self, passages: Floats, pulls: Floats) -> Direction:
        return direction_to(passages, pulls)

    def end(self, arrival: Floats) -> float:
        # A little beyond the last arrival, from where on passages that share a pull tie.
        return min(math.pi, 1.01 * float(arrival.max(initial=0.0)))

    def move(self, passages: Floats, pulls: Floats, gamma: float) -> Floats:
        return rotate_along(passages, direction_to(passages, pulls), gamma)

    def gamma(self, t: Floats) -> Floats:
        return np.asarray(4 * np.sin(t / 2) ** 2)

    def score(self, t: Floats, curves: ScoreCurves) -> Floats:
        angle = np.minimum(t, curves.end)
        return curves.a * np.cos(angle) + curves.b * np.sin(angle)

    def level(self, gamma: float, curves: ScoreCurves) -> Floats:
        return self.score(np.asarray(chord_angle(gamma)), curves)

    def curvature_bound(self, step: float) -> float:
        return step**2 / 8  # the second derivative is at most the curve's size

    def crossings(self, x: ScoreCurves, y: ScoreCurves) -> list[Floats]:
        first, last = np.minimum(x.end, y.end), np.maximum(x.end, y.end)
        together = np.arctan2(y.a - x.a, x.b - y.b) % math.pi
        # Passages that share a pull meet at `last` and tie from there on.
        return [_within(together, 0, first), *(_within(t, first, last) for t in self._alone(x, y)), last]

    def _alone(self, x: ScoreCurves, y: ScoreCurves) -> list[Floats]:
        """Return where a passage that still rotates crosses one that has arrived."""
        x_turns = x.end > y.end
        a, b = np.where(x_turns, x.a, y.a), np.where(x_turns, x.b, y.b)
        level = np.where(x_turns, self.score(y.end, y), self.score(x.end, x))
        cosine = _ratio(level, np.hypot(a, b))
        swing = np.arccos(np.where(np.abs(cosine) <= 1, cosine, np.nan))
        top = np.arctan2(b, a)
        return [(top - swing) % (2 * math.pi), (top + swing) % (2 * math.pi)]


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = above / below
    return ratio


def _within(t: Floats, low: Floats | float, high: Floats) -> Floats:
    return np.where((t >= low - TOLERANCE) & (t <= high + TOLERANCE), t, np.nan)

"""How a score runs while its passage moves, and where two scores cross: one way for NUDGE-M, one for NUDGE-N."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np

from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.solve import Bearing, bearing, chord_angle, push, turn_by, unit

SLACK = 1e-12  # how far float64 rounding may carry a crossing


class Curves(NamedTuple):
    """The scores of query–passage pairs as curves, element by element.

    a: the query's product with the passage; b: with the direction that it moves in; reach: where the passage arrives.
    A passage that stays has b = 0 and reach = 0.
    """

    a: Floats
    b: Floats
    reach: Floats

    def take(self, which: Ints) -> Curves:
        return Curves(self.a[which], self.b[which], self.reach[which])


class Way(Protocol):
    """One way of moving. t runs along it from 0 and gamma grows with t."""

    def bearing(self, passages: Floats, pulls: Floats) -> Bearing:
        """The unit direction in which each passage moves, and the t at which it arrives."""
        ...

    def end(self, reach: Floats) -> float:
        """The t up to which there is something to see, for passages that arrive at `reach`."""
        ...

    def move(self, passages: Floats, pulls: Floats, gamma: float) -> Floats:
        """The passages after moving by gamma."""
        ...

    def gamma(self, t: Floats) -> Floats:
        """The gamma at t."""
        ...

    def score(self, t: Floats, curves: Curves) -> Floats:
        """The scores at t, or all of them times something that is above 0 and the same for each."""
        ...

    def level(self, gamma: float, curves: Curves) -> Floats:
        """The scores themselves at gamma, to be added to those of other modes."""
        ...

    def bend(self, step: float) -> float:
        """How far a curve, its size being 1, can leave the span of its values at both ends of a step."""
        ...

    def crossings(self, x: Curves, y: Curves) -> list[Floats]:
        """Every t at which x and y may change places, as arrays of their shape, NaN where there is none."""
        ...


class Pushing:
    """NUDGE-M: `a + gamma·b` for gamma from 0 to infinity; over 1 + gamma, which moves no rank, a line in t."""

    def bearing(self, passages: Floats, pulls: Floats) -> Bearing:
        return Bearing(unit(pulls), np.ones(len(pulls)))

    def end(self, reach: Floats) -> float:
        return 1.0

    def move(self, passages: Floats, pulls: Floats, gamma: float) -> Floats:
        return push(passages, pulls, gamma)

    def gamma(self, t: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            return np.asarray(t / (1 - t))

    def score(self, t: Floats, curves: Curves) -> Floats:
        return curves.a + t * (curves.b - curves.a)

    def level(self, gamma: float, curves: Curves) -> Floats:
        return curves.a + gamma * curves.b

    def bend(self, step: float) -> float:
        return 0.0

    def crossings(self, x: Curves, y: Curves) -> list[Floats]:
        apart = x.a - y.a
        return [_ratio(apart, apart - (x.b - y.b))]


class Turning:
    """NUDGE-N: `a·cos t + b·sin t` until the passage reaches its pull, constant after; gamma is the squared chord."""

    def bearing(self, passages: Floats, pulls: Floats) -> Bearing:
        return bearing(passages, pulls)

    def end(self, reach: Floats) -> float:
        # A little beyond the last arrival: passages that share a pull are in a tie from there on.
        return min(math.pi, 1.01 * float(reach.max(initial=0.0)))

    def move(self, passages: Floats, pulls: Floats, gamma: float) -> Floats:
        return turn_by(passages, bearing(passages, pulls), gamma)

    def gamma(self, t: Floats) -> Floats:
        return np.asarray(4 * np.sin(t / 2) ** 2)

    def score(self, t: Floats, curves: Curves) -> Floats:
        angle = np.minimum(t, curves.reach)
        return curves.a * np.cos(angle) + curves.b * np.sin(angle)

    def level(self, gamma: float, curves: Curves) -> Floats:
        return self.score(np.asarray(chord_angle(gamma)), curves)

    def bend(self, step: float) -> float:
        return step**2 / 8  # the second derivative is at most the curve's size

    def crossings(self, x: Curves, y: Curves) -> list[Floats]:
        first, last = np.minimum(x.reach, y.reach), np.maximum(x.reach, y.reach)
        together = np.arctan2(y.a - x.a, x.b - y.b) % math.pi
        # `last` too: passages that share a pull meet there, and stay in a tie.
        return [_within(together, 0, first), *(_within(t, first, last) for t in self._alone(x, y)), last]

    def _alone(self, x: Curves, y: Curves) -> list[Floats]:
        """Where the one that still turns crosses the other, which has arrived."""
        x_turns = x.reach > y.reach
        a, b = np.where(x_turns, x.a, y.a), np.where(x_turns, x.b, y.b)
        level = np.where(x_turns, self.score(y.reach, y), self.score(x.reach, x))
        cosine = _ratio(level, np.hypot(a, b))
        swing = np.arccos(np.where(np.abs(cosine) <= 1, cosine, np.nan))
        top = np.arctan2(b, a)
        return [(top - swing) % (2 * math.pi), (top + swing) % (2 * math.pi)]


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = above / below
    return ratio


def _within(t: Floats, low: Floats | float, high: Floats) -> Floats:
    return np.where((t >= low - SLACK) & (t <= high + SLACK), t, np.nan)

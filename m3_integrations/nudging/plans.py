"""The ways to nudge dense vectors that are raced against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from m3_integrations.nudging.judged import Floats
from m3_integrations.nudging.spread import Spread
from m3_integrations.nudging.ways import Pushing, Turning, Way

Method = Literal["n", "m"]
WAYS: dict[Method, Way] = {"n": Turning(), "m": Pushing()}
TEMPERATURES = (0.02, 0.05, 0.2)  # of a spread
OWN = (1.0, 0.4)  # of its own pull, what a passage keeps in a spread
CENTRES = (0.0, 0.5, 0.9)
LATE_CENTRES = (0.0, 0.5, 1.0)
SPARSE_CENTRES = (0.0, 0.5, 1.0)  # powers of how many queries say a term
SPREAD_TO = 50_000  # passages up to which "auto" tries to spread: beyond, it is slower than all the rest together
CHORDS = np.array([0, 0.003, 0.01, 0.02, 0.04, 0.06, 0.09, 0.13, 0.2, 0.3, 0.45, 0.8])
LENGTHS = np.array([0, 0.003, 0.01, 0.02, 0.04, 0.07, 0.1, 0.2, 0.4])


class Plan(NamedTuple):
    """One way to nudge: by which method, how pulls are spread, if they are, and how far queries are centred."""

    method: Method
    spread: Spread | None
    centre: float

    @property
    def way(self) -> Way:
        return WAYS[self.method]

    @property
    def gammas(self) -> Floats:
        """Strengths at which this way is looked at in a race, ascending from 0."""
        return CHORDS if self.method == "n" else LENGTHS


def plans(
    method: Literal["auto", "n", "m"],
    spread: Literal["auto", "neighbours"] | None,
    centre: float | None,
    passages: int,
    methods: Sequence[Method] = ("n", "m"),
) -> list[Plan]:
    """What there is to choose from, for so many passages. methods: those that "auto" may take.

    Raises ValueError for a centre that is none.
    """
    spreads = _spreads(spread, passages)
    centres = _centres(centre, method)
    raced: Sequence[Method] = methods if method == "auto" else (method,)
    every = [Plan(each, how, of_mean) for each in raced for how in spreads for of_mean in centres]
    # A push that spreads won in none of our trials by more than noise, and costs as much as all the turns.
    return every if method != "auto" else [plan for plan in every if plan.method == "n" or plan.spread == spreads[0]]


def _spreads(spread: Literal["auto", "neighbours"] | None, passages: int) -> Sequence[Spread | None]:
    if spread is None or (spread == "auto" and passages > SPREAD_TO):
        return [None]
    some = [Spread(temperature, own) for own in OWN for temperature in TEMPERATURES]
    return [*some] if spread == "neighbours" else [None, *some]


def _centres(centre: float | None, method: str) -> Sequence[float]:
    if centre is None:
        return CENTRES if method == "auto" else CENTRES[:1]
    if not 0 <= centre <= 1:
        raise ValueError(f"centre is a part of the mean query: 0 <= centre <= 1, got {centre}")
    return (centre,)


def require_known(method: str, spread: str | None) -> None:
    """Raise ValueError for a method or a spread that is none."""
    for name, value, known in (
        ("method", method, ("auto", "n", "m")),
        ("spread", spread, ("auto", "neighbours", None)),
    ):
        if value not in known:
            raise ValueError(f"{name} is {' or '.join(map(repr, known))}, got {value!r}")

"""Variants of a dense nudge for model selection: method, propagation, centering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from m3_integrations.nudging.judged import Floats
from m3_integrations.nudging.method.propagation import Propagation
from m3_integrations.nudging.method.trajectories import NudgeM, NudgeN, Trajectory

Method = Literal["nudge-n", "nudge-m"]
MethodChoice = Literal["auto", "nudge-n", "nudge-m"]
Propagate = Literal["auto", "neighbors"] | None
TRAJECTORIES: dict[Method, Trajectory] = {"nudge-n": NudgeN(), "nudge-m": NudgeM()}
TEMPERATURES = (0.02, 0.05, 0.2)  # of a propagation
SELF_WEIGHTS = (1.0, 0.4)  # of a passage's own pull
CENTERS = (0.0, 0.5, 0.9)
MULTI_VECTOR_CENTERS = (0.0, 0.5, 1.0)
SPARSE_CENTERS = (0.0, 0.5, 1.0)  # powers of the number of queries with a term
MAX_PROPAGATED = 50_000  # passages up to which "auto" tries propagation; beyond, it is slower than all the rest
PASSAGES_PER_QUERY = 20  # up to which "auto" tries propagation: a few queries do not move a whole corpus
NUDGE_N_GAMMAS = np.array([0, 0.003, 0.01, 0.02, 0.04, 0.06, 0.09, 0.13, 0.2, 0.3, 0.45, 0.8])
NUDGE_M_GAMMAS = np.array([0, 0.003, 0.01, 0.02, 0.04, 0.07, 0.1, 0.2, 0.4])


class Variant(NamedTuple):
    """Method, propagation of pulls, and the fraction of the mean query that is subtracted from each query."""

    method: Method
    propagation: Propagation | None
    center: float

    @property
    def trajectory(self) -> Trajectory:
        return TRAJECTORIES[self.method]

    @property
    def gammas(self) -> Floats:
        """Step sizes of the prescreen, ascending from 0."""
        return NUDGE_N_GAMMAS if self.method == "nudge-n" else NUDGE_M_GAMMAS


def candidate_variants(
    method: MethodChoice,
    propagate: Propagate,
    center: float | None,
    passages: int,
    queries: int,
    methods: Sequence[Method] = ("nudge-n", "nudge-m"),
) -> list[Variant]:
    """Return the variants to choose from for so many passages and training queries.

    Args:
        method: Method, or "auto".
        propagate: Propagation of pulls.
        center: Fraction of the mean query to subtract; None for several.
        passages: Number of passages.
        queries: Number of different training queries.
        methods: Methods that "auto" may take.

    Raises:
        ValueError: If center is out of range.
    """
    propagations = _propagations(propagate, passages, queries)
    centers = _centers(center, method)
    methods_tried: Sequence[Method] = methods if method == "auto" else (method,)
    every = [Variant(each, how, of_mean) for each in methods_tried for how in propagations for of_mean in centers]
    # NUDGE-M with propagation never won by more than noise in our trials, and costs as much as all of NUDGE-N.
    return (
        every
        if method != "auto"
        else [variant for variant in every if variant.method == "nudge-n" or variant.propagation == propagations[0]]
    )


def _propagations(propagate: Propagate, passages: int, queries: int) -> Sequence[Propagation | None]:
    many = passages > min(MAX_PROPAGATED, PASSAGES_PER_QUERY * queries)
    if propagate is None or (propagate == "auto" and many):
        return [None]
    some = [Propagation(temperature, own) for own in SELF_WEIGHTS for temperature in TEMPERATURES]
    return [*some] if propagate == "neighbors" else [None, *some]


def _centers(center: float | None, method: str) -> Sequence[float]:
    if center is None:
        return CENTERS if method == "auto" else CENTERS[:1]
    if not 0 <= center <= 1:
        raise ValueError(f"center is a fraction of the mean query, 0 to 1, got {center}")
    return (center,)


def require_known(method: str, propagate: str | None) -> None:
    """Check the names of the method and the propagation.

    Raises:
        ValueError: If one is unknown.
    """
    for name, value, known in (
        ("method", method, ("auto", "nudge-n", "nudge-m")),
        ("propagate", propagate, ("auto", "neighbors", None)),
    ):
        if value not in known:
            raise ValueError(f"{name} is {' or '.join(map(repr, known))}, got {value!r}")

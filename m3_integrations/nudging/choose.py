"""Choosing on few queries without taking luck for merit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from m3_integrations.nudging.gamma import Sweep
from m3_integrations.nudging.judged import Floats

FOLDS = 10
SEED = 0
ERRORS = 1.0  # by how many standard errors a gain must stand out


class Choice(NamedTuple):
    """Which of several sweeps, and at what gamma. gain: what the same choice gains on queries that it did not see."""

    which: int
    gamma: float
    gain: float
    error: float

    @property
    def convinces(self) -> bool:
        return self.gain > ERRORS * self.error


def best_of(sweeps: Sequence[Sweep]) -> tuple[int, float]:
    """Which sweep has the best metric, the first of equals, and its gamma."""
    bests = [sweep.best() for sweep in sweeps]
    which = int(np.argmax([metric for _, metric in bests]))
    return which, bests[which][0]


def choose(sweeps: Sequence[Sweep]) -> Choice:
    """The best of the sweeps, and its gain cross-validated: each fold judges the choice that is made without it.

    sweeps: over the same queries.
    """
    gains = unseen_gains(sweeps)
    weights = sweeps[0].weights / sweeps[0].weights.sum()
    gain = float(weights @ gains)
    error = float(np.sqrt(weights**2 @ (gains - gain) ** 2))
    return Choice(*best_of(sweeps), gain, error)


def unseen_gains(sweeps: Sequence[Sweep]) -> Floats:
    """(queries,): what each query gains by the choice that is made without its fold."""
    n = len(sweeps[0].start)
    gains = np.zeros(n)
    order = np.random.default_rng(SEED).permutation(n)
    for fold in np.array_split(order, min(FOLDS, n)):
        rest = np.setdiff1d(order, fold)
        which, gamma = best_of([sweep.only(rest) for sweep in sweeps])
        gains[fold] = (sweeps[which].at(gamma) - sweeps[which].start)[fold]
    return gains

"""Choosing on few queries without taking luck for merit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from m3_integrations.nudging.gamma import Sweep
from m3_integrations.nudging.judged import Floats, Ints

FOLDS = 5
SPLITS = 10  # ways to make folds: which queries are left out together is luck too
SEED = 0
ROUNDING = 1e-9
ERRORS = 1.645  # standard errors by which a gain must stand out: 95 %, one-sided


class Choice(NamedTuple):
    """Which of several sweeps, and at what gamma. gain: what the same choice gains on queries that it did not see."""

    which: int
    gamma: float
    gain: float
    error: float

    @property
    def convinces(self) -> bool:
        return stands_out(self.gain, self.error)


def stands_out(gain: float, error: float) -> bool:
    """Whether a gain is more than chance, and more than rounding."""
    return gain > max(ERRORS * error, ROUNDING)


def best_of(sweeps: Sequence[Sweep]) -> tuple[int, float]:
    """Which sweep has the best metric, the first of equals, and its gamma."""
    bests = [sweep.best() for sweep in sweeps]
    which = int(np.argmax([metric for _, metric in bests]))
    return which, bests[which][0]


def choose(sweeps: Sequence[Sweep]) -> Choice:
    """The best of the sweeps, and its gain cross-validated: each fold judges the choice that is made without it.

    sweeps: over the same queries.
    """
    return Choice(*best_of(sweeps), *mean_and_error(unseen_gains(sweeps), sweeps[0].weights))


def mean_and_error(gains: Floats, weights: Floats) -> tuple[float, float]:
    """The mean of gains by weight, and its standard error; zeros for none."""
    if not len(gains):
        return 0.0, 0.0
    shares = weights / weights.sum()
    mean = float(shares @ gains)
    return mean, float(np.sqrt(shares**2 @ (gains - mean) ** 2))


def loses(gains: Floats, weights: Floats) -> bool:
    """Whether the loss of these queries stands out from chance."""
    gain, error = mean_and_error(gains, weights)
    return stands_out(-gain, error)


def join(sweeps: Sequence[Sweep]) -> Sweep:
    """One sweep over the queries of all, which are different ones."""
    starts = np.cumsum([0, *(len(each.start) for each in sweeps)])
    gammas = np.concatenate([each.gammas for each in sweeps])
    order = np.argsort(gammas, kind="stable")
    return Sweep(
        start=np.concatenate([each.start for each in sweeps]),
        weights=np.concatenate([each.weights for each in sweeps]),
        gammas=gammas[order],
        askers=np.concatenate([each.askers + first for each, first in zip(sweeps, starts, strict=False)])[order],
        changes=np.concatenate([each.changes for each in sweeps])[order],
        end=max(each.end for each in sweeps),
    )


def split(n: int, seed: int = SEED) -> list[tuple[Ints, Ints]]:
    """FOLDS parts of 0 to n - 1, each with the rest, ascending; none where there would be no rest."""
    order = np.random.default_rng(seed).permutation(n)
    held = [np.sort(part) for part in np.array_split(order, FOLDS) if 0 < len(part) < n]
    return [(part, np.setdiff1d(order, part)) for part in held]


def splits(n: int) -> Iterator[tuple[Ints, Ints]]:
    """Parts of 0 to n - 1, each with the rest: SPLITS times those of `split`, each number being in SPLITS parts."""
    for seed in range(SEED, SEED + SPLITS):
        yield from split(n, seed)


def unseen_gains(sweeps: Sequence[Sweep]) -> Floats:
    """(queries,): what each query gains by the choice that is made without its fold."""
    gains = np.zeros(len(sweeps[0].start))
    for held, rest in split(len(gains)):
        which, gamma = best_of([sweep.only(rest) for sweep in sweeps])
        gains[held] = (sweeps[which].at(gamma) - sweeps[which].start)[held]
    return gains

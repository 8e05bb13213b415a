"""Cross-validated gains and their significance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.selection.gamma_sweep import Sweep

FOLDS = 5
SPLITS = 10  # different splits, as the assignment to folds is random too
SEED = 0
ROUNDING = 1e-9
Z_95_ONE_SIDED = 1.645  # standard errors of a significant loss
CONFIDENCE = 0.975  # of a gain that moves vectors, one-sided
AGREEMENT = 3.0  # standard errors by which the ranking before must prefer the answers to those of other queries
DOUBTFUL = 0.999  # confidence of a gain that moves vectors if it does not


class Evidence(NamedTuple):
    """What speaks for a gain.

    Attributes:
        gain: Cross-validated gain of the whole choice, less that of the control (`folds.control_answers`).
        error: Its standard error.
        changed: Effective number of evaluation queries whose metric changes.
        agreement: Standard errors by which the ranking before prefers the answers to the control's; inf without one.
        queries: Number of different evaluation queries.
    """

    gain: float
    error: float
    changed: float = np.inf
    agreement: float = np.inf
    queries: int = 0

    @classmethod
    def of(cls, gains: Floats, weights: Floats, unmoved: Floats | None = None) -> Evidence:
        """Compute the evidence of gains, and of the metric before less that of the control, both by query."""
        gain, error = mean_and_error(gains, weights)
        squares = float(gains @ gains)
        changed = float(np.abs(gains).sum() ** 2 / squares) if squares > 0 else 0.0
        agreement = np.inf
        if unmoved is not None:
            mean, spread = mean_and_error(unmoved, weights)
            agreement = mean / max(spread, ROUNDING)
        return cls(gain, error, changed, float(agreement), len(gains))

    @property
    def required(self) -> float:
        """Standard errors that the gain must exceed: a quantile of Student's t for the queries that change."""
        if self.changed <= 2:
            return np.inf
        return float(stdtrit(self.changed - 1, CONFIDENCE if self.agreement >= AGREEMENT else DOUBTFUL))

    @property
    def is_significant(self) -> bool:
        """Whether the gain is beyond chance."""
        return self.gain > ROUNDING and self.gain > self.required * self.error


class Choice(NamedTuple):
    """The chosen sweep and gamma, with the evidence for it."""

    which: int
    gamma: float
    evidence: Evidence

    @property
    def gain(self) -> float:
        return self.evidence.gain

    @property
    def error(self) -> float:
        return self.evidence.error

    @property
    def is_significant(self) -> bool:
        return self.evidence.is_significant


def is_significant(gain: float, error: float) -> bool:
    """Return whether a gain exceeds chance (95 %, one-sided) and rounding."""
    return gain > max(Z_95_ONE_SIDED * error, ROUNDING)


def best_of(sweeps: Sequence[Sweep]) -> tuple[int, float]:
    """Return the first sweep with the best metric, and its gamma."""
    bests = [sweep.best() for sweep in sweeps]
    which = int(np.argmax([metric for _, metric in bests]))
    return which, bests[which][0]


def choose(sweeps: Sequence[Sweep]) -> Choice:
    """Choose the best of several sweeps over the same queries, and cross-validate the gain of that choice."""
    return Choice(*best_of(sweeps), Evidence.of(cross_validated_gains(sweeps), sweeps[0].weights))


def mean_and_error(gains: Floats, weights: Floats) -> tuple[float, float]:
    """Return the weighted mean of gains and its standard error, zeros for none."""
    if not len(gains):
        return 0.0, 0.0
    shares = weights / weights.sum()
    mean = float(shares @ gains)
    return mean, float(np.sqrt(shares**2 @ (gains - mean) ** 2))


def is_significant_loss(gains: Floats, weights: Floats) -> bool:
    """Return whether these queries lose significantly."""
    gain, error = mean_and_error(gains, weights)
    return is_significant(-gain, error)


def join(sweeps: Sequence[Sweep]) -> Sweep:
    """Join the sweeps of different queries."""
    starts = np.cumsum([0, *(len(each.start) for each in sweeps)])
    gammas = np.concatenate([each.gammas for each in sweeps])
    order = np.argsort(gammas, kind="stable")
    return Sweep(
        start=np.concatenate([each.start for each in sweeps]),
        weights=np.concatenate([each.weights for each in sweeps]),
        gammas=gammas[order],
        query_rows=np.concatenate([each.query_rows + first for each, first in zip(sweeps, starts, strict=False)])[
            order
        ],
        changes=np.concatenate([each.changes for each in sweeps])[order],
        end=max(each.end for each in sweeps),
    )


def split(n: int, seed: int = SEED) -> list[tuple[Ints, Ints]]:
    """Split 0 to n - 1 into FOLDS parts, each with the rest, ascending; none if there would be no rest."""
    order = np.random.default_rng(seed).permutation(n)
    parts = [np.sort(part) for part in np.array_split(order, FOLDS) if 0 < len(part) < n]
    return [(part, np.setdiff1d(order, part)) for part in parts]


def splits(n: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield the parts of SPLITS different splits, so that each number is in SPLITS parts."""
    for seed in range(SEED, SEED + SPLITS):
        yield from split(n, seed)


def cross_validated_gains(sweeps: Sequence[Sweep]) -> Floats:
    """Return the gain of each query by the choice made without its fold, shape (queries,)."""
    gains = np.zeros(len(sweeps[0].start))
    for part, rest in split(len(gains)):
        which, gamma = best_of([sweep.only(rest) for sweep in sweeps])
        gains[part] = (sweeps[which].at(gamma) - sweeps[which].start)[part]
    return gains

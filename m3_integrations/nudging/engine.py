"""nudge(): plain arrays in, moved arrays out; the way in for embeddings of any source."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.nudging.choose import Choice, choose
from m3_integrations.nudging.gamma import KnownPulls, Pulls, Sweep, parts, sweep
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.solve import UNIT, pulls_of_rows
from m3_integrations.nudging.spread import Neighbours, SpreadPulls
from m3_integrations.nudging.still import Still, numbered, resting
from m3_integrations.nudging.ways import Pushing, Turning, Way

Method = Literal["n", "m"]
Spread = Literal["auto", "neighbours"]
WAYS: dict[Method, Way] = {"n": Turning(), "m": Pushing()}
TEMPERATURES = (0.02, 0.05, 0.1, 0.3)  # of the softmax over cosines, from the nearest alone to nearly all alike
SPREAD_TO = 250_000  # "auto" spreads to no more passages than this: each that moves is kept in memory


class Curve(NamedTuple):
    """The metric over gamma: `levels[i]` between `edges[i]` and `edges[i + 1]`."""

    edges: Floats
    levels: Floats


@dataclass(frozen=True, eq=False)
class Nudged:
    """Passages after a nudge: only those that moved are kept beside the ones that were given.

    rows: (moved,) ascending; vectors: (moved, dim). before, after: the metric on validation; curve: it over gamma.
    method: "n" or "m"; spread: the temperature that pulls were spread with, None where they were not.
    choice: how gamma was chosen, with the gain on queries that the choice did not see; None where gamma was given.
    unanswered_train, unanswered_validation: queries that were left out, having no answer or no weight.
    """

    start: Floats
    rows: Ints
    vectors: Floats
    method: Method
    gamma: float
    spread: float | None
    metric: str
    before: float
    after: float
    curve: Curve
    choice: Choice | None
    unanswered_train: int
    unanswered_validation: int

    @property
    def passages(self) -> Floats:
        """(n, dim) all passages, assembled anew at each call."""
        passages = np.array(self.start, dtype=self.vectors.dtype)
        passages[self.rows] = self.vectors
        return passages

    @property
    def moved(self) -> int:
        """How many passages moved."""
        return len(self.rows)


def nudge(
    passages: Floats,
    train: Judged,
    validation: Judged,
    *,
    method: Literal["auto", "n", "m"] = "auto",
    metric: str = "ndcg@10",
    spread: Spread | None = "auto",
    gamma: float | None = None,
    background: Floats | Iterable[Floats] | None = None,
) -> Nudged:
    """Move passages towards the queries that they answer, as far as the metric on validation says (arXiv 2409.02343).

    passages: (n, dim), an array or a memory map, of length 1 for method "n"; the answers of both sets are rows of it.
    background: more passages, (any, dim) or blocks of that, which answer nothing and do not move.
    method: "n" keeps lengths; "m" does not, and needs an index that compares by dot product; "auto" takes the better,
    or moves nothing where the gain does not stand out from chance. spread: whether passages without queries follow
    their neighbours. gamma: None finds the best.
    Raises WrongDimension, NonFiniteVector or ValueError for what cannot be nudged, saying what can.
    """
    _require_one_of("method", method, ("auto", "n", "m"))
    _require_one_of("spread", spread, ("auto", "neighbours", None))
    ground = _Ground.of(passages, train, validation, RankMetric.of(metric), background)
    if gamma is None and not len(ground.judged):
        raise ValueError("no validation query has an answer to choose gamma by; judge some, or give gamma")
    candidates = list(ground.candidates(method, spread))
    if gamma is not None:
        _require_in_range(gamma, {each.method for each in candidates})
        chosen = max(candidates, key=lambda each: each.sweep.level(gamma))
        return ground.nudged(chosen, gamma)
    choice = choose([each.sweep for each in candidates])
    if method == "auto" and not choice.convinces:
        return ground.nudged(candidates[choice.which], 0.0, choice)
    return ground.nudged(candidates[choice.which], choice.gamma, choice)


class _Candidate(NamedTuple):
    """One way to nudge, and the metric along it."""

    method: Method
    spread: float | None
    pulls: Pulls
    sweep: Sweep


@dataclass(frozen=True, eq=False)
class _Ground:
    """What all candidates share: passages, what pulls them, and who judges."""

    passages: Floats
    pulled: Ints
    pulls: Floats
    judged: Judged
    metric: RankMetric
    background: Still
    unanswered: tuple[int, int]

    @classmethod
    def of(
        cls,
        passages: Floats,
        train: Judged,
        validation: Judged,
        metric: RankMetric,
        background: Floats | Iterable[Floats] | None,
    ) -> _Ground:
        passages = _checked(passages, train, validation)
        pulled, pulls = pulls_of_rows(train)
        judged = validation.answered()
        queries = judged.queries
        _require_finite(passages, pulled)
        blocks = [background] if isinstance(background, np.ndarray) else background or []
        still = Still.nothing(len(queries), metric.k).with_(numbered(blocks, len(passages), queries.shape[1]), queries)
        unanswered = len(train) - len(train.answered()), len(validation) - len(judged)
        return cls(passages, pulled, pulls, judged, metric, still, unanswered)

    def candidates(self, method: Literal["auto", "n", "m"], spread: Spread | None) -> Iterator[_Candidate]:
        methods: tuple[Method, ...] = ("n", "m") if method == "auto" else (method,)
        if method == "auto" and not self.unit:
            methods = ("m",)
        for temperature in self.temperatures(spread):
            for each in methods:
                yield self.candidate(each, temperature)

    def temperatures(self, spread: Spread | None) -> list[float | None]:
        """Those to try; None is not to spread."""
        if spread is None or not self.unpulled or not len(self.pulled):
            return [None]
        if spread == "neighbours":
            return list(TEMPERATURES)
        return [None, *TEMPERATURES] if self.unpulled <= SPREAD_TO else [None]

    @property
    def unpulled(self) -> int:
        return len(self.passages) - len(self.pulled)

    @cached_property
    def unit(self) -> bool:
        """Whether the passages that are pulled have length 1."""
        return _off_unit(self.passages, self.pulled) is None

    @cached_property
    def neighbours(self) -> Neighbours:
        return Neighbours.of(self.passages, self.pulled)

    @cached_property
    def resting(self) -> Still:
        """The best of all that nothing pulls."""
        return self.background.with_(resting(self.passages, self.pulled), self.judged.queries)

    def candidate(self, method: Method, temperature: float | None) -> _Candidate:
        pulls: Pulls = KnownPulls(self.pulled, self.pulls)
        if temperature is not None:
            pulls = SpreadPulls.of(self.pulled, self.pulls, self.neighbours, temperature)
        if method == "n":
            _require_unit(self.passages, pulls.rows)
        still = self.resting if temperature is None else self.background
        swept = sweep(self.passages, pulls, self.judged, self.metric, WAYS[method], still)
        return _Candidate(method, temperature, pulls, swept)

    def nudged(self, chosen: _Candidate, gamma: float, choice: Choice | None = None) -> Nudged:
        rows, vectors = self._moved(chosen, gamma) if gamma > 0 else (self.pulled[:0], self.pulls[:0])
        return Nudged(
            start=self.passages,
            rows=rows,
            vectors=vectors,
            method=chosen.method,
            gamma=gamma,
            spread=chosen.spread,
            metric=str(self.metric),
            before=chosen.sweep.before,
            after=chosen.sweep.level(gamma),
            curve=Curve(*chosen.sweep.curve()),
            choice=choice,
            unanswered_train=self.unanswered[0],
            unanswered_validation=self.unanswered[1],
        )

    def _moved(self, chosen: _Candidate, gamma: float) -> tuple[Ints, Floats]:
        """The rows that do not stay where they were, and where they are then."""
        rows, way = chosen.pulls.rows, WAYS[chosen.method]
        vectors = np.empty((len(rows), self.passages.shape[1]), _precision(self.passages))
        stays = np.zeros(len(rows), bool)
        for part in parts(len(rows)):
            before = self.passages[rows[part]]
            vectors[part] = way.move(before.astype(np.float64), chosen.pulls.take(part).astype(np.float64), gamma)
            stays[part] = (vectors[part] == before).all(axis=1)
        return (rows[~stays], vectors[~stays]) if stays.any() else (rows, vectors)


def _require_one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {' or '.join(map(repr, known))}, got {value!r}")


def _require_in_range(gamma: float, methods: Collection[Method]) -> None:
    if not 0 <= gamma < math.inf or ("n" in methods and gamma > 4):
        raise ValueError(f"gamma is a squared chord in method 'n', 0 <= gamma <= 4, and a length in 'm'; got {gamma}")


def _precision(passages: Floats) -> np.dtype[Any]:
    return np.dtype(passages.dtype if passages.dtype in (np.float32, np.float64) else np.float32)


def _checked(passages: Floats, train: Judged, validation: Judged) -> Floats:
    """The passages as they are, a memory map left on disk, and everyone of one width."""
    if not isinstance(passages, np.ndarray) or not np.issubdtype(passages.dtype, np.floating):
        passages = np.asarray(passages, np.float32)
    if passages.ndim != 2:
        raise WrongDimension(f"passages are (n, dim), got shape {passages.shape}")
    for name, judged in (("train", train), ("validation", validation)):
        judged.require_rows(len(passages))
        if judged.queries.shape[1] != passages.shape[1]:
            raise WrongDimension(
                f"the passages have {passages.shape[1]} dimensions and the {name} queries {judged.queries.shape[1]}; "
                "encode both with one model"
            )
    return passages


def _require_unit(passages: Floats, rows: Ints) -> None:
    row = _off_unit(passages, rows)
    if row is not None:
        raise ValueError(
            f"passage {row} has length {np.linalg.norm(passages[row]):.4g} and method 'n' needs length 1; "
            "divide each row by its length, or use method='m'"
        )


def _off_unit(passages: Floats, rows: Ints) -> int | None:
    """The first of these rows whose length is not 1."""
    for part in parts(len(rows)):
        off = np.abs(np.linalg.norm(passages[rows[part]], axis=1) - 1) > UNIT
        if off.any():
            return int(rows[part][np.argmax(off)])
    return None


def _require_finite(passages: Floats, rows: Ints) -> None:
    for part in parts(len(rows)):
        finite = np.isfinite(passages[rows[part]]).all(axis=1)
        if not finite.all():
            raise NonFiniteVector(f"passage {rows[part][np.argmin(finite)]} holds NaN or infinity; re-encode it")

"""nudge_dense(): plain arrays in, moved arrays out, with the exact gamma; the way in for embeddings of any source."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.nudging.choose import FOLDS, Choice, best_of, choose, join, split
from m3_integrations.nudging.gamma import KnownPulls, Pulls, Sweep, parts, sweep
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.solve import UNIT, pulls_of_rows, shares_of_rows
from m3_integrations.nudging.spread import Neighbours, Spread, SpreadPulls
from m3_integrations.nudging.still import Still, numbered, resting
from m3_integrations.nudging.ways import Pushing, Turning, Way

Method = Literal["n", "m"]
WAYS: dict[Method, Way] = {"n": Turning(), "m": Pushing()}
TEMPERATURES = (0.02, 0.05, 0.2)  # of a spread
OWN = (1.0, 0.4)  # of its own pull, what a passage keeps in a spread
CENTRES = (0.0, 0.5, 0.9)
FEW = 1000  # validation queries; where there are fewer, training queries judge too
CROSSED = 1 << 28  # training queries times passages, up to which that is quick
SPREAD_TO = 50_000  # passages up to which "auto" tries to spread: beyond, it is slower than all the rest together


class Curve(NamedTuple):
    """The metric over gamma: `levels[i]` between `edges[i]` and `edges[i + 1]`."""

    edges: Floats
    levels: Floats


@dataclass(frozen=True, eq=False)
class Nudged:
    """Passages after a nudge: only those that moved are kept beside the ones that were given.

    rows: (moved,) ascending; vectors: (moved, dim). before, after: the metric on validation; curve: it over gamma.
    method: "n" or "m"; spread: how pulls were spread, None where they were not; centre: the part of the mean query
    that was taken from each query before it pulled.
    choice: how gamma was chosen, with the gain on queries that the choice did not see; None where gamma was given.
    unanswered_train, unanswered_validation: queries that were left out, having no answer or no weight.
    """

    start: Floats
    rows: Ints
    vectors: Floats
    method: Method
    gamma: float
    spread: Spread | None
    centre: float
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


def nudge_dense(
    passages: Floats,
    train: Judged,
    validation: Judged,
    *,
    method: Literal["auto", "n", "m"] = "auto",
    metric: str = "ndcg@10",
    spread: Literal["auto", "neighbours"] | None = "auto",
    centre: float | None = None,
    gamma: float | None = None,
    background: Floats | Iterable[Floats] | None = None,
) -> Nudged:
    """Move passages towards the queries that they answer, as far as the metric on validation says (arXiv 2409.02343).

    passages: (n, dim), an array or a memory map, of length 1 for method "n"; the answers of both sets are rows of it.
    background: more passages, (any, dim) or blocks of that, which answer nothing and do not move.
    method: "n" keeps lengths; "m" does not, and needs an index that compares by dot product; "auto" takes the better,
    or moves nothing where the gain does not stand out from chance; on few validation queries it lets folds of the
    training queries judge too, each without its own pulls. spread: whether passages follow the pulls of their
    neighbours, those without queries most of all. centre: how much of the mean query is taken from each before it
    pulls, 0 to 1; None is 0, as in the paper, where the method is named, and the best of a few where it is "auto".
    gamma: None finds the best.
    Raises WrongDimension, NonFiniteVector or ValueError for what cannot be nudged, saying what can.
    """
    _require_one_of("method", method, ("auto", "n", "m"))
    _require_one_of("spread", spread, ("auto", "neighbours", None))
    scene = _Scene.of(passages, train, validation, RankMetric.of(metric), background, crossed=method == "auto")
    race = _Race(scene, method, spread, _centres(centre, method), gamma)
    if gamma is not None:
        return scene.nudged(race.best, scene.sweep(race.best), gamma, None)
    choice = choose(list(race.sweeps.values()))
    plan = list(race.sweeps)[choice.which]
    moves = method != "auto" or choice.convinces
    return scene.nudged(plan, scene.sweep(plan), choice.gamma if moves else 0.0, choice)


class Plan(NamedTuple):
    """One way to nudge: by which method, how pulls are spread, if they are, and how far queries are centred."""

    method: Method
    spread: Spread | None
    centre: float


class _Race:
    """The ways to nudge, swept one after another: a grid first, then what differs from its best in one more respect.

    gamma: None where it is to be found.
    """

    def __init__(
        self,
        scene: _Scene,
        method: Literal["auto", "n", "m"],
        spread: Literal["auto", "neighbours"] | None,
        centres: Sequence[float],
        gamma: float | None,
    ) -> None:
        if gamma is None and not len(scene.judged):
            raise ValueError("no validation query has an answer to choose gamma by; judge some, or give gamma")
        self.scene, self.gamma = scene, gamma
        self.sweeps: dict[Plan, Sweep] = {}
        methods: tuple[Method, ...] = ("n", "m") if method == "auto" else (method,)
        spreads = scene.spreads(spread)
        grid = [Plan(first, how, centre) for first in methods for how in spreads for centre in centres]
        possible = scene.require_some(grid)
        if gamma is not None:
            _require_in_range(gamma, {plan.method for plan in possible})
        self._run([plan for plan in possible if plan.method == possible[0].method])
        for best in (self.best, self._best_spread):
            self._run([plan for plan in self._beside(best, methods) if scene.can(plan)])

    def _run(self, plans: Iterable[Plan]) -> None:
        for plan in plans:
            if plan not in self.sweeps:
                alone = self.gamma is not None
                self.sweeps[plan] = self.scene.sweep(plan) if alone else self.scene.joint_sweep(plan)

    @property
    def best(self) -> Plan:
        return self._best_of(list(self.sweeps))

    @property
    def _best_spread(self) -> Plan:
        return self._best_of([plan for plan in self.sweeps if plan.spread] or list(self.sweeps))

    def _best_of(self, plans: Sequence[Plan]) -> Plan:
        sweeps = [self.sweeps[plan] for plan in plans]
        if self.gamma is None:
            return plans[best_of(sweeps)[0]]
        return plans[int(np.argmax([each.level(self.gamma) for each in sweeps]))]

    def _beside(self, best: Plan, methods: Sequence[Method]) -> Iterable[Plan]:
        for method in methods:
            yield best._replace(method=method)
            if best.spread is not None:
                yield from (best._replace(method=method, spread=best.spread._replace(own=own)) for own in OWN)
            else:
                yield best._replace(method=method, centre=0.0)


@dataclass(frozen=True, eq=False)
class _Scene:
    """Passages, who pulls them and who judges. background: the best of it for each who judges.

    folds: the same with a part of the training queries moved to the judges' seats.
    """

    passages: Floats
    train: Judged
    judged: Judged
    metric: RankMetric
    background: Still
    folds: Sequence[_Scene]
    unanswered: tuple[int, int]

    @classmethod
    def of(
        cls,
        passages: Floats,
        train: Judged,
        validation: Judged,
        metric: RankMetric,
        background: Floats | Iterable[Floats] | None,
        *,
        crossed: bool,
    ) -> _Scene:
        passages = _checked(passages, train, validation)
        pullers, judged = train.answered(), validation.answered()
        _require_finite(passages, np.unique(pullers.rows))
        crossed &= len(judged) < FEW and FOLDS <= len(pullers) <= CROSSED // len(passages)
        seen = np.concatenate([judged.queries, pullers.queries]) if crossed else judged.queries
        blocks = [background] if isinstance(background, np.ndarray) else background or []
        best = Still.nothing(len(seen), metric.k).with_(numbered(blocks, len(passages), seen.shape[1]), seen)
        folds = []
        for held, rest in split(len(pullers)) if crossed else ():
            behind = best.take(len(judged) + held)
            folds.append(cls(passages, pullers.take(rest), pullers.take(held), metric, behind, (), (0, 0)))
        unanswered = len(train) - len(pullers), len(validation) - len(judged)
        return cls(passages, pullers, judged, metric, best.take(np.arange(len(judged))), folds, unanswered)

    def require_some(self, plans: Sequence[Plan]) -> list[Plan]:
        """The plans that are possible. Raises ValueError where none is, passages being too long or too short."""
        possible = [plan for plan in plans if self.can(plan)]
        if not possible:
            row = self._off_unit(plans[0])
            raise ValueError(
                f"passage {row} has length {np.linalg.norm(self.passages[row]):.4g} and method 'n' needs length 1; "
                "divide each row by its length, or use method='m'"
            )
        return possible

    def can(self, plan: Plan) -> bool:
        """Whether the passages that this plan moves have the length that its method needs."""
        return plan.method == "m" or self._off_unit(plan) is None

    def spreads(self, spread: Literal["auto", "neighbours"] | None) -> list[Spread | None]:
        if spread is None or not len(self.pulled) or (spread == "auto" and len(self.passages) > SPREAD_TO):
            return [None]
        _require_finite(self.passages, np.arange(len(self.passages)))
        some = [Spread(temperature, OWN[0]) for temperature in TEMPERATURES]
        return [*some] if spread == "neighbours" else [None, *some]

    def _off_unit(self, plan: Plan) -> int | None:
        """The first of the rows to move whose length is not 1."""
        return self._off_unit_pulled if plan.spread is None else self._off_unit_of_all

    @cached_property
    def _off_unit_pulled(self) -> int | None:
        return _off_unit(self.passages, self.pulled)

    @cached_property
    def _off_unit_of_all(self) -> int | None:
        return _off_unit(self.passages, np.arange(len(self.passages)))

    def sweep(self, plan: Plan) -> Sweep:
        still = self._resting if plan.spread is None else self.background
        return sweep(self.passages, self.pulls(plan), self.judged, self.metric, WAYS[plan.method], still)

    def joint_sweep(self, plan: Plan) -> Sweep:
        """On the validation queries and the folds together."""
        return join([self.sweep(plan), *(fold.sweep(plan) for fold in self.folds)])

    def pulls(self, plan: Plan) -> Pulls:
        known = KnownPulls(*pulls_of_rows(self.train, plan.centre))
        if plan.spread is None:
            return known
        return SpreadPulls.of(known.rows, known.vectors, self._neighbours, plan.spread)

    @cached_property
    def pulled(self) -> Ints:
        rows, _ = shares_of_rows(self.train)
        return rows

    @cached_property
    def _neighbours(self) -> Neighbours:
        return Neighbours.of(self.passages, self.pulled)

    @cached_property
    def _resting(self) -> Still:
        """The best of all that nothing pulls."""
        return self.background.with_(resting(self.passages, self.pulled), self.judged.queries)

    def nudged(self, plan: Plan, swept: Sweep, gamma: float, choice: Choice | None) -> Nudged:
        rows, vectors = moved_rows(self.passages, self.pulls(plan), WAYS[plan.method], gamma)
        return Nudged(
            start=self.passages,
            rows=rows,
            vectors=vectors,
            method=plan.method,
            gamma=gamma,
            spread=plan.spread if gamma > 0 else None,
            centre=plan.centre if gamma > 0 else 0.0,
            metric=str(self.metric),
            before=swept.before,
            after=swept.level(gamma),
            curve=Curve(*swept.curve()),
            choice=choice,
            unanswered_train=self.unanswered[0],
            unanswered_validation=self.unanswered[1],
        )


def moved_rows(passages: Floats, pulls: Pulls, way: Way, gamma: float) -> tuple[Ints, Floats]:
    """The rows that do not stay where they were, ascending, and where they are then."""
    rows = pulls.rows if gamma > 0 else pulls.rows[:0]
    vectors = np.empty((len(rows), passages.shape[1]), _precision(passages))
    stays = np.zeros(len(rows), bool)
    for part in parts(len(rows)):
        before = passages[rows[part]]
        vectors[part] = way.move(before.astype(np.float64), pulls.take(part).astype(np.float64), gamma)
        stays[part] = (vectors[part] == before).all(axis=1)
    return (rows[~stays], vectors[~stays]) if stays.any() else (rows, vectors)


def _centres(centre: float | None, method: str) -> Sequence[float]:
    if centre is None:
        return CENTRES if method == "auto" else CENTRES[:1]
    if not 0 <= centre <= 1:
        raise ValueError(f"centre is a part of the mean query: 0 <= centre <= 1, got {centre}")
    return (centre,)


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

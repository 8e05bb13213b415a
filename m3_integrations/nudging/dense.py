"""nudge_dense(): plain arrays in, moved arrays out, with the exact gamma; the way in for embeddings of any source."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.nudging.choose import Choice, choose, join, loses
from m3_integrations.nudging.gamma import KnownPulls, Pulls, Sweep, parts, sweep
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.panels import FEW, Panels
from m3_integrations.nudging.plans import Method, Plan, plans, require_known
from m3_integrations.nudging.racing import SHORT, favourite
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.solve import UNIT, pulls_of_rows, shares_of_rows
from m3_integrations.nudging.spread import Neighbours, Spread, SpreadPulls
from m3_integrations.nudging.still import Still, numbered, resting
from m3_integrations.nudging.ways import Way

CROSSED = 1 << 28  # training queries that judge, times passages, up to which that is quick


class Curve(NamedTuple):
    """The metric over gamma: `levels[i]` between `edges[i]` and `edges[i + 1]`."""

    edges: Floats
    levels: Floats


@dataclass(frozen=True, eq=False)
class Nudged:
    """Passages after a nudge: only those that moved are kept beside the ones that were given.

    rows: (moved,) ascending; vectors: (moved, dim). before, after: the metric on validation, or where no
    query of it has an answer on folds of the training queries; curve: it over gamma.
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
    methods: Sequence[Method] = ("n", "m"),
) -> Nudged:
    """Move passages towards the queries that they answer, as far as the metric on validation says (arXiv 2409.02343).

    passages: (n, dim), an array or a memory map, of length 1 for method "n"; the answers of both sets are rows of it.
    background: more passages, (any, dim) or blocks of that, which answer nothing and do not move.
    method: "n" keeps lengths; "m" does not, and needs an index that compares by dot product; "auto" takes the better,
    or moves nothing where the gain does not stand out from chance or validation itself loses; on few validation
    queries it lets folds of the training queries judge too, each without its own pulls. spread: whether passages
    follow the pulls of their neighbours, those without queries most of all. centre: how much of the mean query is taken
    from each before it pulls, 0 to 1; None is 0, as in the paper, where the method is named, and the best of a few
    where it is "auto".
    gamma: None finds the best. methods: those that "auto" may take; ("n",) for what compares by cosine.
    Raises WrongDimension, NonFiniteVector or ValueError for what cannot be nudged, saying what can.
    """
    require_known(method, spread)
    scene = _Scene.of(passages, train, validation, RankMetric.of(metric), crossed=method == "auto")
    possible = scene.possible(plans(method, spread, centre, len(scene.passages), methods))
    if gamma is not None:
        _require_in_range(gamma, {plan.method for plan in possible})
        scene = scene.before(background, scene.metric.k)
        sweeps = [scene.sweep(plan) for plan in possible]
        which = int(np.argmax([each.level(gamma) for each in sweeps]))
        return scene.nudged(possible[which], sweeps[which], gamma, None)
    if not len(scene.panels.judges):
        raise ValueError("no validation query has an answer to choose gamma by; judge some, or give gamma")
    alone = len(possible) == 1
    scene = scene.before(background, scene.metric.k if alone else max(SHORT, scene.metric.k))
    plan, choice = scene.choose(possible)
    swept = scene.sweep(plan)
    vetoed = loses(swept.at(choice.gamma) - swept.start, swept.weights)
    moves = method != "auto" or (choice.convinces and not vetoed)
    return scene.nudged(plan, swept, choice.gamma if moves else 0.0, choice)


@dataclass(frozen=True, eq=False)
class _Sitting:
    """Passages, who pulls them, and who judges. background: the best for each judge of what is not among them."""

    passages: Floats
    pullers: Judged
    judges: Judged
    metric: RankMetric
    background: Still

    def sweep(self, plan: Plan) -> Sweep:
        still = self._resting if plan.spread is None else self.background
        return sweep(self.passages, self.pulls(plan), self.judges, self.metric, plan.way, still)

    def pulls(self, plan: Plan) -> Pulls:
        known = KnownPulls(*pulls_of_rows(self.pullers, plan.centre))
        if plan.spread is None or not len(known.rows):
            return known
        return SpreadPulls.of(known.rows, known.vectors, self._neighbours, plan.spread)

    @cached_property
    def _pulled(self) -> Ints:
        rows, _ = shares_of_rows(self.pullers)
        return rows

    @cached_property
    def _neighbours(self) -> Neighbours:
        return Neighbours.of(self.passages, self._pulled)

    @cached_property
    def _resting(self) -> Still:
        """The best of all that nothing pulls."""
        return self.background.with_(resting(self.passages, self._pulled), self.judges.queries)


@dataclass(frozen=True, eq=False)
class _Scene:
    """Passages and panels. background: the best of it for each judge, of which there are at least the metric's k."""

    passages: Floats
    panels: Panels
    metric: RankMetric
    background: Still
    unanswered: tuple[int, int]

    @classmethod
    def of(cls, passages: Floats, train: Judged, validation: Judged, metric: RankMetric, *, crossed: bool) -> _Scene:
        passages = _checked(passages, train, validation)
        pullers, judges = train.answered(), validation.answered()
        _require_finite(passages, np.unique(pullers.rows))
        crossed &= min(len(pullers), FEW) <= CROSSED // max(len(passages), 1)
        panels = Panels.crossed(pullers, judges, FEW if crossed else 0)
        unanswered = len(train) - len(pullers), len(validation) - len(judges)
        return cls(passages, panels, metric, Still.nothing(len(panels.judges), metric.k), unanswered)

    def before(self, background: Floats | Iterable[Floats] | None, depth: int) -> _Scene:
        """The same in front of a background, of which each judge sees the `depth` best."""
        blocks = [background] if isinstance(background, np.ndarray) else background or []
        queries = self.panels.judges.queries
        nothing = Still.nothing(len(queries), depth)
        best = nothing.with_(numbered(blocks, len(self.passages), queries.shape[1]), queries)
        return replace(self, background=best)

    def choose(self, possible: Sequence[Plan]) -> tuple[Plan, Choice]:
        """The plan, its exact gamma, and the gain that the judges confirm of the whole choice."""
        if len(possible) == 1:
            return possible[0], choose([self.joint_sweep(possible[0])])
        plan, seen = favourite(self.passages, self.panels, self._best_at_rest(), possible, self.metric)
        gamma, _ = self.joint_sweep(plan).best()
        return plan, Choice(0, gamma, seen.gain, seen.error)

    def possible(self, every: Sequence[Plan]) -> list[Plan]:
        """The plans that can be gone by. Raises ValueError where none can, passages being too long or too short."""
        pulled, _ = shares_of_rows(self.panels.train)
        if any(plan.spread for plan in every) and len(pulled):
            _require_finite(self.passages, np.arange(len(self.passages)))
        else:
            every = list(dict.fromkeys(plan._replace(spread=None) for plan in every))
        off_pulled = _off_unit(self.passages, pulled)
        off_any = off_pulled
        if off_pulled is None and any(plan.spread for plan in every):
            off_any = _off_unit(self.passages, np.arange(len(self.passages)))
        possible = [plan for plan in every if plan.method == "m" or (off_any if plan.spread else off_pulled) is None]
        if not possible:
            row = off_any if off_pulled is None else off_pulled
            raise ValueError(
                f"passage {row} has length {np.linalg.norm(self.passages[row]):.4g} and method 'n' needs length 1; "
                "divide each row by its length, or use method='m'"
            )
        return possible

    def sweep(self, plan: Plan) -> Sweep:
        """On the validation queries, or where none has an answer on the folds."""
        return self._sittings[0].sweep(plan) if len(self.panels.seated(0)) else self.joint_sweep(plan)

    def joint_sweep(self, plan: Plan) -> Sweep:
        """On all who judge."""
        return join([sitting.sweep(plan) for sitting in self._sittings])

    @cached_property
    def _sittings(self) -> list[_Sitting]:
        k, sittings = self.metric.k, []
        for panel in range(len(self.panels.silent)):
            seats = self.panels.seated(panel)
            judges, behind = self.panels.judges.take(seats), self.background.take(seats).first(k)
            sittings.append(_Sitting(self.passages, self.panels.pullers(panel), judges, self.metric, behind))
        return sittings

    def _best_at_rest(self) -> Still:
        return self.background.with_(numbered([self.passages], 0, self.passages.shape[1]), self.panels.judges.queries)

    def nudged(self, plan: Plan, swept: Sweep, gamma: float, choice: Choice | None) -> Nudged:
        rows, vectors = moved_rows(self.passages, self._sittings[0].pulls(plan), plan.way, gamma)
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

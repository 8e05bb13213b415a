"""nudge_dense(): plain arrays in, moved arrays out, with the exact gamma; the way in for embeddings of any source."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.nudging.choose import Choice, choose, join, loses
from m3_integrations.nudging.field import Field
from m3_integrations.nudging.fused import Chosen
from m3_integrations.nudging.gamma import Pulls, Sweep, parts, sweep
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.panels import FEW, Panels
from m3_integrations.nudging.plans import Method, Plan, plans, require_known
from m3_integrations.nudging.racing import SHORT, favourite
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.solve import UNIT, shares_of_rows
from m3_integrations.nudging.spread import Spread
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
    scene = Scene.of(passages, train, validation, RankMetric.of(metric), crossed=method == "auto")
    possible = scene.possible(plans(method, spread, centre, len(scene.passages), methods))
    scene = scene.before(background, scene.depth(possible, gamma))
    return scene.conclude(scene.shortlist(possible, gamma), method, gamma)


class Shortlist(NamedTuple):
    """The plans whose metric is worth knowing exactly. seen: what a quick look at more said, if there was one."""

    plans: Sequence[Plan]
    seen: Chosen | None


class OffUnit(NamedTuple):
    """A passage whose length is not 1."""

    row: int
    length: float


@dataclass(frozen=True, eq=False)
class _Sitting:
    """Passages, who pulls them, and who judges. background: the best for each judge of what is not among them."""

    passages: Floats
    pullers: Judged
    judges: Judged
    metric: RankMetric
    background: Still
    total: int

    def sweep(self, plan: Plan) -> Sweep:
        still = self._resting if plan.spread is None else self.background
        return sweep(self.passages, self.pulls(plan), self.judges, self.metric, plan.way, still)

    def pulls(self, plan: Plan) -> Pulls:
        return self.field.by(self.pullers, plan)

    @cached_property
    def field(self) -> Field:
        return Field.of(self.passages, self.pullers, self.total)

    @cached_property
    def _resting(self) -> Still:
        """The best of all that nothing pulls."""
        return self.background.with_(resting(self.passages, self.field.rows), self.judges.queries)


@dataclass(frozen=True, eq=False)
class Scene:
    """Passages and panels. background: the best of it for each judge, of which there are at least the metric's k.

    These may be the part that matters of `total` passages. numbers: (n,) their rows among all; swept: by panel and
    plan, the sweeps that were made of all.
    """

    passages: Floats
    panels: Panels
    metric: RankMetric
    background: Still
    unanswered: tuple[int, int]
    numbers: Ints
    total: int
    swept: Mapping[tuple[int, Plan], Sweep] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        passages: Floats,
        train: Judged,
        validation: Judged,
        metric: RankMetric,
        *,
        crossed: bool,
        numbers: Ints | None = None,
        total: int | None = None,
    ) -> Scene:
        """crossed: whether training queries may judge, too."""
        passages = _checked(passages, train, validation)
        numbers, total = np.arange(len(passages)) if numbers is None else numbers, total or len(passages)
        panels = seat(train, validation, total if crossed else None)
        _require_finite(passages, np.unique(panels.train.rows), numbers)
        unanswered = len(train) - len(panels.train), len(validation) - len(validation.answered())
        still = Still.nothing(len(panels.judges), metric.k)
        return cls(passages, panels, metric, still, unanswered, numbers, total)

    def before(self, background: Floats | Iterable[Floats] | None, depth: int) -> Scene:
        """The same in front of a background, of which each judge sees the `depth` best."""
        blocks = [background] if isinstance(background, np.ndarray) else background or []
        queries = self.panels.judges.queries
        nothing = Still.nothing(len(queries), depth)
        best = nothing.with_(numbered(blocks, len(self.passages), queries.shape[1]), queries)
        return replace(self, background=best)

    def depth(self, possible: Sequence[Plan], gamma: float | None) -> int:
        """How many of the best of a background there is use for."""
        return self.metric.k if len(possible) == 1 or gamma is not None else max(SHORT, self.metric.k)

    def possible(self, every: Sequence[Plan], off: OffUnit | None = None) -> list[Plan]:
        """The plans that can be gone by. Raises ValueError where none can, passages being too long or too short.

        off: the first of all passages whose length is not 1, where these are a part.
        """
        pulled, _ = shares_of_rows(self.panels.train)
        if any(plan.spread for plan in every) and len(pulled):
            _require_finite(self.passages, np.arange(len(self.passages)), self.numbers)
        else:
            every = list(dict.fromkeys(plan._replace(spread=None) for plan in every))
        off_pulled = self._named(off_unit(self.passages, pulled))
        off_any = off_pulled
        if off_pulled is None and any(plan.spread for plan in every):
            off_any = off or off_unit(self.passages, np.arange(len(self.passages)))
        possible = [plan for plan in every if plan.method == "m" or (off_any if plan.spread else off_pulled) is None]
        found = off_pulled or off_any
        if not possible and found:
            raise ValueError(
                f"passage {found.row} has length {found.length:.4g} and method 'n' needs length 1; "
                "divide each row by its length, or use method='m'"
            )
        return possible

    def _named(self, off: OffUnit | None) -> OffUnit | None:
        return off and off._replace(row=int(self.numbers[off.row]))

    def shortlist(self, possible: Sequence[Plan], gamma: float | None) -> Shortlist:
        """The plan that ranks best at a quick look; at a gamma that is given, all of them.

        Raises ValueError for a gamma out of range, and where there is none and nobody to choose it by.
        """
        if gamma is not None:
            _require_in_range(gamma, {plan.method for plan in possible})
        elif not len(self.panels.judges):
            raise ValueError("no validation query has an answer to choose gamma by; judge some, or give gamma")
        if gamma is not None or len(possible) == 1:
            return Shortlist(possible, None)
        plan, seen = favourite(self.passages, self.panels, self._best_at_rest(), possible, self.metric, self.total)
        return Shortlist([plan], seen)

    def conclude(self, shortlist: Shortlist, method: Literal["auto", "n", "m"], gamma: float | None) -> Nudged:
        """The nudge by the best of these plans, by its exact gamma where none is given."""
        if gamma is not None:
            sweeps = [self.sweep(plan) for plan in shortlist.plans]
            which = int(np.argmax([each.level(gamma) for each in sweeps]))
            return self.nudged(shortlist.plans[which], sweeps[which], gamma, None)
        plan, choice = shortlist.plans[0], self._choice(shortlist)
        swept = self.sweep(plan)
        vetoed = loses(swept.at(choice.gamma) - swept.start, swept.weights)
        moves = method != "auto" or (choice.convinces and not vetoed)
        return self.nudged(plan, swept, choice.gamma if moves else 0.0, choice)

    def heard(self, gamma: float | None) -> list[int]:
        """The panels on whose sweeps a conclusion rests."""
        every = list(range(len(self.panels.silent)))
        return every[:1] if gamma is not None and len(self.panels.seated(0)) else every

    def _choice(self, shortlist: Shortlist) -> Choice:
        """The exact gamma, and the gain that the judges confirm of the whole choice."""
        joint = self.joint_sweep(shortlist.plans[0])
        if shortlist.seen is None:
            return choose([joint])
        gamma, _ = joint.best()
        return Choice(0, gamma, shortlist.seen.gain, shortlist.seen.error)

    def sweep(self, plan: Plan) -> Sweep:
        """On the validation queries, or where none has an answer on the folds."""
        return self._sweep(0, plan) if len(self.panels.seated(0)) else self.joint_sweep(plan)

    def joint_sweep(self, plan: Plan) -> Sweep:
        """On all who judge."""
        return join([self._sweep(panel, plan) for panel in range(len(self.panels.silent))])

    def _sweep(self, panel: int, plan: Plan) -> Sweep:
        return self.swept.get((panel, plan)) or self.sittings[panel].sweep(plan)

    @cached_property
    def sittings(self) -> list[_Sitting]:
        k, sittings = self.metric.k, []
        for panel in range(len(self.panels.silent)):
            seats, pullers = self.panels.seated(panel), self.panels.pullers(panel)
            judges, behind = self.panels.judges.take(seats), self.background.take(seats).first(k)
            sittings.append(_Sitting(self.passages, pullers, judges, self.metric, behind, self.total))
        return sittings

    def _best_at_rest(self) -> Still:
        return self.background.with_(numbered([self.passages], 0, self.passages.shape[1]), self.panels.judges.queries)

    def nudged(self, plan: Plan, swept: Sweep, gamma: float, choice: Choice | None) -> Nudged:
        rows, vectors = moved_rows(self.passages, self.sittings[0].pulls(plan), plan.way, gamma)
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


def seat(train: Judged, validation: Judged, crossed_over: int | None) -> Panels:
    """Who judges. crossed_over: of how many passages training queries may judge, too; None: they may not."""
    pullers, judges = train.answered(), validation.answered()
    crossed = crossed_over is not None and min(len(pullers), FEW) <= CROSSED // max(crossed_over, 1)
    return Panels.crossed(pullers, judges, FEW if crossed else 0)


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


def off_unit(passages: Floats, rows: Ints) -> OffUnit | None:
    """The first of these rows whose length is not 1."""
    for part in parts(len(rows)):
        lengths = np.linalg.norm(passages[rows[part]], axis=1)
        off = np.abs(lengths - 1) > UNIT
        if off.any():
            first = int(np.argmax(off))
            return OffUnit(int(rows[part][first]), float(lengths[first]))
    return None


def _require_finite(passages: Floats, rows: Ints, numbers: Ints) -> None:
    for part in parts(len(rows)):
        finite = np.isfinite(passages[rows[part]]).all(axis=1)
        if not finite.all():
            raise NonFiniteVector(
                f"passage {numbers[rows[part][np.argmin(finite)]]} holds NaN or infinity; re-encode it"
            )

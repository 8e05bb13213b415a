"""nudge_sharded(): the passages lie in many places; what can change the result comes together in one.

The queries' answers come, and what stands among a query's best as the passages lie: by these the plan is chosen. Where
its pulls spread, every passage moves: then each place is told what pulls, and says who contends for a query's best on
the way, as curves. The exact sweep is made of those, and each place moves its own passages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Literal

import numpy as np

from m3_integrations.nudging.dense import Nudged, Scene, seat
from m3_integrations.nudging.gamma import Sweep, relevant_of, sweep_among
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.plans import Plan, plans, require_known
from m3_integrations.nudging.racing import SHORT
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.solve import pulls_of_rows, shares_of_rows
from m3_integrations.scale.shards import AtRest, Contest, Contests, Move, Pull, Rest, Shard, Shards, Vectors
from m3_integrations.scale.workers import Here, Workers


@dataclass(frozen=True, eq=False)
class NudgedShards:
    """The shards after a nudge, each of which is moved when it is asked for.

    nudged: the same nudge of the passages that came together, with gamma, curve, before and after.
    """

    shards: Shards
    move: Move
    nudged: Nudged

    def of_shard(self, number: int) -> tuple[Ints, Floats]:
        """The rows of one shard that moved, numbered within it, ascending, and their vectors (moved, dim)."""
        return self.move.answer(self.shards.places[number])

    def each_shard(self, workers: Workers | None = None) -> Iterator[tuple[Ints, Floats]]:
        """`of_shard` of every shard in their order, which workers move one by one."""
        return self.shards.ask(self.move, workers or Here())

    @property
    def rows(self) -> Ints:
        """(moved,) numbered through all shards in their order, ascending."""
        rows, _ = self._together
        return rows

    @property
    def vectors(self) -> Floats:
        """(moved, dim) of all shards in one place."""
        _, vectors = self._together
        return vectors

    @cached_property
    def _together(self) -> tuple[Ints, Floats]:
        rows, vectors = zip(*self.each_shard(), strict=True)
        starts = self.shards.starts.tolist()
        numbered = [start + each for start, each in zip(starts, rows, strict=False)]
        return np.concatenate(numbered), np.concatenate(vectors)


def nudge_sharded(
    shards: Sequence[Shard],
    train: Judged,
    validation: Judged,
    *,
    method: Literal["auto", "n", "m"] = "auto",
    metric: str = "ndcg@10",
    spread: Literal["auto", "neighbours"] | None = "auto",
    centre: float | None = None,
    gamma: float | None = None,
    workers: Workers | None = None,
) -> NudgedShards:
    """What `nudge(all passages, ...)` answers, with no more in one place than what can change it.

    shards: arrays (any, dim), or .npy files that the workers can read; the answers of both sets are rows through all of
    them, in their order. workers: `Processes()` or `OnRay()`; None: here.
    In one place come the vectors of the answers and of the 50 best of each query that judges, and from each shard the
    scores of such. Where pulls spread, each shard is sent the answers and what pulls them. Raises what `nudge` raises.
    """
    require_known(method, spread)
    every, asking, wanted = Shards(shards), workers or Here(), RankMetric.of(metric)
    for judged in (train, validation):
        judged.require_rows(len(every))
    scene, rest = _gather(every, train, validation, wanted, method == "auto", asking)
    possible = scene.possible(plans(method, spread, centre, len(every)), rest.off)
    shortlist = scene.shortlist(possible, gamma)
    scene = replace(scene, swept=_swept(scene, shortlist.plans, scene.heard(gamma), every, asking))
    nudged = scene.conclude(shortlist, method, gamma)
    plan = Plan(nudged.method, nudged.spread, nudged.centre)
    return NudgedShards(every, Move(plan, nudged.gamma, _pull(scene, 0, plan)), nudged)


def _gather(
    shards: Shards, train: Judged, validation: Judged, metric: RankMetric, crossed: bool, workers: Workers
) -> tuple[Scene, Rest]:
    """The answers and what stands among the best at rest: of that the plan is chosen as of all."""
    panels = seat(train, validation, len(shards) if crossed else None)
    pulled, _ = shares_of_rows(panels.train)
    asked = AtRest(panels.judges.queries, pulled, max(SHORT, metric.k), metric.k)
    rest = reduce(Rest.join, shards.ask(asked, workers))
    rows = np.unique(np.concatenate([train.rows, validation.rows, rest.best.rows.ravel(), rest.still.rows.ravel()]))
    rows = rows[rows >= 0]
    vectors = np.concatenate(list(shards.ask(Vectors(rows, asked.queries.shape[1]), workers)))
    train, validation = (replace(each, rows=np.searchsorted(rows, each.rows)) for each in (train, validation))
    scene = Scene.of(vectors, train, validation, metric, crossed=crossed, numbers=rows, total=len(shards))
    return scene.before(None, asked.depth), rest


def _swept(
    scene: Scene, every: Sequence[Plan], panels: Sequence[int], shards: Shards, workers: Workers
) -> dict[tuple[int, Plan], Sweep]:
    """The sweeps of those plans by which all passages move, by panel and plan."""
    keys = [(panel, plan) for plan in every if plan.spread for panel in panels]
    if not keys:
        return {}
    contests = [_contest(scene, panel, plan) for panel, plan in keys]
    found = zip(*shards.ask(Contests(contests), workers), strict=True)
    return {
        (panel, plan): sweep_among(each, contest.relevant, scene.sittings[panel].judges, scene.metric, plan.way)
        for (panel, plan), contest, each in zip(keys, contests, found, strict=True)
    }


def _contest(scene: Scene, panel: int, plan: Plan) -> Contest:
    sitting = scene.sittings[panel]
    relevant = relevant_of(scene.passages, sitting.pulls(plan), sitting.judges, plan.way)
    relevant = relevant._replace(row=scene.numbers[relevant.row])
    return Contest(plan, _pull(scene, panel, plan), sitting.judges.queries, relevant, scene.metric.k)


def _pull(scene: Scene, panel: int, plan: Plan) -> Pull:
    sitting = scene.sittings[panel]
    _, vectors = pulls_of_rows(sitting.pullers, plan.centre)
    return Pull(scene.numbers[sitting.field.rows], sitting.field.pulled, vectors, scene.total)

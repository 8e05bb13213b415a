"""NUDGE over passages in many shards; only passages that can affect the result are collected in one process.

These are the relevant passages and the best passages of each evaluation query; the variant is chosen with them. If its
pulls propagate, every passage moves: each shard then returns the score curves of passages that may enter a query's top
results, for the exact sweep, and moves its own passages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np

from m3_integrations.distributed.executors import Executor, InProcess
from m3_integrations.distributed.shards import (
    InitialTopK,
    InitialTopKResult,
    MoveTask,
    PulledPassages,
    Shards,
    ShardSource,
    SweepTask,
    SweepTasks,
    VectorsTask,
)
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.closed_form import pulls_of_rows, shares_of_rows
from m3_integrations.nudging.method.variants import MethodChoice, Propagate, Variant, candidate_variants, require_known
from m3_integrations.nudging.optimize.dense import DenseNudgeProblem, Nudged, make_folds
from m3_integrations.nudging.selection.crossings import relevant_of
from m3_integrations.nudging.selection.gamma_sweep import Sweep, sweep_among
from m3_integrations.nudging.selection.prescreen import SHORT
from m3_integrations.nudging.selection.rank_metric import RankMetric


@dataclass(frozen=True, eq=False)
class NudgedShards:
    """Result of a sharded nudge; moved vectors are computed on demand, and the shards are not changed.

    Attributes:
        shards: The shards before the nudge.
        move: Task that computes the moved vectors of a shard.
        nudged: Gamma, curve, and the metric before and after.
    """

    shards: Shards
    move: MoveTask
    nudged: Nudged

    def of_shard(self, number: int) -> tuple[Ints, Floats]:
        """Return the rows of one shard that moved, relative to it, ascending, and their vectors (moved, dim).

        Args:
            number: Number of the shard.
        """
        return self.move.run(self.shards.shards[number])

    def each_shard(self, workers: Executor | None = None) -> Iterator[tuple[Ints, Floats]]:
        """Yield `of_shard` of every shard in order, moved by workers.

        Args:
            workers: Executor that moves the vectors.
        """
        return self.shards.run(self.move, workers or InProcess())

    @property
    def rows(self) -> Ints:
        """Rows that moved, among all passages, ascending, shape (moved,)."""
        rows, _ = self._together
        return rows

    @property
    def vectors(self) -> Floats:
        """Vectors that moved, of all shards, shape (moved, dim)."""
        _, vectors = self._together
        return vectors

    @cached_property
    def _together(self) -> tuple[Ints, Floats]:
        rows, vectors = zip(*self.each_shard(), strict=True)
        starts = self.shards.starts.tolist()
        numbered = [start + each for start, each in zip(starts, rows, strict=False)]
        return np.concatenate(numbered), np.concatenate(vectors)


def nudge_sharded(
    shards: Sequence[ShardSource],
    train: Judged,
    validation: Judged,
    *,
    method: MethodChoice = "auto",
    metric: str = "ndcg@10",
    propagate: Propagate = "auto",
    center: float | None = None,
    gamma: float | None = None,
    workers: Executor | None = None,
) -> NudgedShards:
    """Nudge passages in many shards; equal to `nudge(all passages, ...)` up to rounding.

    Args:
        shards: Arrays of shape (any, dim), or .npy files that the workers can read.
        train: Queries that pull the passages answering them; rows count through all shards in order.
        validation: Queries that choose the variant and the step size.
        method: As in `nudge`.
        metric: As in `nudge`.
        propagate: As in `nudge`.
        center: As in `nudge`.
        gamma: As in `nudge`.
        workers: ProcessPool() or RayActors(); by default this process.

    Returns:
        The nudge, which moves each shard on demand.

    Raises:
        WrongDimension: If shapes do not match.
        NonFiniteVector: If a vector holds NaN or infinity.
        ValueError: As in `nudge`.
    """
    require_known(method, propagate)
    every, executor, wanted = Shards(shards), workers or InProcess(), RankMetric.of(metric)
    for judged in (train, validation):
        judged.require_rows(len(every))
    problem, rest = _gather(every, train, validation, wanted, method == "auto", executor)
    counts = len(every), len(problem.folds.train)
    possible = problem.possible(candidate_variants(method, propagate, center, *counts), rest.off)
    shortlist = problem.shortlist(possible, method, gamma)
    problem = replace(
        problem, sweeps=_sweep_all(problem, shortlist.variants, problem.folds_used(gamma), every, executor)
    )
    nudged = problem.solve(shortlist, method, gamma)
    variant = Variant(nudged.method, nudged.propagation, nudged.center)
    return NudgedShards(every, MoveTask(variant, nudged.gamma, _pull(problem, 0, variant)), nudged)


def _gather(
    shards: Shards, train: Judged, validation: Judged, metric: RankMetric, cross_fitted: bool, workers: Executor
) -> tuple[DenseNudgeProblem, InitialTopKResult]:
    """Collect the relevant passages and the best passages before the nudge; the variant is chosen with them."""
    folds = make_folds(train, validation, len(shards) if cross_fitted else None)
    pulled, _ = shares_of_rows(folds.train)
    task = InitialTopK(folds.eval_queries.queries, pulled, max(SHORT, metric.k), metric.k)
    rest = reduce(InitialTopKResult.join, shards.run(task, workers))
    rows = np.unique(np.concatenate([train.rows, validation.rows, rest.best.rows.ravel(), rest.unmoved.rows.ravel()]))
    rows = rows[rows >= 0]
    vectors = np.concatenate(list(shards.run(VectorsTask(rows, task.queries.shape[1]), workers)))
    train, validation = (replace(each, rows=np.searchsorted(rows, each.rows)) for each in (train, validation))
    problem = DenseNudgeProblem.of(
        vectors, train, validation, metric, cross_fitted=cross_fitted, numbers=rows, total=len(shards)
    )
    return problem.with_background(None, task.depth), rest


def _sweep_all(
    problem: DenseNudgeProblem, every: Sequence[Variant], folds: Sequence[int], shards: Shards, workers: Executor
) -> dict[tuple[int, Variant], Sweep]:
    """Return the sweeps of variants that move all passages, by fold and variant."""
    keys = [(fold, variant) for variant in every if variant.propagation for fold in folds]
    if not keys:
        return {}
    tasks = [_sweep_task(problem, fold, variant) for fold, variant in keys]
    found = zip(*shards.run(SweepTasks(tasks), workers), strict=True)
    return {
        (fold, variant): sweep_among(
            each, task.relevant, problem.fold_problems[fold].eval_queries, problem.metric, variant.trajectory
        )
        for (fold, variant), task, each in zip(keys, tasks, found, strict=True)
    }


def _sweep_task(problem: DenseNudgeProblem, fold: int, variant: Variant) -> SweepTask:
    fold_problem = problem.fold_problems[fold]
    relevant = relevant_of(problem.passages, fold_problem.pulls(variant), fold_problem.eval_queries, variant.trajectory)
    relevant = relevant._replace(row=problem.numbers[relevant.row])
    return SweepTask(
        variant, _pull(problem, fold, variant), fold_problem.eval_queries.queries, relevant, problem.metric.k
    )


def _pull(problem: DenseNudgeProblem, fold: int, variant: Variant) -> PulledPassages:
    fold_problem = problem.fold_problems[fold]
    _, vectors = pulls_of_rows(fold_problem.train, variant.center)
    return PulledPassages(problem.numbers[fold_problem.field.rows], fold_problem.field.pulled, vectors, problem.total)

"""nudge_sharded(): the passages lie in many places; what can change the result comes together in one.

Without spread a passage moves only where a training query pulls it, and one that stays counts only where it is among a
query's best. So each shard sends its answers and each query's best, and the nudge of those few is the nudge of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from m3_integrations.core.errors import WrongDimension
from m3_integrations.nudging.dense import Nudged, nudge_dense
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.racing import SHORT
from m3_integrations.nudging.rank_metric import RankMetric
from m3_integrations.nudging.still import Still, numbered, resting
from m3_integrations.scale.workers import Here, Workers

Shard: TypeAlias = "Floats | str | PathLike[str]"


@dataclass(frozen=True, eq=False)
class NudgedShards:
    """What moved. rows: (moved,) numbered through all shards in their order, ascending; vectors: (moved, dim).

    nudged: the same nudge of the passages that came together, with gamma, curve, before and after.
    """

    rows: Ints
    vectors: Floats
    nudged: Nudged
    starts: Ints

    def of_shard(self, number: int) -> tuple[Ints, Floats]:
        """The rows of one shard that moved, numbered within it, and their vectors."""
        low, high = np.searchsorted(self.rows, self.starts[number : number + 2])
        return self.rows[low:high] - self.starts[number], self.vectors[low:high]


def nudge_sharded(
    shards: Sequence[Shard],
    train: Judged,
    validation: Judged,
    *,
    method: Literal["auto", "n", "m"] = "auto",
    metric: str = "ndcg@10",
    centre: float | None = None,
    gamma: float | None = None,
    workers: Workers | None = None,
) -> NudgedShards:
    """What `nudge(all passages, ..., spread=None)` answers, with no more in one place than what can change it.

    shards: arrays (any, dim), or .npy files that the workers can read; the answers of both sets are rows through all of
    them, in their order. workers: `Processes()` or `OnRay()`; None: here. In one place come the answers, and for each
    query of both sets the best of each shard: (answers + shards * queries * 50) * dim numbers at most.
    Raises what `nudge` raises. Passages that no query answers do not move: spread is for what fits into one machine.
    "auto" lets folds of the training queries judge at any size, where `nudge` does so up to 2 ** 28 / queries passages.
    """
    starts = np.cumsum([0, *(len(_passages(shard)) for shard in shards)], dtype=np.int64)
    for judged in (train, validation):
        judged.require_rows(int(starts[-1]))
    depth = max(SHORT, RankMetric.of(metric).k)
    asked = _Asked(
        _queries(train, validation), np.unique(train.answered().rows), np.unique([*train.rows, *validation.rows]), depth
    )
    tasks = [_Task(shard, int(start)) for shard, start in zip(shards, starts, strict=False)]
    found = list((workers or Here()).each(asked.itself, _what_counts, tasks))
    rows, vectors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    nudged = nudge_dense(
        vectors,
        replace(train, rows=np.searchsorted(rows, train.rows)),
        replace(validation, rows=np.searchsorted(rows, validation.rows)),
        method=method,
        metric=metric,
        spread=None,
        centre=centre,
        gamma=gamma,
    )
    return NudgedShards(rows[nudged.rows], nudged.vectors, nudged, starts)


class _Task(NamedTuple):
    shard: Shard
    start: int


class _Asked(NamedTuple):
    """What every shard is asked. queries: (queries, dim); pulled, answers: rows through all shards, ascending."""

    queries: Floats
    pulled: Ints
    answers: Ints
    depth: int

    def itself(self) -> _Asked:
        return self


def _what_counts(asked: _Asked, task: _Task) -> tuple[Ints, Floats]:
    """A shard's answers, each query's best, and its best of those that nothing pulls: rows, ascending, and vectors."""
    passages = _passages(task.shard)
    if len(passages) and passages.shape[1] != asked.queries.shape[1]:
        raise WrongDimension(
            f"the shard that begins at row {task.start} has {passages.shape[1]} dimensions and the queries "
            f"{asked.queries.shape[1]}; encode both with one model"
        )
    pulled, answers = (_within(rows, task.start, len(passages)) for rows in (asked.pulled, asked.answers))
    nothing = Still.nothing(len(asked.queries), asked.depth)
    best = nothing.with_(numbered([passages], 0, asked.queries.shape[1]), asked.queries)
    still = nothing.with_(resting(passages, pulled), asked.queries)
    rows = np.unique(np.concatenate([answers, best.rows.ravel(), still.rows.ravel()]))
    rows = rows[rows >= 0]
    return task.start + rows, np.asarray(passages[rows])


def _within(rows: Ints, start: int, count: int) -> Ints:
    return rows[(rows >= start) & (rows < start + count)].astype(np.int64) - start


def _queries(train: Judged, validation: Judged) -> Floats:
    return np.concatenate([train.answered().queries, validation.answered().queries])


def _passages(shard: Shard) -> Floats:
    if isinstance(shard, np.ndarray):
        return shard
    passages: Floats = np.load(shard, mmap_mode="r", allow_pickle=False)
    return passages

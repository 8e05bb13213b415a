"""Shards of a corpus and the tasks that workers run on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from m3_integrations.core.errors import WrongDimension
from m3_integrations.distributed.executors import Executor
from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.method.pulls import PullField
from m3_integrations.nudging.method.variants import Variant
from m3_integrations.nudging.optimize.dense import NonUnitRow, first_non_unit, moved_rows
from m3_integrations.nudging.selection.crossings import Relevant, TopKCandidates, top_k_candidates
from m3_integrations.nudging.selection.running_top_k import RunningTopK, numbered, unmoved_blocks

ShardSource: TypeAlias = "Floats | str | PathLike[str]"
R = TypeVar("R", covariant=True)


@dataclass(frozen=True)
class Shard:
    """A shard and its first row among all passages."""

    source: ShardSource
    start: int

    def passages(self, dim: int) -> Floats:
        """Return the passages, shape (n, dim).

        Raises:
            WrongDimension: If they have another dimension.
        """
        passages = _load_vectors(self.source)
        if len(passages) and passages.shape[1] != dim:
            raise WrongDimension(
                f"the shard that begins at row {self.start} has {passages.shape[1]} dimensions and the queries "
                f"{dim}; encode both with one model"
            )
        return passages.reshape(len(passages), dim)

    def rows(self, every: Ints, passage_count: int) -> Ints:
        """Return the given rows that are among the passages here, numbered from the first of them."""
        low, high = np.searchsorted(every, [self.start, self.start + passage_count])
        return every[low:high] - self.start


class ShardTask(Protocol[R]):
    """A task that is the same for every shard and is sent to each worker once."""

    def run(self, shard: Shard) -> R:
        """Run the task on one shard."""


class Shards:
    """Shards of a corpus, whose rows are numbered consecutively.

    Args:
        shards: Arrays of shape (any, dim), or .npy files.

    Attributes:
        starts: First row of each shard, and the number of passages, shape (shards + 1,).
        shards: The shards with their first rows.

    Raises:
        ValueError: If there are no shards.
        WrongDimension: If a shard does not have two axes.
    """

    def __init__(self, shards: Sequence[ShardSource]) -> None:
        if not shards:
            raise ValueError("there are no shards; give at least one array or .npy file")
        self.starts = np.cumsum([0, *(len(_load_vectors(shard)) for shard in shards)], dtype=np.int64)
        self.shards = [Shard(shard, int(start)) for shard, start in zip(shards, self.starts, strict=False)]

    def __len__(self) -> int:
        """Return the number of passages."""
        return int(self.starts[-1])

    def run(self, task: ShardTask[R], workers: Executor) -> Iterator[R]:
        """Run a task on every shard, yielding results in order."""
        return workers.map(partial(_identity, task), _run, self.shards)


def _load_vectors(shard: ShardSource) -> Floats:
    """Return an array unchanged, or a file as a memory map."""
    passages: Floats = shard if isinstance(shard, np.ndarray) else np.load(shard, mmap_mode="r", allow_pickle=False)
    if not np.issubdtype(passages.dtype, np.floating):
        passages = np.asarray(passages, np.float32)
    if passages.ndim != 2:
        raise WrongDimension(f"passages are (n, dim), got a shard of shape {passages.shape}")
    return passages


def _identity(task: ShardTask[R]) -> ShardTask[R]:
    return task


def _run(task: ShardTask[R], shard: Shard) -> R:
    return task.run(shard)


class InitialTopKResult(NamedTuple):
    """Result of `InitialTopK`, with rows numbered over all shards.

    Attributes:
        best: Best passages of each query.
        unmoved: Best passages of each query that no training query pulls.
        off: The first passage without unit length, or None.
    """

    best: RunningTopK
    unmoved: RunningTopK
    off: NonUnitRow | None

    def join(self, other: InitialTopKResult) -> InitialTopKResult:
        """Combine with the result of a later shard."""
        return InitialTopKResult(self.best.join(other.best), self.unmoved.join(other.unmoved), self.off or other.off)


class InitialTopK(NamedTuple):
    """Find the best passages of the evaluation queries before the nudge.

    Attributes:
        queries: Query vectors, shape (queries, dim).
        pulled: Rows of pulled passages over all shards, ascending.
        depth: Number of best passages.
        k: Number of best unmoved passages.
    """

    queries: Floats
    pulled: Ints
    depth: int
    k: int

    def run(self, shard: Shard) -> InitialTopKResult:
        passages = shard.passages(self.queries.shape[1])
        unmoved_here = unmoved_blocks(passages, shard.rows(self.pulled, len(passages)))
        unmoved = ((shard.start + rows, block) for rows, block in unmoved_here)
        off = first_non_unit(passages, np.arange(len(passages)))
        return InitialTopKResult(
            best=self._best(self.depth, numbered([passages], shard.start, passages.shape[1])),
            unmoved=self._best(self.k, unmoved),
            off=off and off._replace(row=shard.start + off.row),
        )

    def _best(self, k: int, blocks: Iterator[tuple[Ints, Floats]]) -> RunningTopK:
        return RunningTopK.empty(len(self.queries), k).update(blocks, self.queries)


class VectorsTask(NamedTuple):
    """Return the vectors of the given rows that are in the shard, shape (here, dim)."""

    rows: Ints
    dim: int

    def run(self, shard: Shard) -> Floats:
        passages = shard.passages(self.dim)
        return np.asarray(passages[shard.rows(self.rows, len(passages))])


class PulledPassages(NamedTuple):
    """Pulled passages and their pulls.

    Attributes:
        rows: Rows over all shards, shape (m,).
        passages: Their vectors before the nudge, shape (m, dim).
        vectors: Their pulls, shape (m, dim).
        total: Number of passages over all shards.
    """

    rows: Ints
    passages: Floats
    vectors: Floats
    total: int

    def field(self, passages: Floats, start: int) -> PullField:
        """Return the pull field of the passages that begin at row `start`."""
        return PullField(passages, self.rows - start, self.passages, self.total)


class SweepTask(NamedTuple):
    """Find the passages that may affect the metric while all passages move by a variant."""

    variant: Variant
    pull: PulledPassages
    queries: Floats
    relevant: Relevant
    k: int

    def run(self, shard: Shard) -> TopKCandidates:
        passages = shard.passages(self.queries.shape[1])
        pulls = self.pull.field(passages, shard.start).pulls(self.pull.vectors, self.variant.propagation)
        return top_k_candidates(
            passages, shard.start, pulls, self.queries, self.relevant, self.k, self.variant.trajectory
        )


class SweepTasks(NamedTuple):
    """Several sweep tasks, for which a shard is read once."""

    tasks: Sequence[SweepTask]

    def run(self, shard: Shard) -> list[TopKCandidates]:
        return [task.run(shard) for task in self.tasks]


class MoveTask(NamedTuple):
    """Move the passages of a shard; return the rows that moved, relative to the shard, and their vectors."""

    variant: Variant
    gamma: float
    pull: PulledPassages

    def run(self, shard: Shard) -> tuple[Ints, Floats]:
        passages = shard.passages(self.pull.passages.shape[1])
        pulls = self.pull.field(passages, shard.start).pulls(self.pull.vectors, self.variant.propagation)
        return moved_rows(passages, pulls, self.variant.trajectory, self.gamma)

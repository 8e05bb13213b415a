"""Passages in many places, and what each place is asked when all of them are nudged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from m3_integrations.core.errors import WrongDimension
from m3_integrations.nudging.dense import OffUnit, moved_rows, off_unit
from m3_integrations.nudging.field import Field
from m3_integrations.nudging.gamma import Contenders, Relevant, contenders
from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.plans import Plan
from m3_integrations.nudging.still import Still, numbered, resting
from m3_integrations.scale.workers import Workers

Shard: TypeAlias = "Floats | str | PathLike[str]"
R = TypeVar("R", covariant=True)


@dataclass(frozen=True)
class Place:
    """A shard, and the row at which it begins among all passages."""

    shard: Shard
    start: int

    def passages(self, dim: int) -> Floats:
        """(n, dim). Raises WrongDimension."""
        passages = passages_of(self.shard)
        if len(passages) and passages.shape[1] != dim:
            raise WrongDimension(
                f"the shard that begins at row {self.start} has {passages.shape[1]} dimensions and the queries "
                f"{dim}; encode both with one model"
            )
        return passages.reshape(len(passages), dim)

    def rows(self, every: Ints, count: int) -> Ints:
        """Those of the rows, ascending, that are among the `count` passages here, numbered from the first of them."""
        low, high = np.searchsorted(every, [self.start, self.start + count])
        return every[low:high] - self.start


class Question(Protocol[R]):
    """What every place is asked: the same of each, so it is sent to a worker once."""

    def answer(self, place: Place) -> R: ...


class Shards:
    """Passages in many places, numbered through all of them in their order. starts: (shards + 1,) where each begins."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        if not shards:
            raise ValueError("there are no shards; give at least one array or .npy file")
        self.starts = np.cumsum([0, *(len(passages_of(shard)) for shard in shards)], dtype=np.int64)
        self.places = [Place(shard, int(start)) for shard, start in zip(shards, self.starts, strict=False)]

    def __len__(self) -> int:
        """How many passages there are in all."""
        return int(self.starts[-1])

    def ask(self, question: Question[R], workers: Workers) -> Iterator[R]:
        """The answer of each, in their order."""
        return workers.each(partial(_itself, question), _answer, self.places)


def passages_of(shard: Shard) -> Floats:
    """An array as it is, a file mapped into memory."""
    passages: Floats = shard if isinstance(shard, np.ndarray) else np.load(shard, mmap_mode="r", allow_pickle=False)
    if not np.issubdtype(passages.dtype, np.floating):
        passages = np.asarray(passages, np.float32)
    if passages.ndim != 2:
        raise WrongDimension(f"passages are (n, dim), got a shard of shape {passages.shape}")
    return passages


def _itself(question: Question[R]) -> Question[R]:
    return question


def _answer(question: Question[R], place: Place) -> R:
    return question.answer(place)


class Rest(NamedTuple):
    """best: of each query, by row of all; still: the best of those that nothing pulls; off: a passage off length 1."""

    best: Still
    still: Still
    off: OffUnit | None

    def join(self, other: Rest) -> Rest:
        return Rest(self.best.join(other.best), self.still.join(other.still), self.off or other.off)


class AtRest(NamedTuple):
    """How do the queries find the passages as they lie? queries: (queries, dim); pulled: rows of all, ascending.

    depth: of the best; k: of the best of those that nothing pulls.
    """

    queries: Floats
    pulled: Ints
    depth: int
    k: int

    def answer(self, place: Place) -> Rest:
        passages = place.passages(self.queries.shape[1])
        left = resting(passages, place.rows(self.pulled, len(passages)))
        still = ((place.start + rows, block) for rows, block in left)
        off = off_unit(passages, np.arange(len(passages)))
        return Rest(
            best=self._best(self.depth, numbered([passages], place.start, passages.shape[1])),
            still=self._best(self.k, still),
            off=off and off._replace(row=place.start + off.row),
        )

    def _best(self, k: int, blocks: Iterator[tuple[Ints, Floats]]) -> Still:
        return Still.nothing(len(self.queries), k).with_(blocks, self.queries)


class Vectors(NamedTuple):
    """What are the vectors of these rows of all, ascending? Answers with (those here, dim)."""

    rows: Ints
    dim: int

    def answer(self, place: Place) -> Floats:
        passages = place.passages(self.dim)
        return np.asarray(passages[place.rows(self.rows, len(passages))])


class Pull(NamedTuple):
    """Pulled passages and what pulls them. rows: (m,) of all, ascending; passages, vectors: (m, dim); total: of all."""

    rows: Ints
    passages: Floats
    vectors: Floats
    total: int

    def field(self, passages: Floats, start: int) -> Field:
        """The field of the passages that begin at row `start`."""
        return Field(passages, self.rows - start, self.passages, self.total)


class Contest(NamedTuple):
    """Who comes among the k best of a query while all passages move by the plan, and a relevant one may too?"""

    plan: Plan
    pull: Pull
    queries: Floats
    relevant: Relevant
    k: int

    def answer(self, place: Place) -> Contenders:
        passages = place.passages(self.queries.shape[1])
        pulls = self.pull.field(passages, place.start).pulls(self.pull.vectors, self.plan.spread)
        return contenders(passages, place.start, pulls, self.queries, self.relevant, self.k, self.plan.way)


class Contests(NamedTuple):
    """Several at once: a shard is read once for all."""

    contests: Sequence[Contest]

    def answer(self, place: Place) -> list[Contenders]:
        return [contest.answer(place) for contest in self.contests]


class Move(NamedTuple):
    """Where do the passages go? Answers with the rows that move, numbered from the first here, and their vectors."""

    plan: Plan
    gamma: float
    pull: Pull

    def answer(self, place: Place) -> tuple[Ints, Floats]:
        passages = place.passages(self.pull.passages.shape[1])
        pulls = self.pull.field(passages, place.start).pulls(self.pull.vectors, self.plan.spread)
        return moved_rows(passages, pulls, self.plan.way, self.gamma)

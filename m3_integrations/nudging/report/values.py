"""Values of a nudge report: moves, per-question outcomes and coverage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from m3_integrations.core.encoded import Mode
from m3_integrations.core.types import Query
from m3_integrations.evaluation.significance import bootstrap_interval
from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.method.propagation import Propagation
from m3_integrations.nudging.method.variants import Method
from m3_integrations.nudging.optimize.dense import Curve
from m3_integrations.nudging.selection.cross_validation import SEED

FEW_POPULAR = 5  # passages whose share of the training questions is a warning


def in_steps(curve: Curve) -> bool:
    """Return whether a curve is an exact step function; otherwise it has one level per sampled edge."""
    return len(curve.edges) == len(curve.levels) + 1


class Move(NamedTuple):
    """How the vectors of one mode moved.

    Attributes:
        method: "nudge-n" or "nudge-m".
        gamma: Step size: a squared chord length for "nudge-n", a length for "nudge-m".
        propagation: Propagation of pulls to neighbors, or None.
        center: Fraction of the mean query that was subtracted from each query.
        lengths: Distance of each passage that moved, shape (moved,); for multi-vectors the mean over the vectors that
            moved.
    """

    method: Method
    gamma: float
    propagation: Propagation | None
    center: float
    lengths: Floats

    @property
    def moved(self) -> int:
        """Number of passages that moved."""
        return len(self.lengths)


class Change(NamedTuple):
    """One question: its metric and the ids of its best passages, before and after."""

    query: Query
    before: float
    after: float
    best_before: Sequence[str]
    best_after: Sequence[str]

    @property
    def gain(self) -> float:
        """Change of the metric."""
        return self.after - self.before

    @property
    def rank_before(self) -> int | None:
        """Rank of the first answer before the nudge, from 1; None if it is not among the best passages."""
        return _first_answer(self.query, self.best_before)

    @property
    def rank_after(self) -> int | None:
        """The same after the nudge."""
        return _first_answer(self.query, self.best_after)


def _first_answer(query: Query, ids: Sequence[str]) -> int | None:
    return next((rank for rank, id in enumerate(ids, 1) if query.relevant.get(id, 0) > 0), None)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The effect of a nudge on a set of questions.

    Attributes:
        queries: The questions.
        before_each: Metric of each question before the nudge, shape (questions,).
        after_each: The same after the nudge.
        best_before: Ids of the best passages of each question before the nudge.
        best_after: The same after the nudge.
        clusters: Topic cluster of each question, shape (questions,); None if they were not clustered.
        taught: Text of a training question that each passage answers, by passage id.
    """

    queries: Sequence[Query]
    before_each: Floats
    after_each: Floats
    best_before: Sequence[Sequence[str]]
    best_after: Sequence[Sequence[str]]
    clusters: Ints | None = None
    taught: Mapping[str, str] = field(default_factory=dict)

    @property
    def before(self) -> float:
        """Mean metric before the nudge."""
        return float(self.before_each.mean()) if len(self.queries) else 0.0

    @property
    def after(self) -> float:
        """Mean metric after the nudge."""
        return float(self.after_each.mean()) if len(self.queries) else 0.0

    @property
    def gain(self) -> float:
        """Change of the mean metric."""
        return self.after - self.before

    @property
    def first_before(self) -> float:
        """Fraction of the questions with an answer at rank 1 before the nudge."""
        return _mean_first(change.rank_before for change in self.changes)

    @property
    def first_after(self) -> float:
        """The same after the nudge."""
        return _mean_first(change.rank_after for change in self.changes)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the gain, by a paired bootstrap over the questions."""
        return bootstrap_interval(self.after_each - self.before_each, SEED)

    @cached_property
    def changes(self) -> list[Change]:
        """Every question, largest gain first."""
        rows = zip(self.queries, self.before_each, self.after_each, self.best_before, self.best_after, strict=True)
        changes = [Change(query, float(b), float(a), top, new_top) for query, b, a, top, new_top in rows]
        return sorted(changes, key=lambda change: (-change.gain, change.query.id))

    @property
    def won(self) -> list[Change]:
        """Questions that gained, largest gain first."""
        return [change for change in self.changes if change.gain > 0]

    @property
    def lost(self) -> list[Change]:
        """Questions that lost, largest loss first."""
        return [change for change in reversed(self.changes) if change.gain < 0]


def _mean_first(ranks: Iterable[int | None]) -> float:
    first = [rank == 1 for rank in ranks]
    return sum(first) / len(first) if first else 0.0


class Coverage(NamedTuple):
    """How much of an index the training questions cover.

    Attributes:
        passages: Passages in the index.
        answered: Passages that answer at least one training question.
        queries: Training questions.
        unanswered: Training questions without an answer in the index.
        unknown: Answers that the index does not hold.
        repeated: Validation and test questions that are training questions too.
        concentration: Fraction of the training questions that name one of the FEW_POPULAR most-named passages.
        indiscriminate: Passages whose many questions have nothing in common; these answers are not used.
    """

    passages: int
    answered: int
    queries: int
    unanswered: int
    unknown: int
    repeated: int
    concentration: float = 0.0
    indiscriminate: int = 0

    @property
    def share(self) -> float:
        """Fraction of the passages that answer a training question."""
        return self.answered / self.passages if self.passages else 0.0


class Evaluation(NamedTuple):
    """The part of a report that replays searches, computed when it is first read.

    Attributes:
        validation: Outcome of the validation questions; None without any.
        test: Outcome of the test questions; None without any.
        held_out_topics: Outcome of each topic cluster of the training questions when the other clusters alone are used.
        other_curves: By mode and metric, curves that played no part in the choice.
    """

    validation: Outcome | None
    test: Outcome | None
    held_out_topics: Outcome | None
    other_curves: Mapping[Mode, Mapping[str, Curve]]

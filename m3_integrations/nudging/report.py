"""What a nudge did, as a value: figures, who won and who lost, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from m3_integrations.core.encoded import Mode
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.texts import Query
from m3_integrations.index.base import Index
from m3_integrations.nudging.dense import Curve
from m3_integrations.nudging.judged import Floats, Ints
from m3_integrations.nudging.plans import Method
from m3_integrations.nudging.spread import Spread
from m3_integrations.nudging.trial import bootstrap

if TYPE_CHECKING:
    from rich.console import RenderableType

THIN = 0.1  # of the passages: fewer that some query answers are said to be few
UNFOUND = 0.01  # of the metric: more than this between what was chosen by and what a search finds is said


def in_steps(curve: Curve) -> bool:
    """Whether a curve is exact: a level between each two edges. Otherwise it is points, a level at each edge."""
    return len(curve.edges) == len(curve.levels) + 1


class Move(NamedTuple):
    """How one mode moved. gamma: a squared chord in method "n", a length in "m"; spread, centre: as in `Moved`.

    lengths: (moved,) how far each passage moved: of dense and sparse rows the length of the difference, in late
    interaction the mean over the vectors that moved.
    """

    method: Method
    gamma: float
    spread: Spread | None
    centre: float
    lengths: Floats

    @property
    def moved(self) -> int:
        """How many passages moved."""
        return len(self.lengths)


class Change(NamedTuple):
    """One question before and after: its metric, and the ids of its best passages."""

    query: Query
    before: float
    after: float
    best_before: Sequence[str]
    best_after: Sequence[str]

    @property
    def gain(self) -> float:
        return self.after - self.before


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a nudge did to one set of questions, row by row.

    clusters: (questions,) which of them are about alike, where that was looked into.
    """

    queries: Sequence[Query]
    before_each: Floats
    after_each: Floats
    best_before: Sequence[Sequence[str]]
    best_after: Sequence[Sequence[str]]
    clusters: Ints | None = None

    @property
    def before(self) -> float:
        return float(self.before_each.mean()) if len(self.queries) else 0.0

    @property
    def after(self) -> float:
        return float(self.after_each.mean()) if len(self.queries) else 0.0

    @property
    def gain(self) -> float:
        return self.after - self.before

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the gain, by a paired bootstrap over the questions."""
        return bootstrap(self.after_each - self.before_each)

    @cached_property
    def changes(self) -> list[Change]:
        """Every question, what gained most first."""
        rows = zip(self.queries, self.before_each, self.after_each, self.best_before, self.best_after, strict=True)
        every = [Change(query, float(b), float(a), was, now) for query, b, a, was, now in rows]
        return sorted(every, key=lambda change: (-change.gain, change.query.id))

    @property
    def won(self) -> list[Change]:
        return [change for change in self.changes if change.gain > 0]

    @property
    def lost(self) -> list[Change]:
        """What lost most first."""
        return [change for change in reversed(self.changes) if change.gain < 0]


class Coverage(NamedTuple):
    """What the training queries speak of. passages: in the index; answered: of these, the answers of some query.

    queries: training queries; silent: of these, without an answer that the index holds. unknown: answers that it does
    not hold. repeated: validation or test questions that are asked in training too.
    """

    passages: int
    answered: int
    queries: int
    silent: int
    unknown: int
    repeated: int

    @property
    def share(self) -> float:
        return self.answered / self.passages if self.passages else 0.0


@dataclass(frozen=True, eq=False)
class NudgeReport:
    """What a fit did. version: its number in the ledger; plan: the search that it was judged by, with its weights.

    moves: by mode, empty where nothing was moved; metric: its name; before, after: on the validation questions, or
    where there are none on folds of the training questions, each judged without its own pulls.
    gain, error: cross-validated, on questions that the choice did not see, and its standard error.
    curves: by mode, the metric over gamma; other_curves: by mode and metric, others that nothing was chosen by.
    validation, test: question by question, as the search of the plan ranks what it proposes; shifted: training
    questions of a cluster, after a nudge by all other clusters alone: how questions unlike any before will fare.
    """

    version: int
    metric: str
    plan: SearchPlan
    moves: Mapping[Mode, Move]
    before: float
    after: float
    gain: float
    error: float
    curves: Mapping[Mode, Curve]
    validation: Outcome | None
    test: Outcome | None
    shifted: Outcome | None
    coverage: Coverage
    seconds: float
    other_curves: Mapping[Mode, Mapping[str, Curve]] = field(default_factory=dict)

    @property
    def moved(self) -> bool:
        return bool(self.moves)

    def metric_curves(self, mode: Mode) -> dict[str, Curve]:
        """metric -> it over gamma, that of the choice first."""
        return {self.metric: self.curves[mode], **self.other_curves.get(mode, {})}

    def added(self, mode: Mode) -> float:
        """What the metric gains by the nudge of this mode, all else as chosen, on the curve of its choice."""
        move, curve = self.moves.get(mode), self.curves[mode]
        if move is None:
            return 0.0
        place = int(np.searchsorted(curve.edges, move.gamma, "right" if in_steps(curve) else "left"))
        return float(curve.levels[place - 1 if in_steps(curve) else place] - curve.levels[0])

    @cached_property
    def warnings(self) -> list[str]:
        """What to beware of, in sentences."""
        return [*self._of_coverage(), *self._of_gain()]

    def render(self, path: str | PathLike[str], index: Index | None = None) -> None:
        """Write the report as one HTML page with pictures; index: the one that was nudged, for the passages' texts."""
        from m3_integrations.nudging.page import page, write_page  # which needs this file

        write_page(Path(path), page(self, index))

    def __rich__(self) -> RenderableType:
        from m3_integrations.nudging.table import tables  # which needs this file

        return tables(self)

    def __str__(self) -> str:
        from m3_integrations.nudging.table import plain

        return plain(self)

    def _of_coverage(self) -> list[str]:
        said, cover = [], self.coverage
        if cover.share < THIN:
            said.append(
                f"coverage is low: training questions name {cover.answered} of {cover.passages} passages; the others "
                "follow their neighbours at best. Add questions, for instance generated ones"
            )
        if cover.unknown:
            said.append(f"{cover.unknown} answers name passages that the index does not hold; they were left out")
        if cover.silent:
            said.append(f"{cover.silent} training questions have no answer in the index; they pull nothing")
        if cover.repeated:
            said.append(
                f"{cover.repeated} questions are in training and in validation or test alike, which flatters the "
                "figures; split with m3_integrations.nudging.splits.split"
            )
        return said

    def _of_gain(self) -> list[str]:
        if not self.moves:
            return ["nothing was moved: no gain stood out from chance on questions that the choice did not see"]
        said, judged = [], self.test or self.validation
        if judged is not None and judged.interval[0] <= 0 <= judged.interval[1]:
            low, high = judged.interval
            said.append(f"the gain is within noise: {judged.gain:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}")
        if self.validation is not None and self.after - self.validation.after > UNFOUND:
            said.append(
                f"the search does not propose all that the nudge would rank: {self.metric} on validation is "
                f"{self.validation.after:.3f}, and {self.after:.3f} on short lists that hold it; give Nudger a plan "
                f"with more than {self.plan.candidates} candidates, and search with it"
            )
        if self.shifted is not None and self.shifted.interval[1] < 0:
            said.append(
                f"questions unlike the training questions lose: {self.shifted.before:.3f} to {self.shifted.after:.3f}; "
                "if such questions come, add some of them, or go back with revert()"
            )
        return said

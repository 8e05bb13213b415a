"""Nudges of dense vectors: choice of the variant and the exact step size."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.closed_form import UNIT, shares_of_rows
from m3_integrations.nudging.method.propagation import Propagation
from m3_integrations.nudging.method.pulls import PullField, Pulls
from m3_integrations.nudging.method.trajectories import Trajectory
from m3_integrations.nudging.method.variants import (
    Method,
    MethodChoice,
    Propagate,
    Variant,
    candidate_variants,
    require_known,
)
from m3_integrations.nudging.optimize.summary import summarize
from m3_integrations.nudging.selection.coordinate_ascent import Selected
from m3_integrations.nudging.selection.cross_validation import Choice, choose, is_significant_loss, join
from m3_integrations.nudging.selection.crossings import parts
from m3_integrations.nudging.selection.folds import FEW_QUERIES, CrossFitFolds, distinct_queries
from m3_integrations.nudging.selection.gamma_sweep import Sweep, sweep
from m3_integrations.nudging.selection.prescreen import SHORT, prescreen_variants
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.running_top_k import RunningTopK, numbered, unmoved_blocks

CROSS_FITTING_LIMIT = 1 << 28  # training queries that evaluate, times passages, up to which cross-fitting is quick


class Curve(NamedTuple):
    """A metric over gamma: `levels[i]` between `edges[i]` and `edges[i + 1]`."""

    edges: Floats
    levels: Floats


@dataclass(frozen=True, eq=False, repr=False)
class Nudged(FieldsDisplay):
    """Result of a nudge; only the passages that moved are stored.

    Attributes:
        start: Passages before the nudge, shape (n, dim).
        rows: Rows that moved, ascending, shape (moved,).
        vectors: Their new vectors, shape (moved, dim).
        method: "nudge-n" or "nudge-m".
        gamma: Step size; 0 if nothing moved.
        propagation: Propagation of pulls to neighbors, or None.
        center: Fraction of the mean query that was subtracted from each query.
        metric: Name of the metric.
        before: Metric before the nudge on validation, or on folds of the training queries if no validation query has an
            answer.
        after: The same after the nudge.
        curve: The same over gamma.
        choice: How gamma was chosen, with the cross-validated gain; None if gamma was given.
        pulling: The queries that pull: those of train with an answer that counts, each once.
        unanswered_train: Training queries without an answer or weight, which were left out.
        unanswered_validation: The same of the validation queries.
    """

    start: Floats
    rows: Ints
    vectors: Floats
    method: Method
    gamma: float
    propagation: Propagation | None
    center: float
    metric: str
    before: float
    after: float
    curve: Curve
    choice: Choice | None
    pulling: Judged
    unanswered_train: int
    unanswered_validation: int

    @property
    def passages(self) -> Floats:
        """All passages, shape (n, dim), assembled at each call."""
        passages = np.array(self.start, dtype=self.vectors.dtype)
        passages[self.rows] = self.vectors
        return passages

    @property
    def moved(self) -> int:
        """Number of passages that moved."""
        return len(self.rows)

    @property
    def summary(self) -> str:
        """What was done and whether to trust it, in two sentences."""
        evidence = self.choice.evidence if self.choice else None
        return summarize(self.moved, len(self.start), self.metric, (self.before, self.after), evidence)


class NudgeOptions(NamedTuple):
    """Options of a nudge of dense vectors, as `nudge` documents them."""

    method: MethodChoice = "auto"
    metric: str = "ndcg@10"
    propagate: Propagate = "auto"
    center: float | None = None
    gamma: float | None = None


def nudge_dense(
    passages: Floats,
    train: Judged,
    validation: Judged,
    options: NudgeOptions,
    background: Floats | Iterable[Floats] | None = None,
    methods: Sequence[Method] = ("nudge-n", "nudge-m"),
) -> Nudged:
    """Nudge dense vectors; `nudge` documents the arguments that both take.

    Args:
        passages: Unit vectors of shape (n, dim), an array or a memory map.
        train: Queries that pull the passages answering them.
        validation: Queries that choose the variant and the step size.
        options: Options of the nudge.
        background: More passages, shape (any, dim) or blocks of that shape, which do not move.
        methods: Methods that "auto" may take; ("nudge-n",) for stores that compare by cosine.

    Returns:
        The moved vectors and how they were chosen.

    Raises:
        WrongDimension: If queries and passages differ in dimension.
        NonFiniteVector: If a vector holds NaN or infinity.
        ValueError: If an option is out of range, or a passage is not a unit vector for "nudge-n".
    """
    method, metric, propagate, center, gamma = options
    require_known(method, propagate)
    problem = DenseNudgeProblem.of(passages, train, validation, RankMetric.of(metric), cross_fitted=method == "auto")
    counts = len(problem.passages), len(problem.folds.train)
    possible = problem.possible(candidate_variants(method, propagate, center, *counts, methods))
    problem = problem.with_background(background, problem.depth(possible, method, gamma))
    return problem.solve(problem.shortlist(possible, method, gamma), method, gamma)


class VariantShortlist(NamedTuple):
    """Variants to sweep exactly; `prescreened` is the result of the prescreen, if there was one."""

    variants: Sequence[Variant]
    prescreened: Selected | None


class NonUnitRow(NamedTuple):
    """A passage whose length is not 1."""

    row: int
    length: float


@dataclass(frozen=True, eq=False)
class _FoldProblem:
    """Passages, the queries that pull them, and the evaluation queries of one fold.

    `background` holds the best scores of passages that are not among these.
    """

    passages: Floats
    train: Judged
    eval_queries: Judged
    metric: RankMetric
    background: RunningTopK
    total: int

    def sweep(self, variant: Variant) -> Sweep:
        unmoved = self._unmoved if variant.propagation is None else self.background
        return sweep(self.passages, self.pulls(variant), self.eval_queries, self.metric, variant.trajectory, unmoved)

    def pulls(self, variant: Variant) -> Pulls:
        return self.field.by(self.train, variant)

    @cached_property
    def field(self) -> PullField:
        return PullField.of(self.passages, self.train, self.total)

    @cached_property
    def _unmoved(self) -> RunningTopK:
        """Best scores of all passages without a pull."""
        return self.background.update(unmoved_blocks(self.passages, self.field.rows), self.eval_queries.queries)


@dataclass(frozen=True, eq=False)
class DenseNudgeProblem:
    """Passages and cross-fitting folds.

    The passages may be the part of `total` that matters. `background` holds at least the k best scores of the rest for
    each evaluation query, `numbers` the row of each passage among all, shape (n,), and `sweeps`, by fold and variant,
    sweeps over all passages that were computed elsewhere.
    """

    passages: Floats
    folds: CrossFitFolds
    metric: RankMetric
    background: RunningTopK
    unanswered: tuple[int, int]
    numbers: Ints
    total: int
    sweeps: Mapping[tuple[int, Variant], Sweep] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        passages: Floats,
        train: Judged,
        validation: Judged,
        metric: RankMetric,
        *,
        cross_fitted: bool,
        numbers: Ints | None = None,
        total: int | None = None,
    ) -> DenseNudgeProblem:
        """Build the problem; `cross_fitted` lets folds of the training queries evaluate too."""
        passages = _checked(passages, train, validation)
        numbers, total = np.arange(len(passages)) if numbers is None else numbers, total or len(passages)
        folds = make_folds(train, validation, total if cross_fitted else None)
        _require_finite(passages, np.unique(folds.train.rows), numbers)
        unanswered = len(train) - len(train.answered()), len(validation) - len(validation.answered())
        unmoved = RunningTopK.empty(len(folds.eval_queries), metric.k)
        return cls(passages, folds, metric, unmoved, unanswered, numbers, total)

    def with_background(self, background: Floats | Iterable[Floats] | None, depth: int) -> DenseNudgeProblem:
        """Add background passages, of which the `depth` best per evaluation query are kept."""
        blocks = [background] if isinstance(background, np.ndarray) else background or []
        queries = self.folds.eval_queries.queries
        nothing = RunningTopK.empty(len(queries), depth)
        best = nothing.update(numbered(blocks, len(self.passages), queries.shape[1]), queries)
        return replace(self, background=best)

    def depth(self, possible: Sequence[Variant], method: MethodChoice, gamma: float | None) -> int:
        """Return how many of the best background passages are needed."""
        return max(SHORT, self.metric.k) if _is_prescreened(possible, method, gamma) else self.metric.k

    def possible(self, every: Sequence[Variant], non_unit: NonUnitRow | None = None) -> list[Variant]:
        """Return the variants that apply.

        Args:
            every: Variants to consider.
            non_unit: First non-unit row of all passages, if these are a part of them.

        Raises:
            ValueError: If no variant applies because a passage is not a unit vector.
        """
        pulled, _ = shares_of_rows(self.folds.train)
        if any(variant.propagation for variant in every) and len(pulled):
            _require_finite(self.passages, np.arange(len(self.passages)), self.numbers)
        else:
            every = list(dict.fromkeys(variant._replace(propagation=None) for variant in every))
        non_unit_pulled = self._named(first_non_unit(self.passages, pulled))
        non_unit_any = non_unit_pulled
        if non_unit_pulled is None and any(variant.propagation for variant in every):
            non_unit_any = non_unit or first_non_unit(self.passages, np.arange(len(self.passages)))
        possible = [
            variant
            for variant in every
            if variant.method == "nudge-m" or (non_unit_any if variant.propagation else non_unit_pulled) is None
        ]
        found = non_unit_pulled or non_unit_any
        if not possible and found:
            raise ValueError(
                f"passage {found.row} has length {found.length:.4g} and method 'nudge-n' needs length 1; "
                "divide each row by its length, or use method='nudge-m'"
            )
        return possible

    def _named(self, non_unit: NonUnitRow | None) -> NonUnitRow | None:
        return non_unit and non_unit._replace(row=int(self.numbers[non_unit.row]))

    def shortlist(self, possible: Sequence[Variant], method: MethodChoice, gamma: float | None) -> VariantShortlist:
        """Return the variant that the prescreen prefers, or all of them for a given gamma.

        Raises:
            ValueError: If gamma is out of range, or missing without an evaluation query to choose it by.
        """
        if gamma is not None:
            _require_in_range(gamma, {variant.method for variant in possible})
        elif not len(self.folds.eval_queries):
            raise ValueError("no validation query has an answer to choose gamma by; judge some, or give gamma")
        if not _is_prescreened(possible, method, gamma):
            return VariantShortlist(possible, None)
        variant, prescreened = prescreen_variants(
            self.passages, self.folds, self._best_unmoved(), possible, self.metric, self.total
        )
        return VariantShortlist([variant], prescreened)

    def solve(self, shortlist: VariantShortlist, method: MethodChoice, gamma: float | None) -> Nudged:
        """Nudge by the best of these variants, at the given gamma or its best one."""
        if gamma is not None:
            sweeps = [self.sweep(variant) for variant in shortlist.variants]
            which = int(np.argmax([each.level(gamma) for each in sweeps]))
            return self.nudged(shortlist.variants[which], sweeps[which], gamma, None)
        variant, choice = shortlist.variants[0], self._choice(shortlist)
        swept = self.sweep(variant)
        vetoed = is_significant_loss(swept.at(choice.gamma) - swept.start, swept.weights)
        moves = method != "auto" or (choice.is_significant and not vetoed)
        return self.nudged(variant, swept, choice.gamma if moves else 0.0, choice)

    def folds_used(self, gamma: float | None) -> list[int]:
        """Return the folds whose sweeps the result depends on."""
        every = list(range(len(self.folds.held_out)))
        return every[:1] if gamma is not None and len(self.folds.eval_in(0)) else every

    def _choice(self, shortlist: VariantShortlist) -> Choice:
        """Return the exact gamma and the cross-validated gain of the whole choice."""
        joint = self.joint_sweep(shortlist.variants[0])
        if shortlist.prescreened is None:
            return choose([joint])
        ((_, strength),) = shortlist.prescreened.configuration.strengths
        steps = shortlist.variants[0].gammas
        place = int(np.searchsorted(steps, strength.gamma))
        gamma = 0.0
        if place:  # exact between the neighbors of the step that the prescreen prefers
            gamma, _ = joint.best(steps[place - 1], steps[place + 1] if place + 1 < len(steps) else np.inf)
        return Choice(0, gamma, shortlist.prescreened.evidence)

    def sweep(self, variant: Variant) -> Sweep:
        """Sweep over the validation queries, or over the folds if none has an answer."""
        return self._sweep(0, variant) if len(self.folds.eval_in(0)) else self.joint_sweep(variant)

    def joint_sweep(self, variant: Variant) -> Sweep:
        """Sweep over all evaluation queries."""
        return join([self._sweep(fold, variant) for fold in range(len(self.folds.held_out))])

    def _sweep(self, fold: int, variant: Variant) -> Sweep:
        return self.sweeps.get((fold, variant)) or self.fold_problems[fold].sweep(variant)

    @cached_property
    def fold_problems(self) -> list[_FoldProblem]:
        k, fold_problems = self.metric.k, []
        for fold in range(len(self.folds.held_out)):
            evaluated, train = self.folds.eval_in(fold), self.folds.train_queries_for(fold)
            eval_queries, background = self.folds.eval_queries.take(evaluated), self.background.take(evaluated).first(k)
            fold_problems.append(_FoldProblem(self.passages, train, eval_queries, self.metric, background, self.total))
        return fold_problems

    def _best_unmoved(self) -> RunningTopK:
        return self.background.update(
            numbered([self.passages], 0, self.passages.shape[1]), self.folds.eval_queries.queries
        )

    def nudged(self, variant: Variant, swept: Sweep, gamma: float, choice: Choice | None) -> Nudged:
        rows, vectors = moved_rows(self.passages, self.fold_problems[0].pulls(variant), variant.trajectory, gamma)
        return Nudged(
            start=self.passages,
            rows=rows,
            vectors=vectors,
            method=variant.method,
            gamma=gamma,
            propagation=variant.propagation if gamma > 0 else None,
            center=variant.center if gamma > 0 else 0.0,
            metric=str(self.metric),
            before=swept.before,
            after=swept.level(gamma),
            curve=Curve(*swept.curve()),
            choice=choice,
            pulling=self.folds.train,
            unanswered_train=self.unanswered[0],
            unanswered_validation=self.unanswered[1],
        )


def make_folds(train: Judged, validation: Judged, passages: int | None) -> CrossFitFolds:
    """Build the folds; training queries are held out too if `passages` of them are few enough, None for never."""
    cross_fitted = passages is not None and min(len(train), FEW_QUERIES) <= CROSS_FITTING_LIMIT // max(passages, 1)
    train, eval_queries = distinct_queries(train, validation, cross_fitted=cross_fitted)
    return CrossFitFolds.k_fold(train, eval_queries, FEW_QUERIES if cross_fitted else 0)


def _is_prescreened(possible: Sequence[Variant], method: MethodChoice, gamma: float | None) -> bool:
    """Return whether short lists choose the variant, and tell whether the gain is beyond chance."""
    return gamma is None and (len(possible) > 1 or method == "auto")


def moved_rows(passages: Floats, pulls: Pulls, trajectory: Trajectory, gamma: float) -> tuple[Ints, Floats]:
    """Return the rows that move, ascending, and their new vectors."""
    rows = pulls.rows if gamma > 0 else pulls.rows[:0]
    vectors = np.empty((len(rows), passages.shape[1]), _precision(passages))
    stays = np.zeros(len(rows), bool)
    for part in parts(len(rows)):
        before = passages[rows[part]]
        vectors[part] = trajectory.move(before.astype(np.float64), pulls.take(part).astype(np.float64), gamma)
        stays[part] = (vectors[part] == before).all(axis=1)
    return (rows[~stays], vectors[~stays]) if stays.any() else (rows, vectors)


def _require_in_range(gamma: float, methods: Collection[Method]) -> None:
    if not 0 <= gamma < math.inf or ("nudge-n" in methods and gamma > 4):
        raise ValueError(
            f"gamma is a squared chord in method 'nudge-n', 0 <= gamma <= 4, and a length in 'nudge-m'; got {gamma}"
        )


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


def first_non_unit(passages: Floats, rows: Ints) -> NonUnitRow | None:
    """The first of these rows whose length is not 1."""
    for part in parts(len(rows)):
        lengths = np.linalg.norm(passages[rows[part]], axis=1)
        off = np.abs(lengths - 1) > UNIT
        if off.any():
            first = int(np.argmax(off))
            return NonUnitRow(int(rows[part][first]), float(lengths[first]))
    return None


def _require_finite(passages: Floats, rows: Ints, numbers: Ints) -> None:
    for part in parts(len(rows)):
        finite = np.isfinite(passages[rows[part]]).all(axis=1)
        if not finite.all():
            raise NonFiniteVector(
                f"passage {numbers[rows[part][np.argmin(finite)]]} holds NaN or infinity; re-encode it"
            )

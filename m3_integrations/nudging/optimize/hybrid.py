"""Nudges of several modes together, by their fused ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, Modes
from m3_integrations.core.errors import MissingMode
from m3_integrations.nudging.corpus import Corpus, EncodedCorpus, replace_rows
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.late_interaction import MovedVectors, rotate_matched
from m3_integrations.nudging.method.propagation import Propagation
from m3_integrations.nudging.method.pulls import PullField
from m3_integrations.nudging.method.variants import (
    MULTI_VECTOR_CENTERS,
    SPARSE_CENTERS,
    TRAJECTORIES,
    Method,
    MethodChoice,
    Propagate,
    Variant,
    candidate_variants,
    require_known,
)
from m3_integrations.nudging.optimize.dense import Curve, moved_rows
from m3_integrations.nudging.optimize.summary import summarize
from m3_integrations.nudging.progress import OnProgress, ProgressMeter
from m3_integrations.nudging.selection.coordinate_ascent import (
    UNMOVED,
    Configuration,
    FusedObjective,
    Selected,
    Strength,
)
from m3_integrations.nudging.selection.cross_validation import is_significant_loss
from m3_integrations.nudging.selection.folds import (
    CrossFitFolds,
    answers_of_similar_queries,
    control_answers,
    distinct_queries,
)
from m3_integrations.nudging.selection.prescreen import SAMPLE, promising_variants, sample
from m3_integrations.nudging.selection.rank_metric import RankMetric
from m3_integrations.nudging.selection.score_grids import (
    AnalyticScores,
    MultiVectorScores,
    Pairs,
    PullIndex,
    ScoreGrid,
    blocks,
    dense_curves,
    dense_pulls,
    multi_vector_grids,
    pull_fields,
    sparse_curves,
    sparse_pulls,
)

ROTATION_ANGLES = np.array([0, 0.03, 0.07, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 0.9, 1.2])  # radians
ROTATION_CHORDS = 4 * np.sin(ROTATION_ANGLES / 2) ** 2
SPARSE_STEPS = np.array([0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2])  # times the median length
STAGES = (0.05, 0.1, 0.5, 0.2, 0.15)  # work: candidates, dense variants, multi-vectors, other scores, selection
CANDIDATES = 50  # per query and candidate mode; metrics look at the first few
MULTI_VECTOR_METHOD: Method = "nudge-n"
SPARSE_METHOD: Method = "nudge-m"


@dataclass(frozen=True, eq=False)
class ModeUpdate:
    """The vectors that a nudge moved in one mode.

    Attributes:
        rows: Rows that moved, ascending, shape (moved,).
        values: New vectors: dense (moved, dim), a csr_array (moved, vocab), or MovedVectors.
        method: "nudge-n" or "nudge-m".
        gamma: Step size.
        propagation: Propagation of dense pulls, or None.
        center: Fraction of the mean query that was subtracted; for sparse rows the power that damps frequent terms.
    """

    rows: Ints
    values: Array | scipy.sparse.csr_array | MovedVectors
    method: Method
    gamma: float
    propagation: Propagation | None
    center: float


@dataclass(frozen=True, eq=False, repr=False)
class NudgedModes(FieldsDisplay):
    """Result of a nudge of several modes.

    Attributes:
        start: The passages before.
        moved: The vectors that moved, by mode.
        weights: Mode weights chosen with the nudge.
        metric: Name of the metric.
        before: Metric of the fused ranking before, on validation or held-out folds.
        after: The same after the nudge.
        curves: Metric over gamma by mode, sampled, with everything else as chosen.
        choice: Configuration with its cross-validated gain.
        folds: The evaluation queries and held-out pulls.
    """

    start: Corpus
    moved: Mapping[Mode, ModeUpdate]
    weights: Mapping[Mode, float]
    metric: str
    before: float
    after: float
    curves: Mapping[Mode, Curve]
    choice: Selected
    folds: CrossFitFolds

    @property
    def summary(self) -> str:
        """What was done and whether to trust it, in two sentences."""
        rows = np.concatenate([np.empty(0, np.int64), *(each.rows for each in self.moved.values())])
        levels = self.before, self.after
        return summarize(len(np.unique(rows)), len(self.start), self.metric, levels, self.choice.evidence)

    @property
    def passages(self) -> Encoded:
        """All passages, assembled at each call.

        Raises:
            ValueError: If the passages are in an index, which holds them itself.
        """
        if not isinstance(self.start, EncodedCorpus):
            raise ValueError("these passages are in an index; read them with index.vectors(ids)")
        return apply_updates(self.start.encoded, self.moved)


class NudgeConfig(NamedTuple):
    """Options of a nudge of several modes.

    Attributes:
        modes: Modes to move.
        weights: Mode weights of the ranking to evaluate.
        tune_weights: Whether the weights are chosen too.
        propose: Modes that generate the candidates.
        candidates: Candidates per mode.
        metric: Ranking metric to maximize.
        method: Method of dense vectors; multi-vectors rotate, sparse rows are translated.
        propagate: Propagation of dense pulls.
        on_progress: Called with the progress of the fit.
    """

    modes: Modes
    weights: Mapping[Mode, float]
    tune_weights: bool
    propose: Sequence[Mode] = ("dense", "sparse")
    candidates: int = 100
    metric: str = "ndcg@10"
    method: MethodChoice = "auto"
    propagate: Propagate = "auto"
    on_progress: OnProgress | None = None


def nudge_modes(corpus: Corpus, train: Judged, validation: Judged, config: NudgeConfig) -> NudgedModes:
    """Move passages in several modes, each as far as the fused ranking gains.

    Step sizes, and the weights if they are free, are chosen by coordinate ascent on the evaluation queries. With method
    "auto" nothing moves unless the cross-validated gain is significant.

    Raises:
        MissingMode: If the passages or the queries lack a mode.
        ValueError: If there is no evaluation query.
    """
    require_known(config.method, config.propagate)
    _require_modes(corpus, train, config)
    folds = CrossFitFolds.k_fold(*distinct_queries(train, validation, cross_fitted=True))
    if not len(folds.eval_queries):
        raise ValueError(f"{len(train)} training queries and no validation query; add some of either")
    problem = _HybridNudgeProblem(corpus, folds, config)
    return problem.nudged()


class _HybridNudgeProblem:
    """A corpus, its folds and the options."""

    def __init__(self, corpus: Corpus, folds: CrossFitFolds, config: NudgeConfig) -> None:
        self.corpus, self.folds, self.config, self.metric = corpus, folds, config, RankMetric.of(config.metric)
        self.control, self.progress = control_answers(folds), ProgressMeter(config.on_progress, STAGES)
        self.pairs = shortlist(corpus, folds, config, self.control)
        self.progress.end_stage()
        self.variants = self._variants()
        self.progress.end_stage()
        self.multi_vector_scores = self._multi_vector_scores()
        self.multi_vector_centers = self._screened_centers()
        self.progress.end_stage()
        grids = {mode: self._grids(mode) for mode in MODES if config.weights.get(mode)}
        self.progress.end_stage()
        self.objective = FusedObjective(folds.eval_queries, self.pairs, grids, self.metric, self.control)

    def nudged(self) -> NudgedModes:
        start = Configuration.unmoved({mode: weight for mode in MODES if (weight := self.config.weights.get(mode))})
        choice = self.objective.choose(start, tune_weights=self.config.tune_weights, on_fraction=self.progress.update)
        evaluated = self.folds.eval_in(0)
        subset = evaluated if len(evaluated) else np.arange(len(self.folds.eval_queries))
        gains = (self.objective.metrics(choice.configuration) - self.objective.metrics(start))[evaluated]
        vetoed = is_significant_loss(gains, self.folds.eval_queries.weights[evaluated])
        moves = self.config.method != "auto" or (choice.is_significant and not vetoed)
        configuration = choice.configuration if moves else start
        strengths = {mode: each for mode, each in configuration.strengths if each.gamma}
        return NudgedModes(
            start=self.corpus,
            moved={mode: self._moved(mode, strength) for mode, strength in strengths.items()},
            weights={mode: weight for mode, weight in configuration.weights if weight},
            metric=self.config.metric,
            before=self.objective.mean(start, subset),
            after=self.objective.mean(configuration, subset),
            curves={mode: self._curve(mode, choice.configuration, subset) for mode in self.config.modes},
            choice=choice,
            folds=self.folds,
        )

    @cached_property
    def fields(self) -> list[PullField]:
        return pull_fields(self.corpus.dense, self.folds)

    def _variants(self) -> Sequence[Variant]:
        if "dense" not in self.config.modes:
            return []
        counts = len(self.corpus), len(self.folds.train)
        variants = candidate_variants(self.config.method, self.config.propagate, None, *counts)
        return promising_variants(self.corpus.dense, self.folds, self.pairs, variants, self.metric, self.fields)

    def _multi_vector_scores(self) -> MultiVectorScores | None:
        """Return the scores of multi-vectors, which a screening of centers computes for the grids as well."""
        if not self.config.weights.get("multi_vector"):
            return None
        is_screened = "multi_vector" in self.config.modes and len(self.folds.eval_queries) > SAMPLE
        return MultiVectorScores(self.corpus, self.folds, self.pairs, cached=is_screened)

    def _screened_centers(self) -> Sequence[float]:
        """Return the center of multi-vectors that is best on a sample of the queries, all of them if they are few."""
        if self.multi_vector_scores is None or "multi_vector" not in self.config.modes:
            return MULTI_VECTOR_CENTERS[:1]
        if len(self.folds.eval_queries) <= SAMPLE:
            return MULTI_VECTOR_CENTERS
        some, few, positions = sample(self.folds, self.pairs)
        grids = self.multi_vector_scores.grids(
            ROTATION_CHORDS[::3], MULTI_VECTOR_CENTERS, positions, self.progress.update
        )
        objective = FusedObjective(some.eval_queries, few, {"multi_vector": grids}, self.metric, control_answers(some))
        return [MULTI_VECTOR_CENTERS[i] for i in objective.best_grids("multi_vector", 1)]

    def _grids(self, mode: Mode) -> list[ScoreGrid]:
        moves = mode in self.config.modes
        if mode == "dense":
            tried = self.variants if moves else [Variant("nudge-m", None, 0.0)]
            traced = dense_curves(self.corpus.dense, self.folds, self.pairs, tried, fields=self.fields)
            gammas = [variant.gammas if moves else variant.gammas[:1] for variant in tried]
            return [
                AnalyticScores(curves, variant.trajectory, g)
                for curves, variant, g in zip(traced, tried, gammas, strict=True)
            ]
        if mode == "sparse":
            gammas_ = SPARSE_STEPS * _typical_length(self.corpus.sparse) if moves else SPARSE_STEPS[:1]
            centers = SPARSE_CENTERS if moves else SPARSE_CENTERS[:1]
            lines = sparse_curves(self.corpus, self.folds, self.pairs, centers)
            return [AnalyticScores(each, TRAJECTORIES["nudge-m"], gammas_) for each in lines]
        chords = ROTATION_CHORDS if moves else ROTATION_CHORDS[:1]
        assert self.multi_vector_scores is not None
        return [*self.multi_vector_scores.grids(chords, self.multi_vector_centers, on_fraction=self.progress.update)]

    def _curve(self, mode: Mode, configuration: Configuration, subset: Ints) -> Curve:
        grid = dict(configuration.strengths).get(mode, UNMOVED).grid
        gammas = self.objective.grids[mode][grid].gammas
        levels = [
            self.objective.mean(configuration.with_strength(mode, Strength(grid, g)), subset) for g in gammas.tolist()
        ]
        return Curve(gammas, np.array(levels))

    def _moved(self, mode: Mode, strength: Strength) -> ModeUpdate:
        if mode == "dense":
            return dense_move(self.corpus, self.folds.train, self.variants[strength.grid], strength.gamma)
        if mode == "sparse":
            return sparse_move(self.corpus, self.folds.train, strength.gamma, SPARSE_CENTERS[strength.grid])
        return multi_vector_move(
            self.corpus, self.folds.train, strength.gamma, self.multi_vector_centers[strength.grid]
        )


def dense_move(corpus: Corpus, train: Judged, variant: Variant, gamma: float) -> ModeUpdate:
    """Move dense vectors by a variant."""
    rows, vectors = moved_rows(corpus.dense, dense_pulls(corpus.dense, train, variant), variant.trajectory, gamma)
    return ModeUpdate(rows, np.asarray(vectors, np.float32), variant.method, gamma, variant.propagation, variant.center)


def sparse_move(corpus: Corpus, train: Judged, gamma: float, center: float = 0.0) -> ModeUpdate:
    """Translate sparse rows along their pulls by a length of gamma (NUDGE-M in token space)."""
    rows, pulls = sparse_pulls(train, center)
    moves = np.diff(pulls.indptr) > 0
    rows, pulls = rows[moves], pulls[np.flatnonzero(moves)]
    pushed = scipy.sparse.csr_array(corpus.sparse[rows] + pulls * np.float32(gamma))
    pushed.sort_indices()
    return ModeUpdate(rows, pushed, SPARSE_METHOD, gamma, None, center)


def multi_vector_move(corpus: Corpus, train: Judged, gamma: float, center: float) -> ModeUpdate:
    """Rotate each passage vector that a training query's vector matches towards that vector."""
    pulled = PullIndex(train)
    moved: list[tuple[int, Ints, Array]] = []
    for block in blocks(np.unique(pulled.rows)):
        for row, passage in zip(block.tolist(), corpus.each_multi_vector(block), strict=True):
            pulling = pulled.by(row, passage)
            if pulling is not None:
                matched = pulling.matching.pulls(None, center)
                moved.append((row, matched.places, rotate_matched(passage, matched, gamma)))
    values = MovedVectors.of(moved, pulled.vectors.width)
    return ModeUpdate(values.rows, values, MULTI_VECTOR_METHOD, gamma, None, center)


def apply_updates(encoded: Encoded, moved: Mapping[Mode, ModeUpdate]) -> Encoded:
    """Return all passages with the moved vectors in place."""
    corpus = EncodedCorpus(encoded)
    for mode, each in moved.items():
        if mode == "dense":
            vectors = np.array(corpus.dense)
            vectors[each.rows] = each.values
            encoded = encoded.with_dense(vectors)
        elif mode == "sparse":
            encoded = encoded.with_sparse(replace_rows(corpus.sparse, each.rows, each.values))
        elif isinstance(each.values, MovedVectors):
            late = each.values.put_into(encoded.multi_vector, np.arange(len(encoded)))
            encoded = encoded.with_multi_vector(late)
    return encoded


def shortlist(corpus: Corpus, folds: CrossFitFolds, config: NudgeConfig, control: Judged | None = None) -> Pairs:
    """Return the candidates of each evaluation query: those of the plan, and those a nudge may bring up.

    Args:
        corpus: The passages.
        folds: Evaluation queries and held-out pulls.
        config: Modes that generate candidates, and their number.
        control: The same queries with other answers, which are candidates too.
    """
    n, eval_queries = len(corpus), folds.eval_queries
    count = min(config.candidates, CANDIDATES, n)
    keys = [_top(corpus, eval_queries, mode, count) for mode in config.propose if mode in corpus.modes]
    if set(config.propose) & set(config.modes):
        keys += [answers_of_similar_queries(folds, fold, n) for fold in range(len(folds.held_out))]
    if control is not None:
        keys.append(control.query_ids * n + control.rows)
    every = np.unique(np.concatenate(keys))
    return Pairs(every // n, every % n)


def _top(corpus: Corpus, eval_queries: Judged, mode: Mode, count: int) -> Ints:
    """Return query * n + row of each query's best before the nudge."""
    n, found = len(corpus), []
    for start in range(0, len(eval_queries), 64):
        which = np.arange(start, min(start + 64, len(eval_queries)))
        scores = _scores(corpus, eval_queries.take(which), mode)
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        found.append((which[:, None] * n + best)[np.take_along_axis(scores, best, axis=1) > _FLOOR[mode]])
    return np.concatenate([*found, np.empty(0, np.int64)])


_FLOOR: Mapping[Mode, float] = {"dense": -np.inf, "sparse": 0.0, "multi_vector": -np.inf}


def _scores(corpus: Corpus, eval_queries: Judged, mode: Mode) -> Floats:
    """Return scores before the nudge, shape (queries, n)."""
    if mode == "dense":
        return np.asarray(eval_queries.queries @ corpus.dense.T)
    if mode == "sparse":
        return np.asarray((eval_queries.in_modes.sparse @ corpus.sparse.T).toarray())
    n = len(corpus)
    every = Pairs(np.repeat(np.arange(len(eval_queries)), n), np.tile(np.arange(n), len(eval_queries)))
    unmoved = CrossFitFolds(
        eval_queries.take([]), eval_queries, np.zeros(len(eval_queries), np.int64), [np.empty(0, np.int64)]
    )
    return (
        multi_vector_grids(corpus, unmoved, every, np.zeros(1), MULTI_VECTOR_CENTERS[:1])[0]
        .at(0.0)
        .reshape(len(eval_queries), n)
    )


def _typical_length(rows: scipy.sparse.csr_array) -> float:
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1), np.float64)).ravel()
    return float(np.median(lengths[lengths > 0])) if (lengths > 0).any() else 1.0


def _require_modes(corpus: Corpus, train: Judged, config: NudgeConfig) -> None:
    if unweighted := [mode for mode in config.modes if not config.weights.get(mode)]:
        raise ValueError(f"modes {unweighted} have no weight in {dict(config.weights)}; leave them out of the nudge")
    wanted = {*config.modes, *(mode for mode, weight in config.weights.items() if weight)}
    there = corpus.modes & train.in_modes.modes
    if wanted - there:
        raise MissingMode(
            f"a nudge over {sorted(wanted)} needs passages and queries in all of them; the passages are in "
            f"{sorted(corpus.modes)}, the queries in {sorted(train.in_modes.modes)}"
        )

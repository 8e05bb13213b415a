"""Scores of (query, passage) pairs over the step sizes of one mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import Array, MultiVectors
from m3_integrations.nudging.corpus import Corpus
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.closed_form import chord_angle, direction_to, shares_of_rows
from m3_integrations.nudging.method.late_interaction import MaxSimAlignment
from m3_integrations.nudging.method.pulls import PullField, Pulls
from m3_integrations.nudging.method.trajectories import ScoreCurves, Trajectory
from m3_integrations.nudging.method.variants import Variant
from m3_integrations.nudging.selection.folds import CrossFitFolds

ROWS = 4096  # pairs, or passages, in a block
PAIRS_AT_ONCE = 2048  # products at once, so that their vectors stay in the cache
VECTORS_AT_ONCE = 1024  # query vectors whose similarities to a passage stay in the cache
PASSAGES_AT_ONCE = 256  # passages whose multi-vectors are in memory at once
TERMS = 256  # strongest terms of a sparse pull


class Pairs(NamedTuple):
    """Evaluation queries and their candidates, sorted by query and row."""

    query_rows: Ints
    rows: Ints


class ScoreGrid(Protocol):
    """Scores of pairs while their passages move."""

    @property
    def gammas(self) -> Floats:
        """Step sizes to try, ascending from 0."""

    def at(self, gamma: float) -> Floats:
        """Return the scores at gamma, shape (pairs,)."""


class AnalyticScores:
    """Scores in closed form: dense vectors of both methods, and sparse rows."""

    def __init__(self, curves: ScoreCurves, trajectory: Trajectory, gammas: Floats) -> None:
        self.curves, self.trajectory, self.gammas = curves, trajectory, gammas

    def at(self, gamma: float) -> Floats:
        return self.trajectory.level(gamma, self.curves)


class TabulatedScores:
    """Scores at some step sizes, shape (gammas, pairs), interpolated by angle."""

    def __init__(self, table: Array, gammas: Floats) -> None:
        self.table, self.gammas = table, gammas
        self.angles = np.array([chord_angle(gamma) for gamma in gammas])

    def at(self, gamma: float) -> Floats:
        angle = chord_angle(gamma)
        above = int(np.clip(np.searchsorted(self.angles, angle), 1, len(self.angles) - 1))
        low, high = self.angles[above - 1], self.angles[above]
        share = min(1.0, (angle - low) / (high - low)) if high > low else 0.0
        mixed: Floats = (1 - share) * self.table[above - 1].astype(np.float64) + share * self.table[above]
        return mixed


def pull_fields(passages: Floats, folds: CrossFitFolds, total: int | None = None) -> list[PullField]:
    """Return the pull field of each fold; `total` is the number of passages in all, if these are a part."""
    return [PullField.of(passages, folds.train_queries_for(fold), total) for fold in range(len(folds.held_out))]


def dense_curves(
    passages: Floats,
    folds: CrossFitFolds,
    pairs: Pairs,
    variants: Sequence[Variant],
    total: int | None = None,
    fields: Sequence[PullField] | None = None,
) -> list[ScoreCurves]:
    """Return score curves of the pairs by variant, each passage pulled without its query's held-out fold.

    Args:
        passages: Passages, shape (n, dim).
        folds: Evaluation queries and held-out pulls.
        pairs: Pairs to score.
        variants: Variants to trace.
        total: Number of passages in all, if these are a part.
        fields: `pull_fields` of these passages and folds, if there are.
    """
    unmoved, count = np.zeros(len(pairs.query_rows)), len(pairs.query_rows)
    every = [ScoreCurves(unmoved, *np.zeros((2, count))) for _ in variants]
    queries = np.asarray(folds.eval_queries.queries, np.float32)
    for fold, field in enumerate(fields or pull_fields(passages, folds, total)):
        here = np.flatnonzero(folds.fold_of[pairs.query_rows] == fold)
        pulls = field.by_variant(folds.train_queries_for(fold), variants)
        trajectories = [variant.trajectory for variant in variants]
        _trace(passages, queries, pairs, here, list(zip(pulls, trajectories, every, strict=True)))
    return every


def dense_pulls(passages: Floats, train: Judged, variant: Variant) -> Pulls:
    """Return the pulls of a variant, including propagated ones."""
    return PullField.of(passages, train).by(train, variant)


def _trace(
    passages: Floats,
    queries: Floats,
    pairs: Pairs,
    here: Ints,
    traced: Sequence[tuple[Pulls, Trajectory, ScoreCurves]],
) -> None:
    """Fill in the curves of the pairs `here`; candidates are scored once for all variants."""
    order = here[np.argsort(pairs.rows[here], kind="stable")]
    rows, starts = np.unique(pairs.rows[order], return_index=True)
    edges = np.append(starts, len(order))
    for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS]
        low, high = edges[start], edges[start + len(block)]
        which = order[low:high]
        at = np.repeat(np.arange(len(block)), np.diff(edges[start : start + len(block) + 1]))
        before, query_rows = np.asarray(passages[block], np.float32), pairs.query_rows[which]
        traced[0][2].a[which] = _row_products(queries, query_rows, before, at)
        for pulls, trajectory, curves in traced:
            moves = trajectory.direction(before, _pulls_at(pulls, block, before.shape[1]))
            curves.b[which] = _row_products(queries, query_rows, moves.tangent, at)
            curves.end[which] = moves.angle[at]


def _row_products(queries: Floats, query_rows: Ints, vectors: Floats, places: Ints) -> Floats:
    """Return the products of queries[query_rows[i]] and vectors[places[i]], shape (pairs,)."""
    products = np.empty(len(places))
    for start in range(0, len(places), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        products[part] = np.einsum("pd,pd->p", queries[query_rows[part]], vectors[places[part]])
    return products


def _pulls_at(pulls: Pulls, rows: Ints, dim: int) -> Floats:
    """Return the pulls of these rows as float32, shape (rows, dim); zeros where there is none."""
    found = np.zeros((len(rows), dim), np.float32)
    pulled = np.flatnonzero(np.isin(rows, pulls.rows))
    found[pulled] = pulls.take(np.searchsorted(pulls.rows, rows[pulled]))
    return found


def sparse_pulls(train: Judged, center: float = 0.0) -> tuple[Ints, scipy.sparse.csr_array]:
    """Return the rows with a pull, ascending (m,), and the unit directions of their pulls (m, vocab).

    A pull is the sum of the queries' sparse rows by weight and grade, reduced to its TERMS largest terms. Each term is
    first divided by the power `center` of 1 + the number of queries that contain it, so that terms of every question,
    such as "what" and "pulling_queries", hardly pull. Pulls do not depend on how sparse scores are divided.
    """
    rows, shares = shares_of_rows(train)
    queries = train.in_modes.with_sparse_score("sum").sparse
    sums = scipy.sparse.csr_array(shares @ queries)
    if center:
        term_counts = 1 + np.bincount(queries.indices, minlength=queries.shape[1])
        sums.data = (sums.data * term_counts[sums.indices] ** -float(center)).astype(sums.dtype)
    return rows, _unit_rows(_strongest(sums, TERMS))


def _strongest(rows: scipy.sparse.csr_array, terms: int) -> scipy.sparse.csr_array:
    """Keep the largest entries of each row, the lower columns of equals."""
    rows.sort_indices()
    of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    order = np.lexsort((rows.indices, -rows.data, of))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - rows.indptr[of]
    keep = place < terms
    offsets = np.concatenate([[0], np.cumsum(np.bincount(of[keep], minlength=rows.shape[0]))])
    return scipy.sparse.csr_array((rows.data[keep], rows.indices[keep], offsets), shape=rows.shape)


def _unit_rows(rows: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1), np.float64)).ravel()
    return scipy.sparse.csr_array(
        scipy.sparse.diags_array((1 / np.where(lengths > 0, lengths, 1)).astype(np.float32)) @ rows
    )


def sparse_curves(corpus: Corpus, folds: CrossFitFolds, pairs: Pairs, centers: Sequence[float]) -> list[ScoreCurves]:
    """Return by center the scores of the pairs as lines over the step size (NUDGE-M in token space)."""
    passages, queries = corpus.sparse, folds.eval_queries.in_modes.sparse
    unmoved = _sparse_products(queries, pairs.query_rows, passages, pairs.rows)
    every = [ScoreCurves(unmoved, *np.zeros((2, len(unmoved)))) for _ in centers]
    for fold in range(len(folds.held_out)):
        train, mine = folds.train_queries_for(fold), folds.fold_of[pairs.query_rows] == fold
        for center, curves in zip(centers, every, strict=True):
            rows, pulls = sparse_pulls(train, center)
            here = np.flatnonzero(mine & np.isin(pairs.rows, rows))
            places = np.searchsorted(rows, pairs.rows[here])
            curves.b[here] = _sparse_products(queries, pairs.query_rows[here], pulls, places)
    return every


def _sparse_products(
    queries: scipy.sparse.csr_array, query_rows: Ints, passages: scipy.sparse.csr_array, rows: Ints
) -> Floats:
    """Return the inner products of queries[query_rows[i]] and passages[rows[i]] as float64, shape (pairs,)."""
    products = np.empty(len(query_rows))
    for start in range(0, len(query_rows), ROWS):
        part = slice(start, start + ROWS)
        products[part] = (queries[query_rows[part]].multiply(passages[rows[part]])).sum(axis=1)
    return products


def multi_vector_grids(
    corpus: Corpus, folds: CrossFitFolds, pairs: Pairs, gammas: Floats, centers: Sequence[float]
) -> list[TabulatedScores]:
    """Return by center the MaxSim scores of the pairs at these step sizes, without held-out pulls."""
    return MultiVectorScores(corpus, folds, pairs).grids(gammas, centers)


class MultiVectorScores:
    """MaxSim scores of pairs while the passage vectors that training queries match rotate, without held-out pulls.

    With `cached`, the similarities to all other vectors, which do not move, are computed once for several grids.
    """

    def __init__(self, corpus: Corpus, folds: CrossFitFolds, pairs: Pairs, *, cached: bool = False) -> None:
        self.corpus, self.folds, self.pairs, self._pulled = corpus, folds, pairs, PullIndex(folds.train)
        self._order = np.lexsort((pairs.query_rows, pairs.rows))
        self.rows, starts = np.unique(pairs.rows[self._order], return_index=True)
        self._edges = np.append(starts, len(self._order))
        self._unmoved: dict[tuple[int, int], Array] | None = {} if cached else None

    def grids(
        self,
        gammas: Floats,
        centers: Sequence[float],
        sampled: Ints | None = None,
        on_fraction: Callable[[float], object] | None = None,
    ) -> list[TabulatedScores]:
        """Return the scores by center at these step sizes.

        Args:
            gammas: Step sizes, ascending from 0.
            centers: Fractions of the mean query vector to subtract.
            sampled: Pairs to score, ascending; None for all.
            on_fraction: Called with the fraction of the passages that is done.
        """
        count = len(self.pairs.rows)
        place = np.arange(count)
        if sampled is not None:
            place = np.full(count, -1)
            place[sampled] = np.arange(len(sampled))
        tables = np.zeros((len(centers), len(gammas), count if sampled is None else len(sampled)), np.float32)
        angles, numbers = np.array([chord_angle(gamma) for gamma in gammas]), np.arange(len(self.rows))
        if self._unmoved:
            pulled = np.isin(self.rows, self._pulled.rows)
            for number in numbers[~pulled].tolist():
                self._fill(tables, place, self._pairs_of(number), self._unmoved.get((number, 0)))
            numbers = numbers[pulled]
        for done, which in enumerate(blocks(numbers)):
            if on_fraction is not None:
                on_fraction(done * PASSAGES_AT_ONCE / len(numbers))
            passages = self.corpus.each_multi_vector(self.rows[which])
            for number, passage in zip(which.tolist(), passages, strict=True):
                if len(passage):
                    self._score(number, passage, place, tables, angles, centers)
        return [TabulatedScores(table, gammas) for table in tables]

    def _pairs_of(self, number: int) -> Ints:
        return self._order[self._edges[number] : self._edges[number + 1]]

    def _fill(self, tables: Array, place: Ints, pairs: Ints, best: Array | None) -> None:
        """Fill in the scores of pairs from the best similarity of each query vector, shape (..., vectors)."""
        if best is not None:
            counts = self.folds.eval_queries.in_modes.multi_vector.counts_of(self.pairs.query_rows[pairs])
            wanted = place[pairs] >= 0
            tables[:, :, place[pairs[wanted]]] = _means(best, counts)[..., wanted]

    def _score(
        self, number: int, passage: Array, place: Ints, tables: Array, angles: Floats, centers: Sequence[float]
    ) -> None:
        """Fill in the scores of a passage."""
        mine, pulling = self._pairs_of(number), self._pulled.by(self.rows[number], passage)
        groups = _group_queries(pulling, self.folds, self.pairs.query_rows[mine])
        rotations = (
            None
            if pulling is None
            else _Rotations.of(passage, pulling, [pulling_queries for pulling_queries, _ in groups], centers)
        )
        every = self.folds.eval_queries.in_modes.multi_vector
        for group, (_, positions) in enumerate(groups):
            pairs = mine[positions]
            best = self._unmoved.get((number, group)) if self._unmoved is not None else None
            if best is None:
                vectors = _vectors_of(every, self.pairs.query_rows[pairs])
                best = self._unmoved_best((number, group), passage, rotations, vectors)
            if rotations is not None:
                wanted = place[pairs] >= 0
                best = best[np.repeat(wanted, every.counts_of(self.pairs.query_rows[pairs]))]
                pairs = pairs[wanted]
                vectors = _vectors_of(every, self.pairs.query_rows[pairs])
                best = rotations.best(group, passage, vectors, best, angles)
            self._fill(tables, place, pairs, best)

    def _unmoved_best(
        self, key: tuple[int, int], passage: Array, rotations: _Rotations | None, vectors: Array
    ) -> Array:
        """Return the best similarity of each query vector to the vectors that do not move, shape (vectors,)."""
        best = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), VECTORS_AT_ONCE):
            part = slice(start, start + VECTORS_AT_ONCE)
            similar = passage @ vectors[part].T
            if rotations is not None:
                similar[rotations.places] = -np.inf
            similar.max(axis=0, out=best[part])
        if self._unmoved is not None:
            self._unmoved[key] = best
        return best


class PullGroup(NamedTuple):
    """Training queries that pull a passage, ascending, and the passage vectors that their vectors match."""

    query_rows: Ints
    matching: MaxSimAlignment


def blocks(rows: Ints) -> list[Ints]:
    """Split rows into blocks whose multi-vectors are in memory together."""
    return [rows[start : start + PASSAGES_AT_ONCE] for start in range(0, len(rows), PASSAGES_AT_ONCE)]


class PullIndex:
    """The training queries that pull each passage by late interaction."""

    def __init__(self, train: Judged) -> None:
        order = np.lexsort((train.query_ids, train.rows))
        order = order[train.pair_weights[order] > 0]
        self.rows, self.query_rows, self.strengths = (
            train.rows[order],
            train.query_ids[order],
            train.pair_weights[order],
        )
        self.vectors = train.in_modes.multi_vector
        self.mean = self.vectors.values.mean(axis=0) if len(self.vectors.values) else np.zeros(self.vectors.width)

    def by(self, row: int, passage: Array) -> PullGroup | None:
        """Return the queries that pull a passage; None if there are none."""
        low, high = np.searchsorted(self.rows, [row, row + 1])
        if low == high or not len(passage):
            return None
        pulling_queries = self.query_rows[low:high]
        strengths = self.strengths[low:high].tolist()
        return PullGroup(
            pulling_queries,
            MaxSimAlignment.of(passage, [self.vectors[i] for i in pulling_queries], strengths, self.mean),
        )


def _group_queries(pulling: PullGroup | None, folds: CrossFitFolds, query_rows: Ints) -> list[tuple[Ints, Ints]]:
    """Group evaluation queries for which the same training queries pull: positions in `pulling`, and the queries."""
    every = np.arange(len(query_rows))
    if pulling is None:
        return [(every[:0], every)]
    groups: dict[bytes, tuple[Ints, list[Ints]]] = {}
    evaluated = folds.fold_of[query_rows]
    for fold in np.unique(evaluated).tolist():
        held_out = folds.held_out[fold]
        place = np.minimum(np.searchsorted(held_out, pulling.query_rows), max(len(held_out) - 1, 0))
        out = held_out[place] == pulling.query_rows if len(held_out) else np.zeros(len(pulling.query_rows), bool)
        pulling_queries = np.flatnonzero(~out)
        groups.setdefault(pulling_queries.tobytes(), (pulling_queries, []))[1].append(every[evaluated == fold])
    return [(pulling_queries, np.concatenate(mine)) for pulling_queries, mine in groups.values()]


class _Rotations(NamedTuple):
    """Rotations of the matched vectors of a passage by center and group of queries.

    Attributes:
        places: Positions of the vectors that some training query matches, shape (m,).
        tangent: Directions, shape (centers, groups, m, dim).
        angle: Angles to the pulls, 0 for a vector that the pulling queries do not match, shape (centers, groups, m).
    """

    places: Ints
    tangent: Floats
    angle: Floats

    @classmethod
    def of(cls, passage: Array, pulling: PullGroup, groups: Sequence[Ints], centers: Sequence[float]) -> _Rotations:
        places, pulls = pulling.matching.pulls_by_group(groups, centers)
        matched = np.broadcast_to(passage[places], pulls.shape).reshape(-1, passage.shape[1])
        tangent, angle = direction_to(matched, pulls.reshape(matched.shape))
        return cls(places, tangent.reshape(pulls.shape), angle.reshape(pulls.shape[:-1]))

    def best(self, group: int, passage: Array, vectors: Array, unmoved: Array, angles: Floats) -> Array:
        """Return the best similarity of each query vector while vectors rotate, shape (centers, angles, vectors)."""
        best = np.empty((len(self.tangent), len(angles), len(vectors)), np.float32)
        for start in range(0, len(vectors), VECTORS_AT_ONCE):
            part = slice(start, start + VECTORS_AT_ONCE)
            straight = passage[self.places] @ vectors[part].T
            along, across = np.empty_like(straight), np.empty_like(straight)
            for center, tangents in enumerate(self.tangent[:, group]):
                tangent, end = tangents @ vectors[part].T, self.angle[center, group]
                for step, angle in enumerate(angles):
                    turn = np.minimum(angle, end).astype(np.float32)[:, None]
                    np.multiply(straight, np.cos(turn), out=along)
                    along += np.multiply(tangent, np.sin(turn), out=across)
                    np.maximum(unmoved[part], along.max(axis=0, initial=-np.inf), out=best[center, step, part])
        return best


def _vectors_of(queries: MultiVectors, rows: Ints) -> Array:
    """Return the vectors of these queries in this order, shape (vectors, dim), with less work than `take`."""
    counts = queries.counts_of(rows)
    starts = queries.offsets[rows] - np.cumsum(counts) + counts
    return np.take(queries.values, np.repeat(starts, counts) + np.arange(counts.sum()), axis=0)


def _means(best: Array, counts: Ints) -> Array:
    """Return the mean over each query's vectors of values of shape (..., vectors); 0 for a query without vectors."""
    padded = np.concatenate([best, np.zeros((*best.shape[:-1], 1), np.float32)], axis=-1)
    sums = np.add.reduceat(padded, np.cumsum(counts) - counts, axis=-1)
    means: Array = np.where(counts > 0, sums / np.maximum(counts, 1), 0)
    return means

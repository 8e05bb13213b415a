"""Scores of (query, passage) pairs over the step sizes of one mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import Array, MultiVectors
from m3_integrations.nudging.corpus import Corpus
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.closed_form import chord_angle, direction_to, shares_of_rows
from m3_integrations.nudging.method.late_interaction import MatchedVectors, MaxSimAlignment
from m3_integrations.nudging.method.pulls import PullField, Pulls
from m3_integrations.nudging.method.trajectories import ScoreCurves, Trajectory
from m3_integrations.nudging.method.variants import Variant
from m3_integrations.nudging.selection.folds import CrossFitFolds
from m3_integrations.nudging.selection.running_top_k import pair_products

ROWS = 4096  # pairs, or passages, in a block
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


def dense_curves(
    passages: Floats, folds: CrossFitFolds, pairs: Pairs, variants: Sequence[Variant], total: int | None = None
) -> list[ScoreCurves]:
    """Return score curves of the pairs by variant, each passage pulled without its query's held-out fold.

    `total` is the number of passages in all, if these are a part.
    """
    every = [ScoreCurves(*np.zeros((3, len(pairs.query_rows)))) for _ in variants]
    for fold in range(len(folds.held_out)):
        here = np.flatnonzero(folds.fold_of[pairs.query_rows] == fold)
        train = folds.train_queries_for(fold)
        field = PullField.of(passages, train, total)
        for variant, curves in zip(variants, every, strict=True):
            _trace(
                passages,
                folds.eval_queries.queries,
                pairs,
                here,
                field.by(train, variant),
                variant.trajectory,
                curves,
            )
    return every


def dense_pulls(passages: Floats, train: Judged, variant: Variant) -> Pulls:
    """Return the pulls of a variant, including propagated ones."""
    return PullField.of(passages, train).by(train, variant)


def _trace(
    passages: Floats,
    queries: Floats,
    pairs: Pairs,
    here: Ints,
    pulls: Pulls,
    trajectory: Trajectory,
    curves: ScoreCurves,
) -> None:
    """Fill in the curves of the pairs `here`."""
    rows, places = np.unique(pairs.rows[here], return_inverse=True)
    for start in range(0, len(rows), ROWS):
        inside = (places >= start) & (places < start + ROWS)
        block, which, at = rows[start : start + ROWS], here[inside], places[inside] - start
        before = passages[block].astype(np.float64)
        moves = trajectory.direction(before, _pulls_at(pulls, block, before.shape[1]))
        curves.a[which] = pair_products(queries, pairs.query_rows[which], before, at)
        curves.b[which] = pair_products(queries, pairs.query_rows[which], moves.tangent, at)
        curves.end[which] = moves.angle[at]


def _pulls_at(pulls: Pulls, rows: Ints, dim: int) -> Floats:
    """Return the pulls of these rows as float64, shape (rows, dim); zeros where there is none."""
    found = np.zeros((len(rows), dim))
    pulled = np.flatnonzero(np.isin(rows, pulls.rows))
    found[pulled] = pulls.take(np.searchsorted(pulls.rows, rows[pulled]))
    return found


def sparse_pulls(train: Judged, center: float = 0.0) -> tuple[Ints, scipy.sparse.csr_array]:
    """Return the rows with a pull, ascending (m,), and the unit directions of their pulls (m, vocab).

    A pull is the sum of the queries' sparse rows by weight and grade, reduced to its TERMS largest terms. Each term is
    first divided by the power `center` of 1 + the number of queries that contain it, so that terms of every question,
    such as "what" and "who", hardly pull. Pulls do not depend on how sparse scores are divided.
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
    at_rest = _sparse_products(queries, pairs.query_rows, passages, pairs.rows)
    every = [ScoreCurves(at_rest, *np.zeros((2, len(at_rest)))) for _ in centers]
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
    tables = np.zeros((len(centers), len(gammas), len(pairs.query_rows)), np.float32)
    order = np.lexsort((pairs.query_rows, pairs.rows))
    rows, starts = np.unique(pairs.rows[order], return_index=True)
    edges = np.append(starts, len(order))
    pulled = PullIndex(folds.train)
    angles = np.array([chord_angle(gamma) for gamma in gammas])
    for start in range(0, len(rows), PASSAGES_AT_ONCE):
        block = corpus.multi_vector(rows[start : start + PASSAGES_AT_ONCE])
        for i, passage in enumerate(block, start):
            mine = order[edges[i] : edges[i + 1]]
            if len(passage):
                query_rows, pulling = pairs.query_rows[mine], pulled.by(rows[i], passage)
                tables[:, :, mine] = _multi_vector_scores(passage, query_rows, folds, pulling, angles, centers)
    return [TabulatedScores(table, gammas) for table in tables]


class PullGroup(NamedTuple):
    """Training queries that pull a passage, ascending, and the passage vectors that their vectors match."""

    who: Ints
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
        who = self.query_rows[low:high]
        strengths = self.strengths[low:high].tolist()
        return PullGroup(who, MaxSimAlignment.of(passage, [self.vectors[i] for i in who], strengths, self.mean))


def _multi_vector_scores(
    passage: Array,
    query_rows: Ints,
    folds: CrossFitFolds,
    pulling: PullGroup | None,
    angles: Floats,
    centers: Sequence[float],
) -> Array:
    """Return MaxSim scores while matched vectors rotate, shape (centers, angles, queries)."""
    queries = folds.eval_queries.in_modes.multi_vector.take(query_rows)
    similar = passage @ queries.values.T
    best = np.empty((len(centers), len(angles), len(queries.values)), np.float32)
    if pulling is None:
        best[:] = similar.max(axis=0)
        return _means(best, queries)
    evaluated = np.repeat(folds.fold_of[query_rows], queries.counts)
    for who, together in _group_folds(pulling.who, folds, evaluated):
        mine = np.flatnonzero(np.isin(evaluated, together)) if len(together) < len(folds.held_out) else slice(None)
        for i, center in enumerate(centers):
            matched = pulling.matching.pulls(who, center)
            best[i][:, mine] = _rotated_maxima(passage, similar[:, mine], queries.values[mine], matched, angles)
    return _means(best, queries)


def _group_folds(pulling: Ints, folds: CrossFitFolds, evaluated: Ints) -> list[tuple[Ints, list[int]]]:
    """Group the folds that have the same pulling queries, given as positions in `pulling`."""
    groups: dict[bytes, tuple[Ints, list[int]]] = {}
    for fold in np.unique(evaluated).tolist():
        who = np.flatnonzero(~np.isin(pulling, folds.held_out[fold]))
        groups.setdefault(who.tobytes(), (who, []))[1].append(fold)
    return list(groups.values())


def _rotated_maxima(passage: Array, similar: Array, vectors: Array, matched: MatchedVectors, angles: Floats) -> Array:
    """Return the best similarity of each query vector while matched vectors rotate, shape (angles, vectors).

    `similar`, shape (tokens, vectors), holds the similarities before.
    """
    unmoved = np.delete(similar, matched.places, axis=0).max(axis=0, initial=-np.inf)
    if not len(matched.places):
        return np.broadcast_to(unmoved, (len(angles), len(vectors)))
    directions = direction_to(passage[matched.places], matched.pulls)
    straight, tangent = similar[matched.places], directions.tangent @ vectors.T
    best = np.empty((len(angles), len(vectors)), np.float32)
    along, across = np.empty_like(straight), np.empty_like(straight)
    for step, angle in enumerate(angles):
        turn = np.minimum(angle, directions.angle).astype(np.float32)[:, None]
        np.multiply(straight, np.cos(turn), out=along)
        along += np.multiply(tangent, np.sin(turn), out=across)
        np.maximum(unmoved, along.max(axis=0), out=best[step])
    return best


def _means(best: Array, queries: MultiVectors) -> Array:
    """Return the mean over each query's vectors of values of shape (..., vectors); 0 for a query without vectors."""
    padded = np.concatenate([best, np.zeros((*best.shape[:-1], 1), np.float32)], axis=-1)
    sums = np.add.reduceat(padded, queries.offsets[:-1], axis=-1)
    counts = queries.counts
    means: Array = np.where(counts > 0, sums / np.maximum(counts, 1), 0)
    return means

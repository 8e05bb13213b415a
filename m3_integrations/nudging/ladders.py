"""One mode's scores of judged pairs at every strength of its nudge: what a choice over several modes adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import Array, MultiVectors
from m3_integrations.nudging.corpus import Corpus
from m3_integrations.nudging.field import Field
from m3_integrations.nudging.gamma import Pulls
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.late import Matched, Matching
from m3_integrations.nudging.panels import Panels
from m3_integrations.nudging.plans import Plan
from m3_integrations.nudging.solve import bearing, chord_angle, shares_of_rows
from m3_integrations.nudging.still import pair_products
from m3_integrations.nudging.ways import Curves, Way

ROWS = 4096  # pairs, or passages, in a block
LATE = 256  # passages whose multi-vectors are in memory at once
TERMS = 256  # strongest terms of a sparse pull


class Pairs(NamedTuple):
    """Judges with the passages that they rank, an element each, in the order of asker and row."""

    askers: Ints
    rows: Ints


class Ladder(Protocol):
    """The scores of pairs while their passages move."""

    @property
    def gammas(self) -> Floats:
        """Strengths to try, ascending from 0."""

    def at(self, gamma: float) -> Floats:
        """(pairs,): the scores at gamma."""


class Curved:
    """A ladder of closed forms: dense in both ways, and sparse, which is pushed."""

    def __init__(self, curves: Curves, way: Way, gammas: Floats) -> None:
        self.curves, self.way, self.gammas = curves, way, gammas

    def at(self, gamma: float) -> Floats:
        return self.way.level(gamma, self.curves)


class Tabled:
    """A ladder of scores at some strengths: (gammas, pairs); between two of them along the angle."""

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


def dense_ladders(
    passages: Floats, panels: Panels, pairs: Pairs, plans: Sequence[Plan], total: int | None = None
) -> list[Curves]:
    """By plan, the scores of the pairs as curves, each passage pulled by its panel's pullers.

    total: how many passages there are in all, where these are a part.
    """
    every = [Curves(*np.zeros((3, len(pairs.askers)))) for _ in plans]
    for panel in range(len(panels.silent)):
        here = np.flatnonzero(panels.seats[pairs.askers] == panel)
        pullers = panels.pullers(panel)
        field = Field.of(passages, pullers, total)
        for plan, curves in zip(plans, every, strict=True):
            _trace(passages, panels.judges.queries, pairs, here, field.by(pullers, plan), plan.way, curves)
    return every


def dense_pulls(passages: Floats, pullers: Judged, plan: Plan) -> Pulls:
    """What pulls each passage, its neighbours' pulls included where they spread."""
    return Field.of(passages, pullers).by(pullers, plan)


def _trace(passages: Floats, queries: Floats, pairs: Pairs, here: Ints, pulls: Pulls, way: Way, curves: Curves) -> None:
    """Fill in the curves of the pairs `here`."""
    rows, places = np.unique(pairs.rows[here], return_inverse=True)
    for start in range(0, len(rows), ROWS):
        inside = (places >= start) & (places < start + ROWS)
        block, which, at = rows[start : start + ROWS], here[inside], places[inside] - start
        before = passages[block].astype(np.float64)
        moves = way.bearing(before, _pulls_at(pulls, block, before.shape[1]))
        curves.a[which] = pair_products(queries, pairs.askers[which], before, at)
        curves.b[which] = pair_products(queries, pairs.askers[which], moves.sideways, at)
        curves.reach[which] = moves.angle[at]


def _pulls_at(pulls: Pulls, rows: Ints, dim: int) -> Floats:
    """(rows, dim) float64: zeros where nothing pulls."""
    found = np.zeros((len(rows), dim))
    pulled = np.flatnonzero(np.isin(rows, pulls.rows))
    found[pulled] = pulls.take(np.searchsorted(pulls.rows, rows[pulled]))
    return found


def sparse_pulls(pullers: Judged, centre: float = 0.0) -> tuple[Ints, scipy.sparse.csr_array]:
    """The rows that some query pulls, ascending (m,), and the unit directions of their pulls (m, vocab).

    A pull is the sum of the queries' sparse rows, by weight and grade, of which the TERMS strongest terms are kept.
    centre: the power of 1 + the number of queries that say a term, by which it is divided first: what every question
    says, such as "what" and "who", then pulls hardly at all.
    """
    rows, shares = shares_of_rows(pullers)
    queries = pullers.in_modes.sparse
    sums = scipy.sparse.csr_array(shares @ queries)
    if centre:
        saying = 1 + np.bincount(queries.indices, minlength=queries.shape[1])
        sums.data = (sums.data * saying[sums.indices] ** -float(centre)).astype(sums.dtype)
    return rows, _unit_rows(_strongest(sums, TERMS))


def _strongest(rows: scipy.sparse.csr_array, terms: int) -> scipy.sparse.csr_array:
    """At most so many entries of each row, the largest; of equals the lower columns."""
    rows.sort_indices()
    of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    order = np.lexsort((rows.indices, -rows.data, of))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - rows.indptr[of]
    kept = place < terms
    offsets = np.concatenate([[0], np.cumsum(np.bincount(of[kept], minlength=rows.shape[0]))])
    return scipy.sparse.csr_array((rows.data[kept], rows.indices[kept], offsets), shape=rows.shape)


def _unit_rows(rows: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1), np.float64)).ravel()
    return scipy.sparse.csr_array(
        scipy.sparse.diags_array((1 / np.where(lengths > 0, lengths, 1)).astype(np.float32)) @ rows
    )


def sparse_curves(corpus: Corpus, panels: Panels, pairs: Pairs, centres: Sequence[float]) -> list[Curves]:
    """By centre, the scores of the pairs as lines over the strength of a sparse nudge: NUDGE-M in token space."""
    passages, queries = corpus.sparse, panels.judges.in_modes.sparse
    at_rest = _sparse_products(queries, pairs.askers, passages, pairs.rows)
    every = [Curves(at_rest, *np.zeros((2, len(at_rest)))) for _ in centres]
    for panel in range(len(panels.silent)):
        pullers, mine = panels.pullers(panel), panels.seats[pairs.askers] == panel
        for centre, curves in zip(centres, every, strict=True):
            rows, pulls = sparse_pulls(pullers, centre)
            here = np.flatnonzero(mine & np.isin(pairs.rows, rows))
            places = np.searchsorted(rows, pairs.rows[here])
            curves.b[here] = _sparse_products(queries, pairs.askers[here], pulls, places)
    return every


def _sparse_products(
    queries: scipy.sparse.csr_array, askers: Ints, passages: scipy.sparse.csr_array, rows: Ints
) -> Floats:
    """(pairs,) float64: the inner product of queries[askers[i]] with passages[rows[i]]."""
    products = np.empty(len(askers))
    for start in range(0, len(askers), ROWS):
        part = slice(start, start + ROWS)
        products[part] = (queries[askers[part]].multiply(passages[rows[part]])).sum(axis=1)
    return products


def late_ladders(
    corpus: Corpus, panels: Panels, pairs: Pairs, gammas: Floats, centres: Sequence[float]
) -> list[Tabled]:
    """By centre, the late-interaction scores of the pairs at these strengths, each panel's pullers having pulled."""
    tables = np.zeros((len(centres), len(gammas), len(pairs.askers)), np.float32)
    order = np.lexsort((pairs.askers, pairs.rows))
    rows, starts = np.unique(pairs.rows[order], return_index=True)
    edges = np.append(starts, len(order))
    pulled = PulledBy(panels.train)
    angles = np.array([chord_angle(gamma) for gamma in gammas])
    for start in range(0, len(rows), LATE):
        block = corpus.multi_vector(rows[start : start + LATE])
        for i, passage in enumerate(block, start):
            mine = order[edges[i] : edges[i + 1]]
            if len(passage):
                askers, pulling = pairs.askers[mine], pulled.by(rows[i], passage)
                tables[:, :, mine] = _late_scores(passage, askers, panels, pulling, angles, centres)
    return [Tabled(table, gammas) for table in tables]


class Pulling(NamedTuple):
    """Who pulls a passage, training queries ascending, and what their vectors match there."""

    who: Ints
    matching: Matching


def blocks(rows: Ints) -> list[Ints]:
    """The rows, as many at a time as have their multi-vectors in memory at once."""
    return [rows[start : start + LATE] for start in range(0, len(rows), LATE)]


class PulledBy:
    """The training queries that pull each passage by late interaction."""

    def __init__(self, train: Judged) -> None:
        order = np.lexsort((train.askers, train.rows))
        order = order[train.strengths[order] > 0]
        self.rows, self.askers, self.strengths = train.rows[order], train.askers[order], train.strengths[order]
        self.vectors = train.in_modes.multi_vector
        self.mean = self.vectors.values.mean(axis=0) if len(self.vectors.values) else np.zeros(self.vectors.width)

    def by(self, row: int, passage: Array) -> Pulling | None:
        """Who pulls this passage; None where nobody does."""
        low, high = np.searchsorted(self.rows, [row, row + 1])
        if low == high or not len(passage):
            return None
        who = self.askers[low:high]
        strengths = self.strengths[low:high].tolist()
        return Pulling(who, Matching.of(passage, [self.vectors[i] for i in who], strengths, self.mean))


def _late_scores(
    passage: Array, askers: Ints, panels: Panels, pulling: Pulling | None, angles: Floats, centres: Sequence[float]
) -> Array:
    """(centres, angles, askers): the mean over a query's vectors of the passage's best, while the matched ones turn."""
    queries = panels.judges.in_modes.multi_vector.take(askers)
    similar = passage @ queries.values.T
    best = np.empty((len(centres), len(angles), len(queries.values)), np.float32)
    if pulling is None:
        best[:] = similar.max(axis=0)
        return _means(best, queries)
    seats = np.repeat(panels.seats[askers], queries.counts)
    for who, together in _by_pullers(pulling.who, panels, seats):
        mine = np.flatnonzero(np.isin(seats, together)) if len(together) < len(panels.silent) else slice(None)
        for i, centre in enumerate(centres):
            matched = pulling.matching.pulls(who, centre)
            best[i][:, mine] = _along(passage, similar[:, mine], queries.values[mine], matched, angles)
    return _means(best, queries)


def _by_pullers(pulling: Ints, panels: Panels, seats: Ints) -> list[tuple[Ints, list[int]]]:
    """The panels that are seated here, those together for whom the same of the pullers pull: places in `pulling`."""
    groups: dict[bytes, tuple[Ints, list[int]]] = {}
    for panel in np.unique(seats).tolist():
        who = np.flatnonzero(~np.isin(pulling, panels.silent[panel]))
        groups.setdefault(who.tobytes(), (who, []))[1].append(panel)
    return list(groups.values())


def _along(passage: Array, similar: Array, vectors: Array, matched: Matched, angles: Floats) -> Array:
    """(angles, vectors): the best similarity of each query vector, while the passage's matched vectors turn.

    similar: (tokens, vectors) at rest.
    """
    still = np.delete(similar, matched.places, axis=0).max(axis=0, initial=-np.inf)
    if not len(matched.places):
        return np.broadcast_to(still, (len(angles), len(vectors)))
    ways = bearing(passage[matched.places], matched.pulls)
    straight, sideways = similar[matched.places], ways.sideways @ vectors.T
    best = np.empty((len(angles), len(vectors)), np.float32)
    along, across = np.empty_like(straight), np.empty_like(straight)
    for rung, angle in enumerate(angles):
        turn = np.minimum(angle, ways.angle).astype(np.float32)[:, None]
        np.multiply(straight, np.cos(turn), out=along)
        along += np.multiply(sideways, np.sin(turn), out=across)
        np.maximum(still, along.max(axis=0), out=best[rung])
    return best


def _means(best: Array, queries: MultiVectors) -> Array:
    """(..., queries): the mean over each query's vectors; 0 for a query that has none. best: (..., vectors)."""
    padded = np.concatenate([best, np.zeros((*best.shape[:-1], 1), np.float32)], axis=-1)
    sums = np.add.reduceat(padded, queries.offsets[:-1], axis=-1)
    counts = queries.counts
    means: Array = np.where(counts > 0, sums / np.maximum(counts, 1), 0)
    return means

"""Search over a snapshot: quick scores propose, the shared kernel of each mode decides.

A quick score may be off by its rounding, so that all whose quick score is within the rounding of the k-th are proposed;
the kernel's scores of those are then what an exact scan gives, to the bit. Sparse scores come exact from the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Ints, Mode, dense_scores, entries_of, shared_weights
from m3_integrations.index.arrays import damaged
from m3_integrations.index.base import Found, Hit
from m3_integrations.index.catalogue import Transaction
from m3_integrations.index.coarse import NOBODY, Likely, likely
from m3_integrations.index.columns import Mask
from m3_integrations.index.ranking import contenders, rank
from m3_integrations.index.rough import Rough, rough_scores
from m3_integrations.index.segments import Longs, Segment, add_token_scores, late_scores, sparse_rows
from m3_integrations.index.snapshot import Current, Snapshot

_EPSILON = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)
_SCORES_AT_ONCE = 1 << 25
_SCANNED_AT_ONCE = 1 << 16
_FEW_QUERIES = 4
_ASKED_AT_ONCE = 256
_NONE = np.empty(0, np.int64)
_LIKELY = 4
_ROWS_AT_ONCE = 4096
_NOT_FINITE = "holds what cannot be vectors (their scores are not finite)"


class Scored(NamedTuple):
    """Some rows, and how they score in one mode. every: (count,) how all rows score, where that is known."""

    rows: Longs
    scores: Array
    every: Array | None = None


def propose(snapshot: Snapshot, mode: Mode, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
    """For each query rows among which are the best k of the allowed ones."""
    if mode == "dense":
        return _propose_dense(snapshot, queries, k, allowed)
    return _propose_late(snapshot, queries, k, allowed) if mode == "multi_vector" else [allowed] * len(queries)


def scored(snapshot: Snapshot, mode: Mode, queries: Encoded, proposed: Sequence[Longs]) -> Iterator[Scored]:
    """For each query what was proposed, by its exact scores."""
    for rows, asking in _sharing(proposed):
        for scores in exact_scores(snapshot, mode, _some_of(queries, asking), rows):
            yield Scored(rows, scores)


def scan_lists(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> Iterator[Scored]:
    """For each query the best k of the allowed rows in sparse search, with all that tie with the last.

    None that shares nothing with the query. Raises DamagedFolder where what is there cannot be weights.
    """
    few = len(queries) * snapshot.count <= _SCORES_AT_ONCE
    for i in range(len(queries)):
        with np.errstate(over="ignore", invalid="ignore"):
            scores = _token_scores(snapshot, one_of(queries, i).sparse)
        mine = _among(scores, allowed)
        _require_finite(snapshot, "sparse", mine, allowed)
        found = allowed[contenders(mine, k)]
        found = found[scores[found] > 0]
        yield Scored(found, scores[found], scores if few else None)


def _require_finite(snapshot: Snapshot, mode: Mode, scores: Array, rows: Longs) -> None:
    """Raises DamagedFolder. scores: (rows,), or (queries, rows)."""
    finite = np.isfinite(scores)
    if not finite.all():
        segment, _, _ = next(snapshot.lying(mode, rows[~finite.reshape(-1, len(rows)).all(axis=0)]))
        raise damaged(segment.path, _NOT_FINITE)


def decide(transaction: Transaction, snapshot: Snapshot, k: int, found: Iterable[Scored]) -> list[list[Hit]]:
    """The best k of what was found for each query."""
    return [_best(transaction, snapshot, each, k) for each in found]


def choose(transaction: Transaction, snapshot: Snapshot, k: int, found: Iterable[Scored]) -> list[Scored]:
    """What `decide` answers, in no order, and how all rows score, where `found` says it.

    A passage's id is asked for only where it decides a tie.
    """
    return [_chosen(transaction, snapshot, each, k) for each in found]


def one_of(queries: Encoded, i: int) -> Encoded:
    """One query alone."""
    return _some_of(queries, [i])


def _some_of(queries: Encoded, which: Sequence[int]) -> Encoded:
    """Those of these numbers, which ascend."""
    return queries if len(which) == len(queries) else queries.take(which)


def exact_scores(snapshot: Snapshot, mode: Mode, queries: Encoded, rows: Longs) -> Array:
    """(queries, rows) by the kernel that every index shares. Raises DamagedFolder where what is there has no scores."""
    blocks = [np.zeros((len(queries), 0), np.float32)]
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        with np.errstate(over="ignore", invalid="ignore"):
            blocks.append(_SCORES[mode](snapshot, queries, some))
        _require_finite(snapshot, mode, blocks[-1], some)
    return np.concatenate(blocks, axis=1)


def exact_scores_of_each(snapshot: Snapshot, mode: Mode, queries: Encoded, rows: Sequence[Longs]) -> list[Array]:
    """For each query the scores of its own rows."""
    return [exact_scores(snapshot, mode, one_of(queries, i), each)[0] for i, each in enumerate(rows)]


def united(chosen: Iterable[Sequence[Scored]]) -> list[Longs]:
    """For each query the rows that any mode chose, ascending."""
    return [np.unique(np.concatenate([each.rows for each in modes])) for modes in zip(*chosen, strict=True)]


def scores_beside(
    snapshot: Snapshot, mode: Mode, queries: Encoded, rows: Sequence[Longs], chosen: Sequence[Scored] | None
) -> list[Array]:
    """For each query the scores of its own rows, which ascend; what the mode chose of them is scored already."""
    if chosen is None:
        return exact_scores_of_each(snapshot, mode, queries, rows)
    asked = (one_of(queries, i) for i in range(len(rows)))
    return [_completed(snapshot, mode, *each) for each in zip(asked, rows, chosen, strict=True)]


def _completed(snapshot: Snapshot, mode: Mode, query: Encoded, rows: Longs, chosen: Scored) -> Array:
    if chosen.every is not None:
        return chosen.every[rows]
    scores, known = np.empty(len(rows), np.float32), np.searchsorted(rows, chosen.rows)
    others = np.delete(np.arange(len(rows)), known)
    scores[known] = chosen.scores
    scores[others] = exact_scores(snapshot, mode, query, rows[others])[0]
    return scores


def with_late_interaction(
    snapshot: Snapshot, query: Encoded, scores: Mapping[Mode, Array], weights: Mapping[Mode, float], k: int, rows: Longs
) -> tuple[dict[Mode, Array], Longs]:
    """The scores of those rows that can be among the best k by the weighted sum, in all modes, and these rows.

    scores: (rows,) of all weighted modes but late interaction.
    """
    weight, totals = weights["multi_vector"], _totals(scores, weights, len(rows))
    found = _rough(snapshot, query, rows) if len(rows) > k else None
    likely = _NONE if found is None else _likely_best(totals, weight, found, k)
    if len(likely) and len(likely) < len(rows):
        rows, scores = rows[likely], {mode: each[likely] for mode, each in scores.items()}
        snapshot.ragged(rows).read_ahead()
    return {**scores, "multi_vector": exact_scores(snapshot, "multi_vector", query, rows)[0]}, rows


def _likely_best(others: npt.NDArray[np.float64], weight: float, late: Rough, k: int) -> Ints:
    """Which can be among the best k by the sum of the others and weighted late interaction; none where nobody can say.

    late: of one query.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        totals = others + weight * late.scores[0].astype(np.float64)
        slack = abs(weight) * late.slack[0] + 4 * np.finfo(totals.dtype).eps * np.abs(totals).max()
    return contenders(totals, k, 2 * slack) if np.isfinite(slack) else _NONE


def best_found(
    transaction: Transaction,
    snapshot: Snapshot,
    scores: Mapping[Mode, Array],
    weights: Mapping[Mode, float],
    k: int,
    rows: Longs,
) -> list[Found]:
    """The best k of these rows by the weighted sum, and all that tie with the last. scores: (rows,) of each mode."""
    best = contenders(_totals(scores, weights, len(rows)), k)
    passages = transaction.passages(snapshot.slots[rows[best]].tolist())
    return [
        Found(passage, {mode: float(scores[mode][place]) for mode in weights})
        for passage, place in zip(passages, best.tolist(), strict=True)
    ]


def _totals(scores: Mapping[Mode, Array], weights: Mapping[Mode, float], count: int) -> npt.NDArray[np.float64]:
    """(count,) the weighted sums of the modes that there are."""
    totals = np.zeros(count)
    for mode in MODES:  # in the order in which `weighted_sum` adds them
        if mode in scores:
            totals += weights[mode] * scores[mode].astype(np.float64)
    return totals


def _dense_scores(snapshot: Snapshot, queries: Encoded, rows: Longs) -> Array:
    lying = list(snapshot.lying("dense", rows))
    values = np.concatenate([segment.arrays["values"][mine] for segment, mine, _ in lying])
    return _as_asked(lying, dense_scores(queries.dense, values))


def _sparse_scores(snapshot: Snapshot, queries: Encoded, rows: Longs) -> Array:
    lying = list(snapshot.lying("sparse", rows))
    offsets, columns, kept = sparse_rows([(segment, mine) for segment, mine, _ in lying])
    every = [shared_weights(tokens, weights, offsets, columns, kept) for tokens, weights in entries_of(queries.sparse)]
    return _as_asked(lying, np.array(every, np.float32))


def _late_scores(snapshot: Snapshot, queries: Encoded, rows: Longs) -> Array:
    places = snapshot.ragged(rows)
    return np.array([late_scores(places, query) for query in queries.multi_vector], np.float32)


def _as_asked(lying: Sequence[tuple[Segment, Longs, Longs]], found: Array) -> Array:
    """The scores in the order of the rows, where they were found segment by segment."""
    scores = np.empty_like(found)
    scores[:, np.concatenate([which for _, _, which in lying])] = found
    return scores


def _sharing(proposed: Sequence[Longs]) -> Iterator[tuple[Longs, list[int]]]:
    """Rows, and the queries in a row that they were all proposed to, so that their vectors are read once."""
    for _, same in groupby(range(len(proposed)), key=lambda i: id(proposed[i])):
        asking = list(same)
        rows = proposed[asking[0]]
        step = max(1, _SCORES_AT_ONCE // max(1, len(rows)))
        yield from ((rows, asking[start : start + step]) for start in range(0, len(asking), step))


def _best(transaction: Transaction, snapshot: Snapshot, found: Scored, k: int) -> list[Hit]:
    best = contenders(found.scores, k)
    return rank(snapshot.ids_of(transaction, found.rows[best]), found.scores[best], k)


def _chosen(transaction: Transaction, snapshot: Snapshot, found: Scored, k: int) -> Scored:
    best = contenders(found.scores, k)
    if len(best) <= k:
        return Scored(found.rows[best], found.scores[best], found.every)
    hits = _best(transaction, snapshot, found, k)
    rows = snapshot.rows_named(transaction, [hit.id for hit in hits])
    return Scored(rows, np.array([hit.score for hit in hits], np.float32), found.every)


def _propose_late(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
    if len(allowed) <= k:
        return [allowed] * len(queries)
    step = max(1, min(_ASKED_AT_ONCE, _SCORES_AT_ONCE // len(allowed)))
    parts = (_some_of(queries, range(start, min(start + step, len(queries)))) for start in range(0, len(queries), step))
    return [rows for part in parts for rows in _propose_late_block(snapshot, part, k, allowed)]


def _propose_late_block(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> Iterator[Longs]:
    found = _rough(snapshot, queries, allowed)
    for i in range(len(queries)):
        likely = allowed
        if found is not None and np.isfinite(found.slack[i]):
            likely = allowed[contenders(found.scores[i], k, 2 * found.slack[i])]
        # Where bytes tell few apart, all are scored for all such queries together.
        yield likely if _LIKELY * len(likely) < len(allowed) else allowed


def _rough(snapshot: Snapshot, queries: Encoded, rows: Longs) -> Rough | None:
    """The late-interaction scores of these rows."""
    if snapshot.limits is None:
        return None
    coding = snapshot.codings["multi_vector"]
    return rough_scores(snapshot.ragged(rows), snapshot.limits, coding, queries.multi_vector)


def _propose_dense(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
    if len(allowed) <= max(k, _ROWS_AT_ONCE):
        return [allowed] * len(queries)
    if len(queries) <= _FEW_QUERIES:
        return [_propose_dense_one(snapshot, query, k, allowed) for query in queries.dense]
    step = max(1, _SCORES_AT_ONCE // snapshot.count)
    blocks = (queries.dense[start : start + step] for start in range(0, len(queries), step))
    return [rows for block in blocks for rows in _propose_dense_block(snapshot, block, k, allowed)]


def _propose_dense_one(snapshot: Snapshot, query: Array, k: int, allowed: Longs) -> Longs:
    """By the coarse copies; by the vectors where a segment has none, or where too many of them look alike."""
    lying = [current for current in snapshot.segments("dense") if len(current.mine)]
    likeliest = _LIKELY * int(k) * snapshot.count // len(allowed)  # int: a numpy integer could overflow
    for count in (likeliest, _LIKELY * likeliest):
        if count > len(allowed) // _LIKELY or not all(current.segment.is_copied for current in lying):
            break
        found, least = NOBODY, -np.inf
        for current in lying:
            found = found.join(_likely(snapshot, current, query, count, least, allowed))
            least = found.kth(k)
            found = found.take(np.greater_equal(found.highest, least))
        if found.rest < least:
            return np.sort(found.rows)
    return _propose_dense_block(snapshot, query[None], k, allowed)[0]


def _likely(snapshot: Snapshot, current: Current, query: Array, count: int, least: float, allowed: Longs) -> Likely:
    """What a segment's copy says of the allowed rows of the snapshot."""
    found = likely(current.segment.arrays, query, count, least)
    found = found._replace(rows=current.rows_at(found.rows))
    if len(allowed) == snapshot.count and current.run is not None:
        return found
    return found.take(_are_allowed(snapshot, found.rows, allowed))


def _are_allowed(snapshot: Snapshot, rows: Longs, allowed: Longs) -> Mask:
    if len(allowed) == snapshot.count:
        return rows >= 0
    places = np.minimum(np.searchsorted(allowed, rows), len(allowed) - 1)
    return np.equal(allowed[places], rows)


def _propose_dense_block(snapshot: Snapshot, queries: Array, k: int, allowed: Longs) -> list[Longs]:
    wanted = np.zeros(snapshot.count, bool)
    wanted[allowed] = True
    scores = np.zeros((len(queries), snapshot.count), np.float32)
    longest = 0.0
    for segment, mine, rows, run in snapshot.segments("dense"):
        longest = max(longest, segment.longest)
        if run is not None and wanted[run].all():
            _all_inner_products(segment, queries, scores[:, run])
        else:
            _inner_products(segment, mine[wanted[rows]], rows[wanted[rows]], queries, scores)
    # Each of the two inner products is within dim · ε/2 · |q| · |p| of the true one (Higham 2002, section 3.1).
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    slack = 2 * queries.shape[1] * (_EPSILON * longest * lengths + _TINY)
    return [allowed[contenders(_among(scores[i], allowed), k, slack[i])] for i in range(len(queries))]


def _among(scores: Array, allowed: Longs) -> Array:
    """The scores of the allowed rows."""
    return scores if len(allowed) == len(scores) else scores[allowed]


def _all_inner_products(segment: Segment, queries: Array, scores: Array) -> None:
    """Write the scores of all rows of a segment."""
    values = segment.arrays["values"]
    for start in range(0, len(values), _SCANNED_AT_ONCE):
        some = slice(start, start + _SCANNED_AT_ONCE)
        scores[:, some] = _quick_products(queries, values[some])


def _inner_products(segment: Segment, mine: Longs, rows: Longs, queries: Array, scores: Array) -> None:
    """Write the scores of these rows of a segment to these rows of the snapshot. mine ascends."""
    values = segment.arrays["values"]
    for start in range(0, len(values), _SCANNED_AT_ONCE):
        block = values[start : start + _SCANNED_AT_ONCE]
        begin, end = np.searchsorted(mine, [start, start + len(block)])
        here, there = mine[begin:end] - start, rows[begin:end]
        if 4 * len(here) > len(block):  # to read all is then faster than to pick
            scores[:, there] = _quick_products(queries, block)[:, here]
        elif len(here):
            scores[:, there] = _quick_products(queries, block[here])


def _quick_products(queries: Array, passages: Array) -> Array:
    # A matrix product reads the passages once for all queries, but is slow to set out where the cores are busy.
    return queries @ passages.T if len(queries) > _FEW_QUERIES else dense_scores(queries, passages)


def _token_scores(snapshot: Snapshot, query: scipy.sparse.csr_array) -> Array:
    """(count,) the sparse scores of all rows: the same sums in the same order as the kernel's, and so the same."""
    scores = np.zeros(snapshot.count, np.float32)
    for segment, mine, rows, run in snapshot.segments("sparse"):
        if run is not None:
            add_token_scores(segment, query, scores[run])
        else:
            every = np.zeros(len(segment), np.float32)
            add_token_scores(segment, query, every)
            scores[rows] = every[mine]
    return scores


_SCORES: Mapping[Mode, Callable[[Snapshot, Encoded, Longs], Array]] = {
    "dense": _dense_scores,
    "sparse": _sparse_scores,
    "multi_vector": _late_scores,
}

"""Candidate generation and exact rescoring over a snapshot.

Fast scores have rounding errors, so every row within the error bound of the k-th score is a candidate. The shared
kernel of each mode then scores the candidates, with results bit-for-bit identical to an exact scan. Sparse scores from
inverted lists are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Ints, Mode
from m3_integrations.core.scoring import dense_scores, entries_of, inverse_document_frequency, sparse_row_scores
from m3_integrations.index.base import Hit, HybridHit
from m3_integrations.index.local.array_file import damaged_file_error
from m3_integrations.index.local.candidates.approximate_maxsim import ApproximateScores, approximate_maxsim
from m3_integrations.index.local.catalog import Transaction
from m3_integrations.index.local.metadata_columns import Mask
from m3_integrations.index.local.segments import (
    Longs,
    Segment,
    add_token_scores,
    count_rows_of_tokens,
    maxsim_scores,
    read_sparse_rows,
)
from m3_integrations.index.local.snapshot import LiveRows, Snapshot
from m3_integrations.index.quantization.dense_int8 import NO_CANDIDATES, BoundedCandidates, find_candidates
from m3_integrations.index.top_k import rank, top_k_with_ties

_EPSILON = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)
_BLOCK_SCORES = 1 << 25
_BLOCK_SCANNED_ROWS = 1 << 16
_BLOCK_QUERIES = 256
_BLOCK_ROWS = 4096
_FEW_QUERIES = 4
_MIN_REDUCTION = 4  # candidates are used if they are fewer than the rows by this factor
_NO_ROWS = np.empty(0, np.int64)
_NO_SCORES = np.empty(0, np.float32)


class ScoredRows(NamedTuple):
    """Rows and their scores in one mode, for one query.

    Attributes:
        rows: Snapshot rows, shape (n,).
        scores: Their scores, shape (n,).
        all_scores: Scores of all rows of the snapshot, shape (count,); None if unknown.
    """

    rows: Longs
    scores: Array
    all_scores: Array | None = None

    def among(self, rows: Longs) -> ScoredRows:
        """Return those that are among ascending rows."""
        is_among = np.isin(self.rows, rows)
        return self._replace(rows=self.rows[is_among], scores=self.scores[is_among])


def generate_candidates(snapshot: Snapshot, mode: Mode, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
    """Find a superset of the top k of the allowed rows.

    Args:
        snapshot: The state to search.
        mode: The mode to search by.
        queries: Queries in this mode.
        k: Number of hits.
        allowed: Rows to search, ascending.

    Returns:
        Candidate rows per query.
    """
    if mode == "dense":
        return _dense_candidates(snapshot, queries, k, allowed)
    return _maxsim_candidates(snapshot, queries, k, allowed) if mode == "multi_vector" else [allowed] * len(queries)


def score_candidates(snapshot: Snapshot, mode: Mode, queries: Encoded, rows: Sequence[Longs]) -> Iterator[ScoredRows]:
    """Score each query's candidate rows exactly."""
    for shared, positions in _group_by_rows(rows):
        for scores in exact_scores(snapshot, mode, _take_queries(queries, positions), shared):
            yield ScoredRows(shared, scores)


def scan_inverted_lists(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> Iterator[ScoredRows]:
    """Search sparse embeddings over inverted lists.

    Args:
        snapshot: The state to search.
        queries: Sparse queries.
        k: Number of hits.
        allowed: Rows to search, ascending.

    Yields:
        Per query the top k with a score above 0, and rows that tie with the last of them.

    Raises:
        DamagedFolder: If a segment does not contain valid weights.
    """
    has_few_scores = len(queries) * snapshot.count <= _BLOCK_SCORES
    for i in range(len(queries)):
        with np.errstate(over="ignore", invalid="ignore"):
            scores = _token_scores(snapshot, single_query(queries, i).sparse)
        allowed_scores = _take_allowed(scores, allowed)
        _check_finite(snapshot, "sparse", allowed_scores, allowed)
        rows = allowed[top_k_with_ties(allowed_scores, k)]
        rows = rows[scores[rows] > 0]
        yield ScoredRows(rows, scores[rows], scores if has_few_scores else None)


def idf(snapshot: Snapshot, tokens: Ints) -> Array:
    """Return the inverse document frequency of tokens among the passages of a snapshot.

    Args:
        snapshot: The state to read.
        tokens: Ascending tokens.

    Raises:
        DamagedFolder: If a segment does not contain valid lists.
    """
    counts = np.zeros(len(tokens), np.int64)
    for segment, segment_rows in snapshot.live_segments("sparse"):
        counts += count_rows_of_tokens(segment, tokens, segment_rows)
    return inverse_document_frequency(counts, snapshot.live_count)


def to_hits(transaction: Transaction, snapshot: Snapshot, k: int, scored: Iterable[ScoredRows]) -> list[list[Hit]]:
    """Return the top k of each query's rows as hits, best first."""
    return [_rank_rows(transaction, snapshot, rows, k) for rows in scored]


def select_top_k(transaction: Transaction, snapshot: Snapshot, k: int, found: Iterable[ScoredRows]) -> list[ScoredRows]:
    """Return the top k of each query's rows, unordered; ids are read only to break ties."""
    return [_select_rows(transaction, snapshot, rows, k) for rows in found]


def single_query(queries: Encoded, i: int) -> Encoded:
    """Return one of the queries."""
    return _take_queries(queries, [i])


def exact_scores(snapshot: Snapshot, mode: Mode, queries: Encoded, rows: Longs) -> Array:
    """Score rows by the kernel shared with every index.

    Args:
        snapshot: The state to search.
        mode: The mode to score by.
        queries: Queries in this mode.
        rows: Rows to score.

    Returns:
        Shape (queries, rows).

    Raises:
        DamagedFolder: If a segment does not contain valid embeddings.
    """
    blocks = [np.zeros((len(queries), 0), np.float32)]
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        with np.errstate(over="ignore", invalid="ignore"):
            blocks.append(_KERNELS[mode](snapshot, queries, block))
        _check_finite(snapshot, mode, blocks[-1], block)
    return np.concatenate(blocks, axis=1)


def exact_scores_per_query(snapshot: Snapshot, mode: Mode, queries: Encoded, rows: Sequence[Longs]) -> list[Array]:
    """Score each query's own rows."""
    return [exact_scores(snapshot, mode, single_query(queries, i), own)[0] for i, own in enumerate(rows)]


def union_rows(selected: Iterable[Sequence[ScoredRows]]) -> list[Longs]:
    """Return the rows selected by any mode for each query, ascending."""
    return [np.unique(np.concatenate([scored.rows for scored in modes])) for modes in zip(*selected, strict=True)]


def fill_scores(
    snapshot: Snapshot, mode: Mode, queries: Encoded, rows: Sequence[Longs], selected: Sequence[ScoredRows] | None
) -> list[Array]:
    """Score each query's own rows in one mode, reusing known scores.

    Args:
        snapshot: The state to search.
        mode: The mode to score by.
        queries: Queries in this mode.
        rows: Rows per query, ascending.
        selected: Rows that were selected by this mode, with their scores; None if the mode was not searched.

    Returns:
        Scores of `rows` per query.
    """
    if selected is None:
        return exact_scores_per_query(snapshot, mode, queries, rows)
    singles = (single_query(queries, i) for i in range(len(rows)))
    return [_fill_scores(snapshot, mode, *args) for args in zip(singles, rows, selected, strict=True)]


def rescore_maxsim(
    snapshot: Snapshot,
    query: Encoded,
    scores: Mapping[Mode, Array],
    weights: Mapping[Mode, float],
    k: int,
    rows: Longs,
    selected: ScoredRows | None = None,
) -> tuple[dict[Mode, Array], Longs]:
    """Score by MaxSim the possible top k by the weighted sum.

    Args:
        snapshot: The state to search.
        query: One query.
        scores: Scores of `rows` in all weighted modes except multi_vector.
        weights: Weight of each mode.
        k: Number of hits.
        rows: Candidate rows, ascending.
        selected: Rows that were selected by late interaction, with their scores; None if it was not searched.

    Returns:
        Scores in all weighted modes of the rows that may be in the top k, and these rows.
    """
    totals = _weighted_sums(scores, weights, len(rows))
    approximate = _approximate_scores(snapshot, query, rows) if len(rows) > k else None
    best = _NO_ROWS if approximate is None else _possible_top_k(totals, weights["multi_vector"], approximate, k)
    if len(best) and len(best) < len(rows):
        rows, scores = rows[best], {mode: values[best] for mode, values in scores.items()}
        snapshot.locate_multi_vectors(rows).read_ahead()
    known = ScoredRows(_NO_ROWS, _NO_SCORES) if selected is None else selected.among(rows)
    return {**scores, "multi_vector": _fill_scores(snapshot, "multi_vector", query, rows, known)}, rows


def to_hybrid_hits(
    transaction: Transaction,
    snapshot: Snapshot,
    scores: Mapping[Mode, Array],
    weights: Mapping[Mode, float],
    k: int,
    rows: Longs,
) -> list[HybridHit]:
    """Return the top k rows by the weighted sum with all ties, unordered.

    Args:
        transaction: Transaction of the snapshot.
        snapshot: The state to search.
        scores: Scores of `rows` in each mode.
        weights: Weight of each mode.
        k: Number of hits.
        rows: Candidate rows.
    """
    best = top_k_with_ties(_weighted_sums(scores, weights, len(rows)), k)
    passages = transaction.passages(snapshot.slots[rows[best]].tolist())
    return [
        HybridHit(passage, {mode: float(scores[mode][position]) for mode in weights})
        for passage, position in zip(passages, best.tolist(), strict=True)
    ]


def _check_finite(snapshot: Snapshot, mode: Mode, scores: Array, rows: Longs) -> None:
    """Raise DamagedFolder if scores, shape (rows,) or (queries, rows), are not finite."""
    is_finite = np.isfinite(scores)
    if not is_finite.all():
        segment, _, _ = next(snapshot.locate(mode, rows[~is_finite.reshape(-1, len(rows)).all(axis=0)]))
        raise damaged_file_error(segment.path, "contains invalid vectors (their scores are not finite)")


def _take_queries(queries: Encoded, positions: Sequence[int]) -> Encoded:
    """Take queries at ascending positions."""
    return queries if len(positions) == len(queries) else queries.take(positions)


def _fill_scores(snapshot: Snapshot, mode: Mode, query: Encoded, rows: Longs, selected: ScoredRows) -> Array:
    if selected.all_scores is not None:
        return selected.all_scores[rows]
    scores, known = np.empty(len(rows), np.float32), np.searchsorted(rows, selected.rows)
    unknown = np.delete(np.arange(len(rows)), known)
    scores[known] = selected.scores
    scores[unknown] = exact_scores(snapshot, mode, query, rows[unknown])[0]
    return scores


def _possible_top_k(totals: npt.NDArray[np.float64], weight: float, approximate: ApproximateScores, k: int) -> Ints:
    """Return the possible top k by totals + weight · MaxSim of a query; none if unknown."""
    with np.errstate(over="ignore", invalid="ignore"):
        totals = totals + weight * approximate.scores[0].astype(np.float64)
        rounding = 4 * np.finfo(totals.dtype).eps * np.abs(totals).max()
        error_bound = abs(weight) * approximate.error_bound[0] + rounding
    return top_k_with_ties(totals, k, 2 * error_bound) if np.isfinite(error_bound) else _NO_ROWS


def _weighted_sums(scores: Mapping[Mode, Array], weights: Mapping[Mode, float], count: int) -> npt.NDArray[np.float64]:
    totals = np.zeros(count)
    for mode in MODES:  # in the order in which `weighted_sum` adds them
        if mode in scores:
            totals += weights[mode] * scores[mode].astype(np.float64)
    return totals


def _dense_kernel(snapshot: Snapshot, queries: Encoded, rows: Longs) -> Array:
    located = list(snapshot.locate("dense", rows))
    values = np.concatenate([segment.arrays.rows("values", segment_rows) for segment, segment_rows, _ in located])
    return _restore_order(located, dense_scores(queries.dense, values))


def _sparse_kernel(snapshot: Snapshot, queries: Encoded, rows: Longs) -> Array:
    located = list(snapshot.locate("sparse", rows))
    offsets, columns, stored = read_sparse_rows([(segment, segment_rows) for segment, segment_rows, _ in located])
    scores = [
        sparse_row_scores(tokens, weights, offsets, columns, stored) for tokens, weights in entries_of(queries.sparse)
    ]
    return _restore_order(located, np.array(scores, np.float32))


def _maxsim_kernel(snapshot: Snapshot, queries: Encoded, rows: Longs) -> Array:
    located = snapshot.locate_multi_vectors(rows)
    return np.array([maxsim_scores(located, query) for query in queries.multi_vector], np.float32)


def _restore_order(located: Sequence[tuple[Segment, Longs, Longs]], by_segment: Array) -> Array:
    """Reorder columns of scores from the order of `Snapshot.locate` to the order of rows."""
    scores = np.empty_like(by_segment)
    scores[:, np.concatenate([positions for _, _, positions in located])] = by_segment
    return scores


def _group_by_rows(candidates: Sequence[Longs]) -> Iterator[tuple[Longs, list[int]]]:
    """Group consecutive queries with the same candidates, to read the vectors once."""
    for _, same in groupby(range(len(candidates)), key=lambda i: id(candidates[i])):
        positions = list(same)
        rows = candidates[positions[0]]
        step = max(1, _BLOCK_SCORES // max(1, len(rows)))
        yield from ((rows, positions[start : start + step]) for start in range(0, len(positions), step))


def _rank_rows(transaction: Transaction, snapshot: Snapshot, scored: ScoredRows, k: int) -> list[Hit]:
    best = top_k_with_ties(scored.scores, k)
    return rank(snapshot.ids_of(transaction, scored.rows[best]), scored.scores[best], k)


def _select_rows(transaction: Transaction, snapshot: Snapshot, scored: ScoredRows, k: int) -> ScoredRows:
    best = top_k_with_ties(scored.scores, k)
    if len(best) <= k:
        return scored._replace(rows=scored.rows[best], scores=scored.scores[best])
    hits = _rank_rows(transaction, snapshot, scored, k)
    rows = snapshot.rows_of_ids(transaction, [hit.id for hit in hits])
    return scored._replace(rows=rows, scores=np.array([hit.score for hit in hits], np.float32))


def _maxsim_candidates(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
    if len(allowed) <= k:
        return [allowed] * len(queries)
    step = max(1, min(_BLOCK_QUERIES, _BLOCK_SCORES // len(allowed)))
    starts = range(0, len(queries), step)
    blocks = (_take_queries(queries, range(start, min(start + step, len(queries)))) for start in starts)
    return [rows for block in blocks for rows in _maxsim_candidates_block(snapshot, block, k, allowed)]


def _maxsim_candidates_block(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> Iterator[Longs]:
    approximate = _approximate_scores(snapshot, queries, allowed)
    for i in range(len(queries)):
        best = allowed
        if approximate is not None and np.isfinite(approximate.error_bound[i]):
            best = allowed[top_k_with_ties(approximate.scores[i], k, 2 * approximate.error_bound[i])]
        # Queries with too many candidates share the same rows, so that these are scored together.
        yield best if _MIN_REDUCTION * len(best) < len(allowed) else allowed


def _approximate_scores(snapshot: Snapshot, queries: Encoded, rows: Longs) -> ApproximateScores | None:
    if snapshot.error_bounds is None:
        return None
    located, codec = snapshot.locate_multi_vectors(rows), snapshot.codecs["multi_vector"]
    return approximate_maxsim(located, snapshot.error_bounds, codec, queries.multi_vector)


def _dense_candidates(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
    if len(allowed) <= max(k, _BLOCK_ROWS):
        return [allowed] * len(queries)
    if len(queries) <= _FEW_QUERIES:
        return [_dense_candidates_single(snapshot, query, k, allowed) for query in queries.dense]
    step = max(1, _BLOCK_SCORES // snapshot.count)
    blocks = (queries.dense[start : start + step] for start in range(0, len(queries), step))
    return [rows for block in blocks for rows in _dense_candidates_block(snapshot, block, k, allowed)]


def _dense_candidates_single(snapshot: Snapshot, query: Array, k: int, allowed: Longs) -> Longs:
    """Use the int8 copies; the vectors if a copy is missing or too many scores are similar."""
    segments = [live for live in snapshot.segments("dense") if len(live.segment_rows)]
    expected = _MIN_REDUCTION * int(k) * snapshot.count // len(allowed)  # int: a numpy integer could overflow
    for count in (expected, _MIN_REDUCTION * expected):
        if count > len(allowed) // _MIN_REDUCTION or not all(live.segment.has_int8_copy for live in segments):
            break
        found, min_score = NO_CANDIDATES, -np.inf
        for live in segments:
            found = found.join(_find_allowed(snapshot, live, query, count, min_score, allowed))
            min_score = found.kth_lower(k)
            found = found.take(np.greater_equal(found.upper, min_score))
        if found.others_upper < min_score:
            return np.sort(found.rows)
    return _dense_candidates_block(snapshot, query[None], k, allowed)[0]


def _find_allowed(
    snapshot: Snapshot, live: LiveRows, query: Array, count: int, min_score: float, allowed: Longs
) -> BoundedCandidates:
    """Find candidates of a segment among the allowed rows of the snapshot."""
    found = find_candidates(live.segment.arrays, query, count, min_score)
    found = found._replace(rows=live.to_snapshot_rows(found.rows))
    if len(allowed) == snapshot.count and live.span is not None:
        return found
    return found.take(_are_allowed(snapshot, found.rows, allowed))


def _are_allowed(snapshot: Snapshot, rows: Longs, allowed: Longs) -> Mask:
    if len(allowed) == snapshot.count:
        return rows >= 0
    positions = np.minimum(np.searchsorted(allowed, rows), len(allowed) - 1)
    return np.equal(allowed[positions], rows)


def _dense_candidates_block(snapshot: Snapshot, queries: Array, k: int, allowed: Longs) -> list[Longs]:
    is_allowed = np.zeros(snapshot.count, bool)
    is_allowed[allowed] = True
    scores = np.zeros((len(queries), snapshot.count), np.float32)
    max_norm = 0.0
    for segment, segment_rows, rows, span in snapshot.segments("dense"):
        max_norm = max(max_norm, segment.max_norm)
        if span is not None and is_allowed[span].all():
            _write_all_scores(segment, queries, scores[:, span])
        else:
            _write_scores(segment, segment_rows[is_allowed[rows]], rows[is_allowed[rows]], queries, scores)
    # Each of the two inner products is within dim · ε/2 · |q| · |p| of the true one (Higham 2002, section 3.1).
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    tolerances = 2 * queries.shape[1] * (_EPSILON * max_norm * norms + _TINY)
    return [allowed[top_k_with_ties(_take_allowed(scores[i], allowed), k, tolerances[i])] for i in range(len(queries))]


def _take_allowed(scores: Array, allowed: Longs) -> Array:
    return scores if len(allowed) == len(scores) else scores[allowed]


def _write_all_scores(segment: Segment, queries: Array, scores: Array) -> None:
    """Write the scores of all rows of a segment, shape (queries, rows)."""
    values = segment.arrays["values"]
    for start in range(0, len(values), _BLOCK_SCANNED_ROWS):
        block = slice(start, start + _BLOCK_SCANNED_ROWS)
        scores[:, block] = _inner_products(queries, values[block])


def _write_scores(segment: Segment, segment_rows: Longs, rows: Longs, queries: Array, scores: Array) -> None:
    """Write the scores of ascending rows of a segment to those rows of the snapshot."""
    segment.arrays.verify("values", segment_rows, segment_rows + 1)
    values = segment.arrays.unverified("values")
    for start in range(0, len(values), _BLOCK_SCANNED_ROWS):
        block = values[start : start + _BLOCK_SCANNED_ROWS]
        begin, end = np.searchsorted(segment_rows, [start, start + len(block)])
        source, target = segment_rows[begin:end] - start, rows[begin:end]
        if 4 * len(source) > len(block):  # then scoring all is faster than copying some
            scores[:, target] = _inner_products(queries, block)[:, source]
        elif len(source):
            scores[:, target] = _inner_products(queries, block[source])


def _inner_products(queries: Array, passages: Array) -> Array:
    # A matrix product reads the passages once for all queries, but is slow to start if the cores are busy.
    return queries @ passages.T if len(queries) > _FEW_QUERIES else dense_scores(queries, passages)


def _token_scores(snapshot: Snapshot, query: scipy.sparse.csr_array) -> Array:
    """Return the sparse scores of all rows, by the same sums in the same order as the kernel."""
    scores = np.zeros(snapshot.count, np.float32)
    for segment, segment_rows, rows, span in snapshot.segments("sparse"):
        if span is not None:
            add_token_scores(segment, query, scores[span])
        else:
            segment_scores = np.zeros(len(segment), np.float32)
            add_token_scores(segment, query, segment_scores)
            scores[rows] = segment_scores[segment_rows]
    return scores


_KERNELS: Mapping[Mode, Callable[[Snapshot, Encoded, Longs], Array]] = {
    "dense": _dense_kernel,
    "sparse": _sparse_kernel,
    "multi_vector": _maxsim_kernel,
}

"""Search over a snapshot: quick scores propose, the shared kernel of each mode decides.

A quick score may be off by its rounding, so that all whose quick score is within the rounding of the k-th are proposed;
the kernel's scores of those are then what an exact scan gives, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from m3_integrations.core.encoded import Array, Encoded, Mode, dense_scores, score_mode
from m3_integrations.index.base import Hit
from m3_integrations.index.catalogue import Transaction
from m3_integrations.index.ranking import contenders, rank
from m3_integrations.index.segments import Longs, Segment, token_scores
from m3_integrations.index.snapshot import Snapshot

_EPSILON = float(np.finfo(np.float32).eps)
_SCORES_AT_ONCE = 1 << 25
_SCANNED_AT_ONCE = 1 << 16
_FEW_QUERIES = 4
_ROWS_AT_ONCE: Mapping[Mode, int] = {"dense": 4096, "sparse": 4096, "multi_vector": 256}


def propose(snapshot: Snapshot, mode: Mode, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
    """For each query rows among which are the best k of the allowed ones."""
    return _PROPOSE[mode](snapshot, queries, k, allowed)


def decide(transaction: Transaction, snapshot: Snapshot, mode: Mode, query: Encoded, k: int, rows: Longs) -> list[Hit]:
    """The best k of these rows by their exact scores."""
    scores = exact_scores(snapshot, mode, query, rows)
    if mode == "sparse":
        rows, scores = rows[scores > 0], scores[scores > 0]
    best = contenders(scores, k)
    return rank(transaction.ids_of(snapshot.slots[rows[best]].tolist()), scores[best], k)


def exact_scores(snapshot: Snapshot, mode: Mode, query: Encoded, rows: Longs) -> Array:
    """(rows,) by the kernel that every index shares."""
    step = _ROWS_AT_ONCE[mode]
    blocks = (rows[start : start + step] for start in range(0, len(rows), step))
    scores = [score_mode(mode, query, snapshot.vectors(mode, block))[0] for block in blocks]
    return np.concatenate([np.zeros(0, np.float32), *scores])


def _propose_dense(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
    if len(allowed) <= max(k, _ROWS_AT_ONCE["dense"]):
        return [allowed] * len(queries)
    step = max(1, _SCORES_AT_ONCE // snapshot.count)
    blocks = (queries.dense[start : start + step] for start in range(0, len(queries), step))
    return [rows for block in blocks for rows in _propose_dense_block(snapshot, block, k, allowed)]


def _propose_dense_block(snapshot: Snapshot, queries: Array, k: int, allowed: Longs) -> list[Longs]:
    wanted = np.zeros(snapshot.count, bool)
    wanted[allowed] = True
    scores = np.zeros((len(queries), snapshot.count), np.float32)
    longest = 0.0
    for segment, mine, rows in snapshot.segments("dense"):
        longest = max(longest, float(segment.arrays["longest"].max(initial=0)))
        _inner_products(segment, mine[wanted[rows]], rows[wanted[rows]], queries, scores)
    # Each of the two inner products is within dim · ε/2 · |q| · |p| of the true one (Higham 2002, section 3.1).
    slack = 2 * queries.shape[1] * _EPSILON * longest * np.linalg.norm(queries, axis=1)
    return [allowed[contenders(scores[i, allowed], k, slack[i])] for i in range(len(queries))]


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


def _propose_sparse(snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
    return [_propose_sparse_one(snapshot, queries.take([i]), k, allowed) for i in range(len(queries))]


def _propose_sparse_one(snapshot: Snapshot, query: Encoded, k: int, allowed: Longs) -> Longs:
    scores = np.zeros(snapshot.count, np.float32)
    for segment, mine, rows in snapshot.segments("sparse"):
        scores[rows] = token_scores(segment, query.sparse)[mine]
    rows = allowed[scores[allowed] > 0]
    # Sums of nothing but positive terms: each is within terms · ε/2 of itself.
    slack = 2 * (query.sparse.nnz + 1) * _EPSILON * float(scores.max(initial=0))
    return rows[contenders(scores[rows], k, slack)]


def _propose_all(_: Snapshot, queries: Encoded, __: int, allowed: Longs) -> list[Longs]:
    return [allowed] * len(queries)


_PROPOSE: Mapping[Mode, Callable[[Snapshot, Encoded, int, Longs], list[Longs]]] = {
    "dense": _propose_dense,
    "sparse": _propose_sparse,
    "multi_vector": _propose_all,
}

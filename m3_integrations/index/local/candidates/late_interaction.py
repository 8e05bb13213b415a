"""First stage of late interaction: centroids with inverted lists of passages (PLAID, arXiv 2205.09707).

Each multi-vector is estimated by the mean of those with the same centroid, which lists their passages. A query vector
probes the lists of the best means: the best one with a passage gives the passage's similarity, and passages in none of
them get that of the next mean (as in WARP, arXiv 2501.17788). The passages with the highest sums are candidates, which
are scored exactly afterwards.

The lists are derived from the segments, like the HNSW graph, and saved with the centroids. Vectors that are written
later are added to the lists of the same centroids; when most vectors are newer, centroids are chosen again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array, Arrays, Encoded, Ints, MultiVectors
from m3_integrations.core.files import sync_folder
from m3_integrations.core.forking import ForkSafeLock
from m3_integrations.core.scoring import in_parts
from m3_integrations.index.local.candidates.clustering import Centroids, find_centroids
from m3_integrations.index.local.candidates.derived_files import (
    array_types,
    current_rows,
    derived_files,
    load_derived,
    save_derived,
)
from m3_integrations.index.local.metadata_columns import Mask
from m3_integrations.index.local.search import exact_scores, generate_candidates, single_query
from m3_integrations.index.local.segments import Longs
from m3_integrations.index.local.snapshot import Snapshot
from m3_integrations.index.top_k import top_k_with_ties

_PROBES = 128
_MIN_CANDIDATES = 4000
_CANDIDATES_PER_HIT = 40
_MIN_SCORED = 500  # candidates that are scored to estimate the errors of approximate scores
_DEVIATIONS = 3.0  # standard deviations of these errors within which the others may be
_MIN_REDUCTION = 4  # candidates are used if they are fewer than the rows by this factor
# Centroids of n vectors: as many as PLAID's 16 sqrt(n) for 160,000, and fewer for more, since a query reads them all.
_CENTROIDS, _CENTROIDS_EXPONENT = 175, 0.3
_MIN_VECTORS_PER_CENTROID = 4
_SAMPLE_PER_CENTROID = 16
_MAX_SAMPLE_VALUES = 1 << 26
_BLOCK_VECTORS = 1 << 16
_MAX_UNLISTED = 1 / 64
_MIN_UNLISTED = 256
_MAX_GROWTH = 4
_TYPES = {
    **{"slots": ("<i8", 1), "trained": ("<i8", 1), "coarse_centroids": ("<f4", 2), "cells": ("<i8", 1)},
    **{"centroids": ("<f4", 2), "lengths": ("<f4", 1), "list_offsets": ("<i8", 1), "listed": ("<i4", 1)},
}


class CentroidLists(NamedTuple):
    """Inverted lists over the multi-vectors of one generation.

    Attributes:
        generation: The generation.
        trained: Number of passages among which the centroids were chosen.
        slots: Slot of each listed passage, shape (n,).
        centroids: The centroids.
        lengths: Mean inner product of each centroid with its vectors, shape (centroids,): times the centroid, it
            estimates each of them.
        offsets: Start of the list of each centroid, shape (centroids + 1,).
        listed: Positions in `slots`, ascending in each list, without repetition.
    """

    generation: int
    trained: int
    slots: Longs
    centroids: Centroids
    lengths: Array
    offsets: Longs
    listed: npt.NDArray[np.int32]

    def search(self, query: Array, count: int, is_allowed: Mask | None) -> tuple[Ints, Array]:
        """Find the passages with the highest approximate scores.

        Args:
            query: Vectors of one query, shape (vectors, dim).
            count: Number of passages.
            is_allowed: Which passages are allowed, shape (n,); None allows all.

        Returns:
            Positions in `slots` and their approximate scores, best first; fewer than `count` only if fewer are allowed.
        """
        scores = np.zeros(len(self.slots), np.float32)
        similarities = np.empty(len(self.slots), np.float32)
        for by_centroid in (query @ self.centroids.fine.T) * self.lengths:
            self._write_similarities(by_centroid, similarities)
            scores += similarities
        scores /= len(query)
        allowed = np.arange(len(scores)) if is_allowed is None else np.flatnonzero(is_allowed)
        found = allowed[_highest(scores[allowed], count)]
        found = found[np.argsort(-scores[found], kind="stable")]
        return found, scores[found]

    def _write_similarities(self, by_centroid: Array, similarities: Array) -> None:
        """Write the similarity of one query vector to each passage, given those to the centroids."""
        probed = _highest(by_centroid, _PROBES + 1)
        probed = probed[np.argsort(by_centroid[probed], kind="stable")]
        similarities.fill(by_centroid[probed[0]])
        begins, ends = self.offsets[probed], self.offsets[probed + 1]
        lists = [self.listed[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        # In ascending order of similarity: of repeated positions, numpy keeps the last value.
        similarities[np.concatenate(lists)] = np.repeat(by_centroid[probed], ends - begins)


class _ListsView(NamedTuple):
    """Lists seen from a generation; rows: snapshot row of each listed passage, -1 if outdated."""

    lists: CentroidLists
    generation: int
    rows: Longs

    @classmethod
    def from_snapshot(cls, lists: CentroidLists, snapshot: Snapshot) -> _ListsView:
        rows = current_rows(snapshot, "multi_vector", lists.slots, lists.generation)
        return cls(lists, snapshot.generation, rows)

    @property
    def current_count(self) -> int:
        return int(np.count_nonzero(self.rows >= 0))

    def unlisted(self, snapshot: Snapshot) -> Longs:
        """Return the live rows that are not listed."""
        is_unlisted = np.append(snapshot.live, False)  # the last element is for row -1
        is_unlisted[self.rows] = False
        return np.flatnonzero(is_unlisted)


class _Entries(NamedTuple):
    """Assignments of rows to centroids.

    Attributes:
        labels: A centroid of a row, shape (entries,); a row has an entry for each of its centroids.
        positions: Position of the row, ascending, shape (entries,).
        mean_similarities: Mean inner product of each centroid with its vectors.
    """

    labels: Ints
    positions: Ints
    mean_similarities: Array


class LateInteractionSearcher:
    """Generates candidates of late interaction by centroid lists.

    A search that finds the lists outdated loads, extends or builds them; concurrent searches scan all rows in the
    meantime. Few rows written after the lists were built are scanned.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._build_lock = ForkSafeLock()
        self._view: _ListsView | None = None

    def generate_candidates(self, snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
        """Find rows with nearly all of the top k of the allowed rows.

        Args:
            snapshot: The state to search.
            queries: Multi-vector queries.
            k: Number of hits.
            allowed: Rows to search, ascending.

        Returns:
            Candidate rows per query.
        """
        count = min(max(_MIN_CANDIDATES, _CANDIDATES_PER_HIT * k), len(allowed) // _MIN_REDUCTION)
        view = self._current_view(snapshot) if count >= k else None
        if view is None:
            return generate_candidates(snapshot, "multi_vector", queries, k, allowed)
        is_allowed = np.zeros(snapshot.count + 1, bool)  # the last element is for row -1
        is_allowed[allowed] = True
        is_listed = is_allowed[view.rows]
        is_allowed[view.rows] = False
        others = np.flatnonzero(is_allowed)
        mask = None if is_listed.all() else is_listed
        found = []
        for i, query in enumerate(queries.multi_vector):
            single, rows = single_query(queries, i), allowed
            if len(query):
                with np.errstate(over="ignore", invalid="ignore"):
                    positions, approximate = view.lists.search(query, count, mask)
                    listed = _possible_rows(snapshot, single, k, view.rows[positions], approximate)
                rows = np.sort(np.concatenate([listed, others]))
            found += generate_candidates(snapshot, "multi_vector", single, k, rows)
        return found

    def remove_saved(self) -> None:
        """Remove all saved lists, and sync the folder: a centroid may be a single vector, of any passage so far."""
        for file in derived_files(self._folder, "lists"):
            file.path.unlink(missing_ok=True)
        self.reset()
        sync_folder(self._folder)

    def reset(self) -> None:
        """Release the lists."""
        self._view = None

    def _current_view(self, snapshot: Snapshot) -> _ListsView | None:
        view = self._view
        if view is not None and view.generation == snapshot.generation:
            return view
        if not self._build_lock.acquire(blocking=False):
            return None
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                self._view = self._updated_view(view, snapshot)
            return self._view
        finally:
            self._build_lock.release()

    def _updated_view(self, view: _ListsView | None, snapshot: Snapshot) -> _ListsView:
        saved = max((file.generation for file in derived_files(self._folder, "lists")), default=-1)
        known = view.lists if view and view.lists.generation >= saved else load(self._folder, snapshot)
        if known is None or known.generation > snapshot.generation:
            return self._saved(build(snapshot), snapshot)
        updated = _ListsView.from_snapshot(known, snapshot)
        live, current = snapshot.live_count, updated.current_count
        has_few_outdated = len(updated.rows) - current <= max(_MIN_UNLISTED, live)
        if has_few_outdated and live - current <= max(_MIN_UNLISTED, _MAX_UNLISTED * live):
            return updated
        # A purge removes the file, since a centroid may be a single vector: then it is not saved again.
        if saved < 0 or live > _MAX_GROWTH * min(known.trained, current):
            return self._saved(build(snapshot), snapshot)
        return self._saved(_extend(updated, snapshot), snapshot)

    def _saved(self, lists: CentroidLists, snapshot: Snapshot) -> _ListsView:
        with suppress(OSError):  # if they cannot be saved, the next process builds them again
            save_derived(self._folder, "multi_vector", "lists", lists.generation, _to_arrays(lists))
        return _ListsView.from_snapshot(lists, snapshot)


def _possible_rows(snapshot: Snapshot, query: Encoded, k: int, rows: Longs, approximate: Array) -> Longs:
    """Drop the rows that are hardly in the top k, judging by the errors of the first rows.

    Args:
        snapshot: The state to search.
        query: One query.
        k: Number of hits.
        rows: Rows, best first by their approximate scores.
        approximate: Approximate scores of the rows.
    """
    first = min(max(_MIN_SCORED, 2 * k), len(rows))
    scores = exact_scores(snapshot, "multi_vector", query, rows[:first])[0]
    errors = scores - approximate[:first]
    best = top_k_with_ties(scores, k)
    needed = scores[best].min() - errors.mean() - _DEVIATIONS * errors.std()
    return np.concatenate([rows[best], rows[first:][~(approximate[first:] < needed)]])


def build(snapshot: Snapshot) -> CentroidLists:
    """Choose centroids among the vectors of a snapshot, and list all live rows."""
    rows, random = np.flatnonzero(snapshot.live), np.random.default_rng(0)
    total = int(snapshot.locate_multi_vectors(rows).counts.sum())
    count = int(min(_CENTROIDS * total**_CENTROIDS_EXPONENT, total / _MIN_VECTORS_PER_CENTROID))
    sample = _sample(snapshot, rows, _SAMPLE_PER_CENTROID * count / max(1, total), random)
    centroids = find_centroids(sample, count, random)
    entries = _assign_rows(snapshot, rows, centroids)
    lists = _to_lists(entries.labels, entries.positions, len(centroids.fine))
    return CentroidLists(
        snapshot.generation, len(rows), snapshot.slots[rows], centroids, entries.mean_similarities, *lists
    )


def load(folder: Path, snapshot: Snapshot) -> CentroidLists | None:
    """Load the newest valid lists up to the generation of a snapshot; None if there are none."""
    width = snapshot.widths["multi_vector"]
    return load_derived(folder, "lists", snapshot.generation, lambda own, arrays: _from_arrays(own, arrays, width))


def _extend(view: _ListsView, snapshot: Snapshot) -> CentroidLists:
    """Drop the rows that are outdated, and list those that are not listed."""
    known, kept, added = view.lists, view.rows >= 0, view.unlisted(snapshot)
    positions = np.where(kept, np.cumsum(kept) - 1, -1)[known.listed]
    labels = np.repeat(np.arange(len(known.offsets) - 1), np.diff(known.offsets))
    new = _assign_rows(snapshot, added, known.centroids)
    labels = np.concatenate([labels[positions >= 0], new.labels])
    positions = np.concatenate([positions[positions >= 0], new.positions + np.count_nonzero(kept)])
    slots = np.concatenate([known.slots[kept], snapshot.slots[added]])
    lists = _to_lists(labels, positions, len(known.centroids.fine))
    return CentroidLists(snapshot.generation, known.trained, slots, known.centroids, known.lengths, *lists)


def _sample(snapshot: Snapshot, rows: Longs, share: float, random: np.random.Generator) -> Array:
    """Return the vectors of a random share of rows."""
    width = snapshot.widths["multi_vector"]
    chosen = np.sort(random.permutation(rows)[: max(1, round(min(1.0, share) * len(rows)))])
    counts = snapshot.locate_multi_vectors(chosen).counts
    fitting = np.searchsorted(np.cumsum(counts), _MAX_SAMPLE_VALUES // max(1, width))
    vectors = snapshot.vectors("multi_vector", chosen[: max(1, fitting)]).multi_vector.values
    return vectors if len(vectors) else np.zeros((1, width), np.float32)


def _assign_rows(snapshot: Snapshot, rows: Longs, centroids: Centroids) -> _Entries:
    """Assign the vectors of rows to centroids."""
    count = len(centroids.fine)
    labels, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    sums, sizes = np.zeros(count), np.zeros(count)
    for part in in_parts(snapshot.locate_multi_vectors(rows).counts, _BLOCK_VECTORS) if len(rows) else []:
        vectors: MultiVectors = snapshot.vectors("multi_vector", rows[part]).multi_vector
        assigned, similarities = centroids.assign(vectors.values)
        sums += np.bincount(assigned, similarities, minlength=count)
        sizes += np.bincount(assigned, minlength=count)
        pairs = np.unique(np.repeat(np.arange(len(part)), vectors.counts) * count + assigned)
        labels.append(pairs % count)
        positions.append(part[pairs // count])
    means = np.nan_to_num(sums / np.maximum(1, sizes)).astype(np.float32)
    return _Entries(np.concatenate(labels), np.concatenate(positions), means)


def _to_lists(labels: Ints, positions: Ints, count: int) -> tuple[Longs, npt.NDArray[np.int32]]:
    """Group positions by label; ascending positions stay so."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=count))])
    return offsets, positions[np.argsort(labels, kind="stable")].astype(np.int32)


def _highest(scores: Array, count: int) -> Ints:
    """Return the positions of the highest scores, in no order."""
    if count >= len(scores):
        return np.arange(len(scores))
    return np.argpartition(scores, len(scores) - count)[len(scores) - count :]


def _to_arrays(lists: CentroidLists) -> Arrays:
    return {
        "slots": lists.slots,
        "trained": np.array([lists.trained], np.int64),
        "coarse_centroids": lists.centroids.coarse,
        "cells": lists.centroids.starts,
        "centroids": lists.centroids.fine,
        "lengths": lists.lengths,
        "list_offsets": lists.offsets,
        "listed": lists.listed,
    }


def _from_arrays(generation: int, arrays: Mapping[str, npt.NDArray[Any]], width: int) -> CentroidLists:
    """Raise ValueError for arrays of no valid lists."""
    if array_types(arrays) != _TYPES:
        raise ValueError(f"arrays of {array_types(arrays)}")
    slots, cells, offsets, listed = (arrays[name] for name in ("slots", "cells", "list_offsets", "listed"))
    (trained,), lengths = arrays["trained"].tolist(), arrays["lengths"]
    centroids = Centroids(arrays["coarse_centroids"], cells, arrays["centroids"])
    if any(each.shape[1] != width or not np.isfinite(each).all() for each in (centroids.coarse, centroids.fine)):
        raise ValueError("invalid centroids")
    if len(lengths) != len(centroids.fine) or not np.isfinite(lengths).all():
        raise ValueError("invalid lengths of means")
    if not _are_offsets(cells, len(centroids.coarse), len(centroids.fine), 1):
        raise ValueError("invalid cells")
    if not _are_offsets(offsets, len(centroids.fine), len(listed), 0):
        raise ValueError("invalid offsets of lists")
    if len(listed) and not 0 <= listed.min() <= listed.max() < len(slots):
        raise ValueError("an unknown passage in a list")
    return CentroidLists(generation, trained, slots, centroids, lengths, offsets, listed)


def _are_offsets(offsets: Longs, count: int, total: int, smallest: int) -> bool:
    is_complete = 0 < len(offsets) == count + 1 and offsets[0] == 0 and offsets[-1] == total
    return bool(is_complete and (np.diff(offsets) >= smallest).all())

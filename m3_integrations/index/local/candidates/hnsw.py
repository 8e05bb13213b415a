"""HNSW graph (arXiv 1603.09320, FAISS): build, save, load, validate, search.

The graph is derived from the segments. The name of its file contains its generation and its checksum; a graph that is
missing or invalid is built again. FAISS's own file format is not used, because its reader does not validate what it
reads. Candidates from the graph are scored exactly afterwards, from the segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array, Arrays, Encoded
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.core.files import sync_folder
from m3_integrations.core.forking import ForkSafeLock
from m3_integrations.index.local.array_file import map_arrays
from m3_integrations.index.local.candidates.derived_files import (
    array_types,
    current_rows,
    derived_files,
    load_derived,
    save_derived,
)
from m3_integrations.index.local.search import generate_candidates
from m3_integrations.index.local.segments import Longs
from m3_integrations.index.local.snapshot import Snapshot
from m3_integrations.index.quantization.dense_int8 import load_faiss

_M = 16
_EF_CONSTRUCTION = 80
_EF_SEARCH = 256
_MAX_EF_SEARCH = 4096
_MIN_COVERAGE = 0.75
_BLOCK_ROWS = 1 << 14
_TYPES = {"slots": ("<i8", 1), "levels": ("<i4", 1), "neighbours": ("<i4", 1), "entry": ("<i8", 1), "codes": ("|u1", 1)}


class HnswGraph(NamedTuple):
    """A graph over the dense vectors of one generation.

    Attributes:
        generation: The generation.
        slots: Slot of each node, shape (nodes,).
        index: FAISS's index.
    """

    generation: int
    slots: Longs
    index: Any

    def search(self, queries: Array, k: int, allowed: npt.NDArray[np.bool_]) -> Longs:
        """Find the approximate top k among the allowed nodes.

        Args:
            queries: Shape (queries, dim).
            k: Number of nodes per query.
            allowed: Which nodes are allowed, shape (nodes,).

        Returns:
            Nodes, shape (queries, k); -1 where fewer were found.
        """
        faiss, bitmap = load_faiss(), np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(bitmap))
        ef = max(_EF_SEARCH, 2 * k) * len(allowed) / max(1, int(np.count_nonzero(allowed)))
        search = faiss.SearchParametersHNSW(sel=selector, efSearch=max(2 * k, min(_MAX_EF_SEARCH, int(ef))))
        nodes: Longs = self.index.search(np.ascontiguousarray(queries), k, params=search)[1]
        return nodes


class _GraphView(NamedTuple):
    """A graph seen from a generation; rows: snapshot row of each node, -1 if outdated."""

    graph: HnswGraph
    generation: int
    rows: Longs

    @classmethod
    def from_snapshot(cls, graph: HnswGraph, snapshot: Snapshot) -> _GraphView:
        return cls(graph, snapshot.generation, current_rows(snapshot, "dense", graph.slots, graph.generation))

    def covers(self, snapshot: Snapshot) -> bool:
        return bool(np.count_nonzero(self.rows >= 0) >= _MIN_COVERAGE * snapshot.live_count)


class HnswSearcher:
    """Generates dense candidates by a graph.

    A search that finds the graph outdated loads or builds another; concurrent searches scan all rows in the meantime.
    Rows written after the graph was built are always scanned.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._build_lock = ForkSafeLock()
        self._view: _GraphView | None = None

    def generate_candidates(self, snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
        """Find rows with most of the top k of the allowed rows.

        Args:
            snapshot: The state to search.
            queries: Dense queries.
            k: Number of hits.
            allowed: Rows to search, ascending.

        Returns:
            Candidate rows per query.
        """
        view = self._current_view(snapshot)
        if view is None or 2 * k > len(allowed):
            return generate_candidates(snapshot, "dense", queries, k, allowed)
        is_allowed = np.zeros(snapshot.count + 1, bool)  # the last element is for row -1
        is_allowed[allowed] = True
        nodes = view.graph.search(queries.dense, 2 * k, is_allowed[view.rows])
        is_allowed[view.rows] = False
        others = generate_candidates(snapshot, "dense", queries, k, np.flatnonzero(is_allowed))
        return [
            np.concatenate([view.rows[found[found >= 0]], rest])
            if np.count_nonzero(found >= 0) >= min(k, len(allowed))
            else generate_candidates(snapshot, "dense", queries.take([i]), k, allowed)[0]
            for i, (found, rest) in enumerate(zip(nodes, others, strict=True))
        ]

    def remove_outdated(self, snapshot: Snapshot) -> None:
        """Remove saved graphs with a vector that is not current, and sync the folder: a graph copies its vectors."""
        for file in derived_files(self._folder, "graph"):
            try:
                slots = map_arrays(file.path, file.path.stat().st_size)["slots"]
                is_current = bool((current_rows(snapshot, "dense", slots, file.generation) >= 0).all())
            except (OSError, DamagedFolder, KeyError, ValueError, TypeError):
                is_current = False  # a damaged one is of no use
            if not is_current:
                file.path.unlink(missing_ok=True)
        sync_folder(self._folder)

    def reset(self) -> None:
        """Release the graph."""
        self._view = None

    def _current_view(self, snapshot: Snapshot) -> _GraphView | None:
        view = self._view
        if view is not None and view.generation == snapshot.generation:
            return view
        if not self._build_lock.acquire(blocking=False):
            return None
        try:
            self._view = self._updated_view(view, snapshot)
            return self._view
        finally:
            self._build_lock.release()

    def _updated_view(self, view: _GraphView | None, snapshot: Snapshot) -> _GraphView:
        known = view.graph if view else load(self._folder, snapshot.generation, snapshot.widths["dense"])
        if known is not None and known.generation <= snapshot.generation:
            updated = _GraphView.from_snapshot(known, snapshot)
            if updated.covers(snapshot):
                return updated
        graph = _build_from_snapshot(snapshot)
        with suppress(OSError):  # if the graph cannot be saved, the next process builds it again
            save(self._folder, graph)
        return _GraphView.from_snapshot(graph, snapshot)


def build(generation: int, slots: Longs, blocks: Iterable[Array], dim: int) -> HnswGraph:
    """Build a graph.

    Args:
        generation: Generation of the vectors.
        slots: Slot of each vector.
        blocks: Vectors in the order of `slots`, as arrays of shape (block, dim).
        dim: Number of dimensions.
    """
    index = _empty_index(dim)
    index.hnsw.efConstruction = _EF_CONSTRUCTION
    for block in blocks:
        index.add(block)
    return HnswGraph(generation, slots, index)


def save(folder: Path, graph: HnswGraph) -> None:
    """Save a graph atomically, replacing all others in the folder."""
    save_derived(folder, "dense", "graph", graph.generation, _to_arrays(graph))


def load(folder: Path, generation: int, dim: int) -> HnswGraph | None:
    """Load the newest valid graph up to a generation; None if there is none."""
    return load_derived(folder, "graph", generation, lambda own, arrays: _from_arrays(own, arrays, dim))


def _build_from_snapshot(snapshot: Snapshot) -> HnswGraph:
    rows = np.flatnonzero(snapshot.live)
    starts = range(0, len(rows), _BLOCK_ROWS)
    blocks = (snapshot.vectors("dense", rows[start : start + _BLOCK_ROWS]).dense for start in starts)
    return build(snapshot.generation, snapshot.slots[rows], blocks, snapshot.widths["dense"])


def _empty_index(dim: int) -> Any:
    # bfloat16 has the range of float32: nudged vectors may have any norm.
    faiss = load_faiss()
    return faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_bf16, _M, faiss.METRIC_INNER_PRODUCT)


def _to_arrays(graph: HnswGraph) -> Arrays:
    faiss, hnsw = load_faiss(), graph.index.hnsw
    return {
        "slots": graph.slots,
        "levels": faiss.vector_to_array(hnsw.levels),
        "neighbours": faiss.vector_to_array(hnsw.neighbors),
        "entry": np.array([hnsw.entry_point], np.int64),
        "codes": faiss.vector_to_array(faiss.downcast_index(graph.index.storage).codes),
    }


def _from_arrays(generation: int, arrays: Mapping[str, npt.NDArray[Any]], dim: int) -> HnswGraph:
    """Raise ValueError for arrays of no valid graph: FAISS does not check them."""
    if array_types(arrays) != _TYPES:
        raise ValueError(f"arrays of {array_types(arrays)}")
    faiss, index = load_faiss(), _empty_index(dim)
    hnsw = index.hnsw
    storage = faiss.downcast_index(index.storage)
    slots, levels, neighbors, codes = (arrays[name] for name in ("slots", "levels", "neighbours", "codes"))
    (entry,) = arrays["entry"].tolist()
    starts = faiss.vector_to_array(hnsw.cum_nneighbor_per_level).astype(np.int64)
    _check_graph(slots, levels, neighbors, entry, starts)
    if codes.nbytes != len(slots) * storage.code_size:
        raise ValueError("number of codes differs from number of vectors")
    faiss.copy_array_to_vector(np.ascontiguousarray(levels), hnsw.levels)
    faiss.copy_array_to_vector(_offsets(levels, starts).astype(np.uint64), hnsw.offsets)
    _fill_vector(hnsw.neighbors, neighbors)
    _fill_vector(storage.codes, codes)
    hnsw.entry_point, hnsw.max_level = entry, int(levels.max()) - 1
    storage.ntotal = index.ntotal = len(slots)
    return HnswGraph(generation, np.array(slots), index)


def _check_graph(slots: Longs, levels: Longs, neighbors: Longs, entry: int, starts: Longs) -> None:
    nodes = len(slots)
    if not 0 < nodes == len(levels) or not 1 <= levels.min() <= levels.max() < len(starts):
        raise ValueError("invalid levels")
    offsets = _offsets(levels, starts)
    if len(neighbors) != offsets[-1] or not -1 <= neighbors.min() <= neighbors.max() < nodes:
        raise ValueError("invalid neighbors")
    if not 0 <= entry < nodes or levels[entry] != levels.max():
        raise ValueError("invalid entry point")
    for level in range(1, int(levels.max())):
        on_level = np.flatnonzero(levels > level)
        linked = neighbors[offsets[on_level, None] + np.arange(starts[level], starts[level + 1])]
        if np.any(levels[linked[linked >= 0]] <= level):
            raise ValueError("a link to a node that is not on the level")


def _offsets(levels: Longs, starts: Longs) -> Longs:
    """Return offsets of each node's neighbors, shape (nodes + 1,)."""
    return np.concatenate([[0], np.cumsum(starts[levels])])


def _fill_vector(vector: Any, values: npt.NDArray[Any]) -> None:
    vector.resize(len(values))
    load_faiss().rev_swig_ptr(vector.data(), len(values))[:] = values

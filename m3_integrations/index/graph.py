"""A graph over dense vectors (HNSW, arXiv 1603.09320, by FAISS), which proposes where scanning all is too slow.

The graph is derived from the segments: its file says in its name of which generation it is and what its checksum is,
and one that does not hold, or that is not there, is built again. FAISS's own file format is not used: its reader trusts
what it reads. What the graph proposes is scored exactly by others, from the segments.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faiss as typed_faiss
import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.index.arrays import Arrays, checksum, map_arrays, write_arrays
from m3_integrations.index.segments import Longs

faiss: Any = typed_faiss  # its own hints lack what SWIG makes: search parameters, vectors, downcast indexes

GRAPH_NAME = re.compile(r"dense-([0-9]{8,19})-([0-9a-f]{64})\.graph", re.ASCII)
UNFINISHED_NAME = re.compile(r"dense-[0-9a-f]{16}\.graph\.unfinished", re.ASCII)
_NEIGHBOURS = 16
_BUILDING_BREADTH = 80
_BREADTH = 256
_WIDEST = 4096
_KINDS = {"slots": ("<i8", 1), "levels": ("<i4", 1), "neighbours": ("<i4", 1), "entry": ("<i8", 1), "codes": ("|u1", 1)}


class Graph(NamedTuple):
    """generation: of the vectors that it is over. slots: (nodes,) whose vector each node is."""

    generation: int
    slots: Longs
    index: Any

    def nearest(self, queries: Array, k: int, allowed: npt.NDArray[np.bool_]) -> Longs:
        """(queries, k) the nodes that seem to score highest among the allowed ones; -1 where fewer were found."""
        passing = np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(passing))
        breadth = max(_BREADTH, 2 * k) * len(allowed) / max(1, int(np.count_nonzero(allowed)))
        search = faiss.SearchParametersHNSW(sel=selector, efSearch=max(2 * k, min(_WIDEST, int(breadth))))
        nodes: Longs = self.index.search(np.ascontiguousarray(queries), k, params=search)[1]
        return nodes


def build(generation: int, slots: Longs, blocks: Iterable[Array], dim: int) -> Graph:
    """A graph over the vectors that come in blocks, in the order of slots."""
    index = _empty(dim)
    index.hnsw.efConstruction = _BUILDING_BREADTH
    for block in blocks:
        index.add(block)
    return Graph(generation, slots, index)


def save(folder: Path, graph: Graph) -> None:
    """Put the graph in the folder, whole or not at all, in the place of all others."""
    unfinished = folder / f"dense-{secrets.token_hex(8)}.graph.unfinished"
    try:
        stamp = write_arrays(unfinished, _arrays(graph))
        finished = unfinished.rename(folder / f"dense-{graph.generation:08d}-{stamp.checksum}.graph")
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    for path, _, _ in _saved(folder):
        if path != finished:
            path.unlink(missing_ok=True)


def load(folder: Path, generation: int, dim: int) -> Graph | None:
    """The newest graph there that is whole and not ahead of this generation; None where there is none."""
    for path, made, stamp in sorted(_saved(folder), key=lambda saved: -saved[1]):
        try:
            if made <= generation and checksum(path) == stamp:
                return _graph(made, map_arrays(path, path.stat().st_size), dim)
        except (OSError, DamagedFolder, ValueError):
            continue  # a graph is derived: whatever is wrong with it, it is built again
    return None


def _saved(folder: Path) -> Iterator[tuple[Path, int, str]]:
    for path in list(folder.iterdir()):
        name = GRAPH_NAME.fullmatch(path.name)
        if name:
            yield path, int(name[1]), name[2]


def _empty(dim: int) -> Any:
    # Vectors are kept as bfloat16, which has float32's range: vectors that were moved may be of any length.
    return faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_bf16, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)


def _arrays(graph: Graph) -> Arrays:
    hnsw = graph.index.hnsw
    return {
        "slots": graph.slots,
        "levels": faiss.vector_to_array(hnsw.levels),
        "neighbours": faiss.vector_to_array(hnsw.neighbors),
        "entry": np.array([hnsw.entry_point], np.int64),
        "codes": faiss.vector_to_array(faiss.downcast_index(graph.index.storage).codes),
    }


def _graph(generation: int, arrays: Arrays, dim: int) -> Graph:
    """Raises ValueError for arrays that are no graph: FAISS follows numbers wherever they lead."""
    index = _empty(dim)
    hnsw = index.hnsw
    storage = faiss.downcast_index(index.storage)
    _require_kinds(arrays)
    slots, levels, neighbours, codes = (arrays[name] for name in ("slots", "levels", "neighbours", "codes"))
    (entry,) = arrays["entry"].tolist()
    starts = faiss.vector_to_array(hnsw.cum_nneighbor_per_level).astype(np.int64)
    _require_graph(slots, levels, neighbours, entry, starts)
    if codes.nbytes != len(slots) * storage.code_size:
        raise ValueError("as many codes as vectors")
    faiss.copy_array_to_vector(np.ascontiguousarray(levels), hnsw.levels)
    faiss.copy_array_to_vector(_offsets(levels, starts).astype(np.uint64), hnsw.offsets)
    _fill(hnsw.neighbors, neighbours)
    _fill(storage.codes, codes)
    hnsw.entry_point, hnsw.max_level = entry, int(levels.max()) - 1
    storage.ntotal = index.ntotal = len(slots)
    return Graph(generation, np.array(slots), index)


def _require_kinds(arrays: Arrays) -> None:
    kinds = {name: (array.dtype.str, array.ndim) for name, array in arrays.items()}
    if kinds != _KINDS:
        raise ValueError(f"arrays of {kinds}")


def _require_graph(slots: Longs, levels: Longs, neighbours: Longs, entry: int, starts: Longs) -> None:
    nodes = len(slots)
    if not 0 < nodes == len(levels) or not 1 <= levels.min() <= levels.max() < len(starts):
        raise ValueError("levels")
    offsets = _offsets(levels, starts)
    if len(neighbours) != offsets[-1] or not -1 <= neighbours.min() <= neighbours.max() < nodes:
        raise ValueError("neighbours")
    if not 0 <= entry < nodes or levels[entry] != levels.max():
        raise ValueError("the entry point")
    for level in range(1, int(levels.max())):
        high = np.flatnonzero(levels > level)
        places = offsets[high, None] + np.arange(starts[level], starts[level + 1])
        met = neighbours[places]
        if np.any(levels[met[met >= 0]] <= level):
            raise ValueError("a neighbour on a level where it is not")


def _offsets(levels: Longs, starts: Longs) -> Longs:
    """(nodes + 1,) where each node's neighbours begin: it has starts[levels] of them."""
    return np.concatenate([[0], np.cumsum(starts[levels])])


def _fill(vector: Any, values: npt.NDArray[Any]) -> None:
    vector.resize(len(values))
    faiss.rev_swig_ptr(vector.data(), len(values))[:] = values

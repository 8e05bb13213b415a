"""Which graph proposes for which state of a local index, and what it does not know about."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m3_integrations.core.encoded import Encoded
from m3_integrations.index.graph import Graph, build, load, save
from m3_integrations.index.searching import propose
from m3_integrations.index.segments import Longs
from m3_integrations.index.snapshot import Snapshot

_LEAST_COVERED = 0.75
_BUILT_AT_ONCE = 1 << 14


class _Fitted(NamedTuple):
    """A graph seen from one generation. rows: (nodes,) the row of each node, -1 where its vector is no longer that."""

    graph: Graph
    generation: int
    rows: Longs

    @classmethod
    def of(cls, graph: Graph, snapshot: Snapshot) -> _Fitted:
        rows = snapshot.rows_of(graph.slots)
        same = (rows >= 0) & snapshot.live[rows] & (snapshot.written("dense")[rows] <= graph.generation)
        return cls(graph, snapshot.generation, np.where(same, rows, -1))

    def suffices(self, snapshot: Snapshot) -> bool:
        return bool(np.count_nonzero(self.rows >= 0) >= _LEAST_COVERED * snapshot.living)


class Neighbours:
    """Proposes dense candidates by a graph. A graph that has fallen behind is loaded or built anew by who searches;
    meanwhile others scan. What was written since it was built is always scanned."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._building = threading.Lock()
        self._newest: _Fitted | None = None

    def propose(self, snapshot: Snapshot, queries: Encoded, k: int, allowed: Longs) -> list[Longs]:
        """For each query rows among which most of the best k of the allowed ones are."""
        fitted = self._fitted(snapshot)
        if fitted is None:
            return propose(snapshot, "dense", queries, k, allowed)
        wanted = np.zeros(snapshot.count + 1, bool)  # and a place for the -1 of nodes that are nobody's
        wanted[allowed] = True
        nodes = fitted.graph.nearest(queries.dense, 2 * k, wanted[fitted.rows])
        wanted[fitted.rows] = False
        unknown = propose(snapshot, "dense", queries, k, np.flatnonzero(wanted))
        return [
            np.concatenate([fitted.rows[found[found >= 0]], others])
            if np.count_nonzero(found >= 0) >= min(k, len(allowed))
            else propose(snapshot, "dense", queries.take([i]), k, allowed)[0]
            for i, (found, others) in enumerate(zip(nodes, unknown, strict=True))
        ]

    def forget(self) -> None:
        self._newest = None

    def _fitted(self, snapshot: Snapshot) -> _Fitted | None:
        newest = self._newest
        if newest is not None and newest.generation == snapshot.generation:
            return newest
        if not self._building.acquire(blocking=False):
            return None
        try:
            self._newest = self._refitted(newest, snapshot)
            return self._newest
        finally:
            self._building.release()

    def _refitted(self, newest: _Fitted | None, snapshot: Snapshot) -> _Fitted:
        known = newest.graph if newest else load(self._folder, snapshot.generation, snapshot.widths["dense"])
        if known is not None and known.generation <= snapshot.generation:
            fitted = _Fitted.of(known, snapshot)
            if fitted.suffices(snapshot):
                return fitted
        graph = _built(snapshot)
        with suppress(OSError):  # a graph that cannot be kept is built again by the next process
            save(self._folder, graph)
        return _Fitted.of(graph, snapshot)


def _built(snapshot: Snapshot) -> Graph:
    rows = np.flatnonzero(snapshot.live)
    starts = range(0, len(rows), _BUILT_AT_ONCE)
    blocks = (snapshot.vectors("dense", rows[start : start + _BUILT_AT_ONCE]).dense for start in starts)
    return build(snapshot.generation, snapshot.slots[rows], blocks, snapshot.widths["dense"])

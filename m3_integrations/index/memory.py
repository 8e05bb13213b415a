"""An index over arrays in memory: exact, without shortcuts, the judge of all others."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Self

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import (
    MODES,
    Array,
    Encoded,
    Ints,
    Mode,
    Rows,
    check_modes,
    late_interactions,
    score_mode,
    sparse_scores,
)
from m3_integrations.core.texts import Passage
from m3_integrations.index.base import Hit
from m3_integrations.index.checks import (
    check_changes,
    check_count,
    check_score,
    check_search,
    check_widths,
    last_rows,
    list_of_ids,
    newest,
    unknown,
    widths,
)
from m3_integrations.index.entries import Entry, entries
from m3_integrations.index.ranking import contenders, rank
from m3_integrations.index.where import Where

_KEPT_STALE = 1024


class MemoryIndex:
    """Exact search over arrays in memory. Safe to use from many threads: a search sees one state, whole.

    What is written is joined into arrays by the first search after it, so that adding one by one stays cheap.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._widths: dict[Mode, int] = {}
        self._logs: dict[Mode, _Log] = {}
        self._order: list[str] | None = []

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(self._widths)

    def add(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        check_count("passages", len(passages), encoded)
        if not passages:
            return
        latest = {entry.id: entry for entry in entries(passages)}
        rows = last_rows([passage.id for passage in passages])
        with self._lock:
            kept = self._widths or widths(encoded)
            check_widths(kept, encoded)
            self._widths = kept
            for mode in kept:
                self._log(mode).write(rows, encoded)
            self._entries.update(latest)
            self._order = None

    def delete(self, ids: Collection[str]) -> None:
        with self._lock:
            for id in list_of_ids(ids, "delete"):
                if self._entries.pop(id, None) is not None:
                    self._order = None
                    for log in self._logs.values():
                        log.forget(id)

    def set_vectors(self, ids: Sequence[str], encoded: Encoded) -> None:
        self.set_many([(ids, encoded)])

    def set_many(self, changes: Sequence[tuple[Sequence[str], Encoded]]) -> None:
        named = check_changes(changes)
        with self._lock:
            for change in named:
                self._require(change.ids)
            for ids, encoded in newest(self._widths, named):
                for mode in encoded.modes:
                    self._log(mode).write(last_rows(ids), encoded)

    def search(self, mode: Mode, queries: Encoded, k: int, where: Where | None = None) -> list[list[Hit]]:
        asked = check_search(self._widths, mode, queries, k)
        with self._lock:
            if not self._entries:
                return [[] for _ in range(len(asked))]
            settled = self._settled(mode)
            kept = [self._entries[id] for id in settled.ids] if where is not None else []
        allowed = None if where is None else [i for i, entry in enumerate(kept) if where.matches(entry.metadata)]
        return [settled.search(asked.take([i]), k, allowed) for i in range(len(asked))]

    def score(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        asked, wanted = check_score(self._widths, mode, queries, ids)
        with self._lock:
            for each in wanted:
                self._require(each)
            if not any(wanted):
                return [np.zeros(0, np.float32) for _ in wanted]
            settled = self._settled(mode)
        return [settled.score(asked.take([i]), each) for i, each in enumerate(wanted)]

    def passages(self, ids: Sequence[str] | None = None) -> list[Passage]:
        with self._lock:
            wanted = self.ids() if ids is None else list_of_ids(ids, "passages")
            self._require(wanted)
            return [self._entries[id].passage() for id in wanted]

    def vectors(self, ids: Sequence[str], modes: Collection[Mode] | None = None) -> Encoded:
        wanted = list_of_ids(ids, "vectors")
        with self._lock:
            self._require(wanted)
            asked = check_modes(self.modes if modes is None else modes, self.modes)
            settled = [self._settled(mode) for mode in MODES if mode in asked]
        return _side_by_side([each.take(wanted) for each in settled])

    def content_hashes(self, ids: Collection[str] | None = None) -> dict[str, str]:
        with self._lock:
            wanted = self.ids() if ids is None else list_of_ids(ids, "content_hashes")
            return {id: self._entries[id].hash for id in wanted if id in self._entries}

    def ids(self, where: Where | None = None) -> list[str]:
        with self._lock:
            everyone = self._ids()
            return [id for id in everyone if where is None or where.matches(self._entries[id].metadata)]

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        """Nothing to let go of: the index lives as long as the object does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MemoryIndex({len(self)} passages, {[mode for mode in MODES if mode in self.modes]})"

    def _log(self, mode: Mode) -> _Log:
        return self._logs.setdefault(mode, _Log(mode))

    def _ids(self) -> list[str]:
        if self._order is None:
            self._order = sorted(self._entries)
        return self._order

    def _settled(self, mode: Mode) -> _Settled:
        return self._log(mode).settle(self._ids())

    def _require(self, ids: Sequence[str]) -> None:
        for id in ids:
            if id not in self._entries:
                raise unknown(id)


class _Log:
    """The vectors of one mode, in the order written, and where each id's newest are."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._chunks: list[Encoded] = []
        self._at: dict[str, int] = {}
        self._length = 0
        self._settled: _Settled | None = None

    def write(self, rows: Mapping[str, int], encoded: Encoded) -> None:
        """Keep a copy of row rows[id] for each id."""
        self._chunks.append(encoded.only((self._mode,)).take(list(rows.values())))
        self._at.update(zip(rows, range(self._length, self._length + len(rows)), strict=True))
        self._length += len(rows)
        self._settled = None
        if self._length > 2 * len(self._at) + _KEPT_STALE:
            self._pack(list(self._at))

    def forget(self, id: str) -> None:
        del self._at[id]
        self._settled = None

    def settle(self, ids: list[str]) -> _Settled:
        """The newest vectors of these ids, who are all that the log holds, in this order."""
        if self._settled is None:
            self._settled = _Settled(self._mode, ids, self._pack(ids))
        return self._settled

    def _pack(self, ids: Sequence[str]) -> Encoded:
        """Keep nothing but the newest vectors of these ids, in this order."""
        joined = self._chunks[0].join(*self._chunks[1:])
        rows = [self._at[id] for id in ids]
        newest = joined if rows == list(range(self._length)) else joined.take(rows)
        if self._mode == "dense":  # the kernel rounds another memory layout differently
            newest = Encoded(dense=np.ascontiguousarray(newest.dense))
        self._chunks, self._at, self._length = [newest], last_rows(ids), len(ids)
        return newest


class _Settled:
    """The vectors of one mode, ordered by id; never changed."""

    def __init__(self, mode: Mode, ids: list[str], encoded: Encoded) -> None:
        self.ids = ids
        self.rows = last_rows(ids)
        self._mode = mode
        self._encoded = encoded

    def search(self, query: Encoded, k: int, allowed: Rows | None) -> list[Hit]:
        """The best k of the allowed rows, ascending; None allows all."""
        rows = np.arange(len(self.ids)) if allowed is None else np.asarray(allowed, np.int64)
        scores = self._scores(query, rows)
        if self._mode == "sparse":
            rows, scores = rows[scores > 0], scores[scores > 0]
        best = contenders(scores, k)
        return rank([self.ids[row] for row in rows[best]], scores[best], k)

    def score(self, query: Encoded, ids: Sequence[str]) -> Array:
        if self._mode == "multi_vector":  # where they lie: copying them takes as long as scoring them
            (asked,), kept = query.multi_vector, self._encoded.multi_vector
            rows = [self.rows[id] for id in ids]
            return late_interactions(asked, (kept[row] for row in rows), kept.counts_of(rows))
        return self._kernel(query, self.take(ids))

    def take(self, ids: Sequence[str]) -> Encoded:
        return self._encoded.take([self.rows[id] for id in ids])

    def _scores(self, query: Encoded, rows: Ints) -> Array:
        if len(rows) < len(self.ids) / 2:
            return self._kernel(query, self._encoded.take(rows))
        if self._mode == "sparse":
            scores: Array = sparse_scores(query.sparse, self._by_column)[0, rows]
            return scores
        return self._kernel(query, self._encoded)[rows]

    def _kernel(self, query: Encoded, passages: Encoded) -> Array:
        scores: Array = score_mode(self._mode, query, passages)[0]
        return scores

    @cached_property
    def _by_column(self) -> scipy.sparse.csc_array:
        return self._encoded.sparse.tocsc()


def _side_by_side(parts: Sequence[Encoded]) -> Encoded:
    """One Encoded out of one for each mode."""
    return Encoded(**{mode: getattr(part, mode) for part in parts for mode in part.modes})

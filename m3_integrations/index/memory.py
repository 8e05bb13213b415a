"""MemoryIndex: exact brute-force search, the reference implementation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Ints, Mode, Modes, Rows, check_modes
from m3_integrations.core.forking import ForkSafeLock
from m3_integrations.core.scoring import inverse_document_frequency, maxsim, score_mode, sparse_scores
from m3_integrations.core.types import Passage, SearchPlan, positive_integer
from m3_integrations.index import validation
from m3_integrations.index.base import ClosableIndex, Hit, describe_plan
from m3_integrations.index.filters import Where, check_depth
from m3_integrations.index.records import PassageRecord, to_records
from m3_integrations.index.top_k import rank, top_k_with_ties

_MAX_STALE_ROWS = 1024


class MemoryIndex(ClosableIndex):
    """An index in memory, with exact search. Its methods are documented in `Index`.

    It is thread-safe: a search sees one consistent state. Written embeddings are joined into arrays by the first search
    after them, so that adding passages one by one is cheap.
    """

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._records: dict[str, PassageRecord] = {}
        self._widths: dict[Mode, int] = {}
        self._logs: dict[Mode, _ModeLog] = {}
        self._order: list[str] | None = []
        self._plan: SearchPlan | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the lock, for pickles and deep copies."""
        with self._lock:
            return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _lock=ForkSafeLock())

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(self._widths)

    @property
    def plan(self) -> SearchPlan | None:
        return self._plan

    @plan.setter
    def plan(self, plan: SearchPlan | None) -> None:
        self._plan = validation.check_plan(plan)

    def add(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        validation.check_count("passages", len(passages), encoded)
        if not passages:
            return
        records = {record.id: record for record in to_records(passages)}
        rows = validation.last_rows([passage.id for passage in passages])
        with self._lock:
            stored = self._widths or validation.widths(encoded)
            validation.check_widths(stored, encoded)
            self._widths = stored
            for mode in stored:
                self._log(mode).write(rows, encoded)
            self._records.update(records)
            self._order = None

    def delete(self, ids: Collection[str], *, purge: bool = False) -> None:
        with self._lock:
            for id in validation.check_ids(ids, "delete"):
                if self._records.pop(id, None) is not None:
                    self._order = None
                    for log in self._logs.values():
                        log.delete(id)
            if purge:  # the embeddings of deleted passages are freed too
                for log in self._logs.values():
                    log.compact(self._ids())

    def set_vectors(self, ids: Sequence[str], encoded: Encoded) -> None:
        self.set_vectors_many([(ids, encoded)])

    def set_vectors_many(
        self,
        updates: Sequence[tuple[Sequence[str], Encoded]],
        plan: SearchPlan | None = None,
        *,
        unchanged: Mapping[str, str] | None = None,
    ) -> None:
        checked = validation.check_updates(updates)
        with self._lock:
            if unchanged:
                validation.check_unchanged(unchanged, self.content_hashes(unchanged.keys()))
            for update in checked:
                self._require(update.ids)
            for ids, encoded in validation.resolve_updates(self._widths, checked):
                for mode in encoded.modes:
                    self._log(mode).write(validation.last_rows(ids), encoded)
            if plan is not None:
                self.plan = plan

    def search(self, mode: Mode, queries: Encoded, k: int, where: Where | None = None) -> list[list[Hit]]:
        queries, k = validation.check_search(self._widths, mode, queries, k), positive_integer("k", k)
        if where is not None:
            check_depth(where)
        with self._lock:
            if not self._records:
                return [[] for _ in range(len(queries))]
            compacted = self._compacted(mode)
            records = [self._records[id] for id in compacted.ids] if where is not None else []
        queries = queries.with_idf(compacted.idf)
        allowed = None if where is None else [i for i, record in enumerate(records) if where.matches(record.metadata)]
        return [compacted.search(queries.take([i]), k, allowed) for i in range(len(queries))]

    def score(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        queries, id_lists = validation.check_score(self._widths, mode, queries, ids)
        with self._lock:
            for id_list in id_lists:
                self._require(id_list)
            if not any(id_lists):
                return [np.zeros(0, np.float32) for _ in id_lists]
            compacted = self._compacted(mode)
        queries = queries.with_idf(compacted.idf)
        return [compacted.score(queries.take([i]), id_list) for i, id_list in enumerate(id_lists)]

    def idf(self, tokens: Ints) -> Array:
        """Return the inverse document frequency of tokens, see `LexicalIndex`."""
        with self._lock:
            check_modes(("sparse",), self._widths.keys() or MODES)
            if not self._records:
                return inverse_document_frequency(np.zeros(len(tokens), np.int64), 0)
            compacted = self._compacted("sparse")
        return compacted.idf(tokens)

    def passages(self, ids: Sequence[str] | None = None) -> list[Passage]:
        with self._lock:
            ids = self.ids() if ids is None else validation.check_ids(ids, "passages")
            self._require(ids)
            return [self._records[id].to_passage() for id in ids]

    def vectors(self, ids: Sequence[str], modes: Modes | None = None) -> Encoded:
        ids = validation.check_ids(ids, "vectors")
        with self._lock:
            self._require(ids)
            wanted = check_modes(self.modes if modes is None else modes, self.modes)
            compacted = {mode: self._compacted(mode) for mode in wanted}
        return Encoded(**{mode: getattr(each.take(ids), mode) for mode, each in compacted.items()})

    def content_hashes(self, ids: Collection[str] | None = None) -> dict[str, str]:
        with self._lock:
            ids = self.ids() if ids is None else validation.check_ids(ids, "content_hashes")
            return {id: self._records[id].hash for id in ids if id in self._records}

    def ids(self, where: Where | None = None) -> list[str]:
        if where is not None:
            check_depth(where)
        with self._lock:
            return [id for id in self._ids() if where is None or where.matches(self._records[id].metadata)]

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """Do nothing: the index lives as long as the object."""

    def __repr__(self) -> str:
        modes = [mode for mode in MODES if mode in self.modes]
        return f"MemoryIndex({len(self)} passages, {modes}){describe_plan(self._plan)}"

    def _log(self, mode: Mode) -> _ModeLog:
        return self._logs.setdefault(mode, _ModeLog(mode))

    def _ids(self) -> list[str]:
        if self._order is None:
            self._order = sorted(self._records)
        return self._order

    def _compacted(self, mode: Mode) -> _Compacted:
        return self._log(mode).compact(self._ids())

    def _require(self, ids: Sequence[str]) -> None:
        for id in ids:
            if id not in self._records:
                raise validation.unknown_id_error(id)


class _ModeLog:
    """Embeddings of one mode in the order of writing, with the newest row of each id."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._chunks: list[Encoded] = []
        self._rows: dict[str, int] = {}
        self._length = 0
        self._compacted: _Compacted | None = None

    def write(self, rows: Mapping[str, int], encoded: Encoded) -> None:
        """Store a copy of row rows[id] for each id."""
        self._chunks.append(encoded.only((self._mode,)).take(list(rows.values())))
        self._rows.update(zip(rows, range(self._length, self._length + len(rows)), strict=True))
        self._length += len(rows)
        self._compacted = None
        if self._length > 2 * len(self._rows) + _MAX_STALE_ROWS:
            self._merge_chunks(list(self._rows))

    def delete(self, id: str) -> None:
        del self._rows[id]
        self._compacted = None

    def compact(self, ids: list[str]) -> _Compacted:
        """Return the newest embeddings of all ids, in this order."""
        if self._compacted is None:
            self._compacted = _Compacted(self._mode, ids, self._merge_chunks(ids))
        return self._compacted

    def _merge_chunks(self, ids: Sequence[str]) -> Encoded:
        """Drop all but the newest embeddings of these ids, and order them so."""
        joined = self._chunks[0].join(*self._chunks[1:])
        rows = [self._rows[id] for id in ids]
        newest = joined if rows == list(range(self._length)) else joined.take(rows)
        if self._mode == "dense":  # the kernel rounds differently for another memory layout
            newest = Encoded(dense=np.ascontiguousarray(newest.dense))
        self._chunks, self._rows, self._length = [newest], validation.last_rows(ids), len(ids)
        return newest


class _Compacted:
    """Embeddings of one mode, ordered by id; immutable."""

    def __init__(self, mode: Mode, ids: list[str], encoded: Encoded) -> None:
        self.ids = ids
        self.rows = validation.last_rows(ids)
        self._mode = mode
        self._encoded = encoded

    def search(self, query: Encoded, k: int, allowed: Rows | None) -> list[Hit]:
        """Return the top k of the allowed rows (ascending); None allows all."""
        rows = np.arange(len(self.ids)) if allowed is None else np.asarray(allowed, np.int64)
        scores = self._scores(query, rows)
        if self._mode == "sparse":
            rows, scores = rows[scores > 0], scores[scores > 0]
        best = top_k_with_ties(scores, k)
        return rank([self.ids[row] for row in rows[best]], scores[best], k)

    def score(self, query: Encoded, ids: Sequence[str]) -> Array:
        if self._mode == "multi_vector":  # without a copy, which takes as long as scoring
            (query_vectors,), vectors = query.multi_vector, self._encoded.multi_vector
            rows = [self.rows[id] for id in ids]
            return maxsim(query_vectors, (vectors[row] for row in rows), vectors.counts_of(rows))
        return self._kernel(query, self.take(ids))

    def idf(self, tokens: Ints) -> Array:
        return inverse_document_frequency(self._passage_counts[tokens], len(self.ids))

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
    def _passage_counts(self) -> Ints:
        """Number of passages of each token, shape (vocabulary,)."""
        rows = self._encoded.sparse
        return np.bincount(rows.indices, minlength=rows.shape[1])

    @cached_property
    def _by_column(self) -> scipy.sparse.csc_array:
        return self._encoded.sparse.tocsc()

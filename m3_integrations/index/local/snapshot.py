"""Consistent read view of one generation of a local index, as arrays.

A row is a passage that this process has seen; rows are numbered in the order of slots. A newer commit is applied to the
arrays in place, so that following a writer costs as much as the writer wrote.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import Encoded, Mode, MultiVectors
from m3_integrations.core.forking import ForkSafeLock
from m3_integrations.index.filters import Where, check_depth
from m3_integrations.index.local.array_file import damaged_file_error
from m3_integrations.index.local.catalog import SegmentRow, Transaction, damaged_catalog_error
from m3_integrations.index.local.metadata_columns import Mask, MetadataColumns
from m3_integrations.index.local.segments import Longs, RaggedRows, Segment, find_segment, map_segment
from m3_integrations.index.local.tables.checks import add_sums, sum_slots
from m3_integrations.index.quantization.codecs import Codec
from m3_integrations.index.quantization.multi_vector_int8 import ErrorBounds, error_bounds
from m3_integrations.index.validation import unknown_id_error

_ROW_BITS = 32
_NO_LOCATION = -1
_MIN_DEAD_ROWS = 4096
_MAX_CACHED_IDS = 1 << 16


class LiveRows(NamedTuple):
    """The rows of a segment with the newest embedding of their passage.

    Attributes:
        segment: The segment.
        segment_rows: Its live rows, ascending.
        rows: Snapshot row of each of them.
        span: `rows` as a slice, if all rows of the segment are live and their snapshot rows are consecutive; else None.
    """

    segment: Segment
    segment_rows: Longs
    rows: Longs
    span: slice | None

    def to_snapshot_rows(self, segment_rows: Longs) -> Longs:
        """Return the snapshot rows of rows of the segment; -1 for dead rows."""
        if self.span is not None:
            consecutive: Longs = segment_rows + self.span.start
            return consecutive
        positions = np.minimum(np.searchsorted(self.segment_rows, segment_rows), len(self.segment_rows) - 1)
        return np.where(self.segment_rows[positions] == segment_rows, self.rows[positions], -1)


class SegmentView:
    """A segment, and the snapshot row of each of its rows; -1 for passages deleted before."""

    def __init__(self, segment: Segment, rows: Longs) -> None:
        self.segment = segment
        self.rows = rows
        self._live_rows: LiveRows | None = None

    def live_rows(self, number: int, locations: Longs) -> LiveRows:
        """Return the live rows of the segment, given its number and all locations."""
        if self._live_rows is None:
            known = np.flatnonzero(self.rows >= 0)
            live = known[locations[self.rows[known]] == _pack_location(number, known)]
            self._live_rows = LiveRows(self.segment, live, self.rows[live], _span(self.rows, live))
        return self._live_rows

    def invalidate(self) -> None:
        """Forget the live rows, after a commit."""
        self._live_rows = None

    def copy(self) -> SegmentView:
        """Return an independent copy."""
        return SegmentView(self.segment, self.rows)


class IdCache:
    """Cache of ids and slots in one generation, since a SQLite query is slower than scoring.

    It is thread-safe: each thread looks up what it misses, and an entry is valid for all of them.
    """

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._ids: dict[int, str] = {}

    def slots(self, transaction: Transaction, ids: Collection[str]) -> list[int]:
        """Return the slot of each id.

        Raises:
            UnknownId: If there is no such id.
        """
        cached = self._slots
        missing = [id for id in ids if id not in cached]
        found = transaction.slots_of(missing)
        for id in missing:
            if id not in found:
                raise unknown_id_error(id)
        self._add(found.items())
        return [found[id] if id in found else cached[id] for id in ids]

    def ids(self, transaction: Transaction, slots: Sequence[int]) -> list[str]:
        """Return the id of each slot; all slots must exist."""
        cached = self._ids
        missing = [slot for slot in slots if slot not in cached]
        found = dict(zip(missing, transaction.ids_of(missing), strict=True))
        self._add((id, slot) for slot, id in found.items())
        return [found[slot] if slot in found else cached[slot] for slot in slots]

    def _add(self, pairs: Iterable[tuple[str, int]]) -> None:
        if len(self._slots) > _MAX_CACHED_IDS:
            self._slots, self._ids = {}, {}
        for id, slot in pairs:
            self._slots[id] = slot
            self._ids[slot] = id


class Snapshot:
    """The state of one generation.

    Attributes:
        readers: Number of threads that read it; it may be changed in place only if there are none.
        generation: The generation; -1 before the first.
        widths: Width of each mode.
        codecs: Codec of each mode; None for float32.
        count: Number of rows.
        live_count: Number of rows with a passage that is not deleted.
        slot_sum: Sum of the hashes of their slots, as in `CatalogChecks`.
        columns: Metadata columns of the fields used in filters.
        error_bounds: Bounds over all int8 multi-vectors; None if some have no int8 codes.
    """

    def __init__(self, folder: Path) -> None:
        self.readers = 0
        self.generation = -1
        self.widths: dict[Mode, int] = {}
        self.codecs: dict[Mode, Codec | None] = {}
        self.count = 0
        self.live_count = 0
        self.slot_sum = 0
        self.columns = MetadataColumns()
        self.error_bounds: ErrorBounds | None = None
        self._ids = IdCache()
        self._columns_lock = ForkSafeLock()
        self._folder = folder
        self._next_slot = 0
        self._slots: Longs = np.zeros(0, np.int64)
        self._live: Mask = np.zeros(0, bool)
        self._locations: dict[Mode, Longs] = {}
        self._begins: Longs = np.zeros(0, np.int64)
        self._ends: Longs = np.zeros(0, np.int64)
        self._views: dict[int, SegmentView] = {}

    @property
    def slots(self) -> Longs:
        """Slot of each row, ascending, shape (count,)."""
        return self._slots[: self.count]

    @property
    def live(self) -> Mask:
        """Mask of the rows with a live passage, shape (count,)."""
        return self._live[: self.count]

    def copy(self) -> Snapshot:
        """Return an independent copy."""
        copy = Snapshot(self._folder)
        copy.generation, copy.count, copy.live_count = self.generation, self.count, self.live_count
        copy.widths, copy.codecs, copy.slot_sum = self.widths, self.codecs, self.slot_sum
        copy.columns, copy._next_slot = self.columns.copy(), self._next_slot
        copy._slots, copy._live = self._slots.copy(), self._live.copy()
        copy._locations = {mode: locations.copy() for mode, locations in self._locations.items()}
        copy._begins, copy._ends, copy.error_bounds = self._begins.copy(), self._ends.copy(), self.error_bounds
        copy._views = {number: view.copy() for number, view in self._views.items()}
        return copy

    def is_fragmented(self) -> bool:
        """Return whether most rows are deleted; then a new snapshot is better."""
        return self.count > 2 * self.live_count + _MIN_DEAD_ROWS

    def advance(self, transaction: Transaction) -> None:
        """Apply the commits since `generation`.

        Raises:
            FileNotFoundError: If a segment was merged away in the meantime.
            DamagedFolder: If the catalog or a segment is damaged.
        """
        state = transaction.state()
        self._ids = IdCache()
        if not self.widths:
            modes = transaction.modes()
            self.widths = {mode: config.width for mode, config in modes.items()}
            self.codecs = {mode: config.codec for mode, config in modes.items()}
            self._locations = {mode: np.full(len(self._slots), _NO_LOCATION, np.int64) for mode in self.widths}
        first_new = self.count
        self._append(transaction.slots(self._next_slot))
        self._mark_deleted(transaction.deleted_slots(self.generation))
        transaction.check_members(self.live_count, self.slot_sum)
        self._update_segments(transaction)
        self._check_locations(first_new)
        self.generation, self._next_slot = state.generation, state.next_slot

    def rows_of_ids(self, transaction: Transaction, ids: Collection[str]) -> Longs:
        """Return the row of each id.

        Raises:
            UnknownId: If there is no such id.
        """
        return self.rows_of(self._ids.slots(transaction, ids))

    def ids_of(self, transaction: Transaction, rows: Longs) -> list[str]:
        """Return the id of each row."""
        return self._ids.ids(transaction, self.slots[rows].tolist())

    def rows_of(self, slots: Iterable[int]) -> Longs:
        """Return the row of each slot; -1 if there is none."""
        return self._look_up(np.fromiter(slots, np.int64))

    def matching_rows(self, transaction: Transaction, where: Where | None) -> Longs:
        """Return the live rows matching the filter, ascending."""
        if where is None:
            return np.flatnonzero(self.live)
        check_depth(where)
        with self._columns_lock:
            self._fill_columns(transaction, where.fields())
            return np.flatnonzero(self.live & self.columns.matching_rows(where, self.count))

    def segments(self, mode: Mode) -> list[LiveRows]:
        """Return the live rows of each segment of a mode; their passages may be deleted."""
        return [
            view.live_rows(number, self._locations[mode])
            for number, view in self._views.items()
            if view.segment.mode == mode
        ]

    def vectors(self, mode: Mode, rows: Longs) -> Encoded:
        """Return a copy of the embeddings of rows, in this order."""
        located = list(self.locate(mode, rows))
        if not located:
            return empty_encoded(mode, self.widths[mode])
        parts = [segment.take(segment_rows) for segment, segment_rows, _ in located]
        joined = parts[0].join(*parts[1:])
        return joined if len(parts) == 1 else joined.take(np.argsort(np.concatenate([which for *_, which in located])))

    def locate(self, mode: Mode, rows: Longs) -> Iterator[tuple[Segment, Longs, Longs]]:
        """Group rows by segment.

        Yields:
            A segment, its rows, and their positions in `rows`.
        """
        locations = self._locations[mode][rows]
        order = np.argsort(locations >> _ROW_BITS, kind="stable")
        ordered = locations[order]
        numbers, segment_rows = ordered >> _ROW_BITS, ordered & ((1 << _ROW_BITS) - 1)
        bounds = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1)).tolist()
        for number, (begin, end) in zip(numbers[bounds[:-1]].tolist(), pairwise(bounds), strict=True):
            yield self._segment(number), segment_rows[begin:end], order[begin:end]

    def locate_multi_vectors(self, rows: Longs) -> RaggedRows:
        """Return the locations of the multi-vectors of rows."""
        numbers = self._locations["multi_vector"][rows] >> _ROW_BITS
        segments = {number: self._segment(number) for number in set(numbers.tolist())}
        return RaggedRows(segments, numbers, self._begins[rows], self._ends[rows])

    def all_vectors(self, rows: Longs, modes: Iterable[Mode]) -> Encoded:
        """Return a copy of the embeddings of rows in several modes."""
        return Encoded(**{mode: getattr(self.vectors(mode, rows), mode) for mode in modes})

    def rows_per_segment(self, mode: Mode, rows: Longs) -> dict[int, int]:
        """Count these rows in each segment, by its number."""
        numbers, counts = np.unique(self._locations[mode][rows] >> _ROW_BITS, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def written(self, mode: Mode) -> Longs:
        """Return the generation of each row's embedding, shape (count,)."""
        written = np.zeros(self.count, np.int64)
        for segment, segment_rows, rows, _ in self.segments(mode):
            written[rows] = segment.written[segment_rows]
        return written

    def live_segment_rows(self, number: int) -> tuple[Segment, Longs]:
        """Return a segment, and its rows with the newest embedding of a live passage."""
        view = self._views[number]
        segment, segment_rows, rows, _ = view.live_rows(number, self._locations[view.segment.mode])
        return segment, segment_rows[self._live[rows]]

    def live_segments(self, mode: Mode) -> list[tuple[Segment, Longs]]:
        """Return the segments of a mode, each with its rows with the newest embedding of a live passage."""
        return [self.live_segment_rows(number) for number, view in self._views.items() if view.segment.mode == mode]

    def _fill_columns(self, transaction: Transaction, fields: frozenset[str]) -> None:
        first = self.columns.known_rows(fields)
        if fields and first < self.count:
            rows = {slot: row for row, slot in enumerate(self.slots[first:].tolist(), first)}
            metadata = transaction.metadata(int(self._slots[first]))
            self.columns.fill(fields, ((rows[slot], values) for slot, values in metadata), self.count)

    def _segment(self, number: int) -> Segment:
        if number not in self._views:
            raise damaged_catalog_error("a segment with passages is missing from it", self._folder)
        return self._views[number].segment

    def _append(self, slots: Sequence[int]) -> None:
        count = self.count + len(slots)
        if count > len(self._slots):
            extra = max(count, 2 * self.count) - len(self._slots)
            self._slots = np.concatenate([self._slots, np.zeros(extra, np.int64)])
            self._live = np.concatenate([self._live, np.zeros(extra, bool)])
            unset = np.full(extra, _NO_LOCATION, np.int64)
            self._locations = {mode: np.concatenate([known, unset]) for mode, known in self._locations.items()}
            self._begins, self._ends = (np.concatenate([known, unset]) for known in (self._begins, self._ends))
        self._slots[self.count : count] = slots
        self._live[self.count : count] = True
        self.slot_sum = add_sums(self.slot_sum, sum_slots(self._slots[self.count : count]))
        self.count, self.live_count = count, self.live_count + len(slots)

    def _mark_deleted(self, slots: Sequence[int]) -> None:
        rows = self._look_up(np.array(slots, np.int64))
        rows = np.unique(rows[rows >= 0])
        rows = rows[self._live[rows]]
        self.live_count -= len(rows)
        self.slot_sum = add_sums(self.slot_sum, -sum_slots(self._slots[rows]))
        self._live[rows] = False

    def _update_segments(self, transaction: Transaction) -> None:
        segments = {row.number: row for row in transaction.segments()}
        for number in self._views.keys() - segments.keys():
            del self._views[number]
        for view in self._views.values():
            view.invalidate()
        for number, row in segments.items():
            if number not in self._views:
                self._add_segment(row)
        views = self._views.values()
        self.error_bounds = error_bounds([v.segment.arrays for v in views if v.segment.mode == "multi_vector"])

    def _add_segment(self, row: SegmentRow) -> None:
        if row.mode not in self.widths:
            raise damaged_catalog_error(f"it has a {row.mode} segment, but its modes are {sorted(self.widths)}")
        path = find_segment(self._folder, row.file)
        segment = map_segment(path, row.mode, self.widths[row.mode], row.length, self.codecs[row.mode])
        if len(segment) != row.rows:
            raise damaged_file_error(path, f"has {len(segment)} rows instead of {row.rows}")
        rows = self._look_up(segment.slots)
        known = np.flatnonzero(rows >= 0)
        self._locations[row.mode][rows[known]] = _pack_location(row.number, known)
        if row.mode == "multi_vector":
            offsets = segment.arrays["offsets"]
            self._begins[rows[known]], self._ends[rows[known]] = offsets[known], offsets[known + 1]
        self._views[row.number] = SegmentView(segment, rows)

    def _check_locations(self, first: int) -> None:
        for mode, locations in self._locations.items():
            lost = np.flatnonzero(self._live[first : self.count] & (locations[first : self.count] == _NO_LOCATION))
            if len(lost):
                slot = self._slots[first + lost[0]]
                raise damaged_catalog_error(f"the passage of slot {slot} has no {mode} vectors", self._folder)
        if self.live_count and not self._locations:
            raise damaged_catalog_error("it has passages but no modes", self._folder)

    def _look_up(self, slots: Longs) -> Longs:
        """Return the row of each slot; -1 if there is none."""
        if not self.count:
            return np.full(len(slots), -1, np.int64)
        rows = np.minimum(np.searchsorted(self.slots, slots), self.count - 1)
        return np.where(self._slots[rows] == slots, rows, -1)


def empty_encoded(mode: Mode, width: int) -> Encoded:
    """Return embeddings of no texts in one mode."""
    if mode == "dense":
        return Encoded(dense=np.zeros((0, width)))
    if mode == "sparse":
        return Encoded(sparse=scipy.sparse.csr_array((0, width), dtype=np.float32))
    return Encoded(multi_vector=MultiVectors.of([], width))


def _span(rows: Longs, live: Longs) -> slice | None:
    """Return the snapshot rows of a segment as a slice, if all are live and consecutive."""
    if not len(live) or len(live) < len(rows) or np.any(np.diff(rows) != 1):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1)


def _pack_location(number: int, rows: Longs) -> Longs:
    """Pack a segment number (upper bits) and its rows (lower bits) into one integer each."""
    return (np.int64(number) << _ROW_BITS) | rows

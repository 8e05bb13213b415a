"""One committed state of a local index as arrays: which rows are alive, and where each row's vectors lie.

A row is a passage that this process has seen; rows are numbered in the order of slots. What a newer commit changed is
applied to the arrays in place, so that following a writer costs what the writer wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import Encoded, Mode, MultiVectors
from m3_integrations.index.arrays import damaged
from m3_integrations.index.byte_vectors import Limits, limits_of
from m3_integrations.index.catalogue import Transaction, broken
from m3_integrations.index.checks import unknown
from m3_integrations.index.codes import Coding
from m3_integrations.index.columns import Columns, Mask
from m3_integrations.index.segments import Longs, Ragged, Segment, map_segment
from m3_integrations.index.where import Where

_ROW_BITS = 32
_NOWHERE = -1
_FEW = 4096
_REMEMBERED = 1 << 16


class Current(NamedTuple):
    """A segment, which of its rows are the newest of their passage, and the rows of the snapshot of those passages.

    run: those rows as a slice, where the whole segment is current and they follow one another; else None.
    """

    segment: Segment
    mine: Longs
    rows: Longs
    run: slice | None

    def rows_at(self, mine: Longs) -> Longs:
        """The rows of the snapshot of these rows of the segment; -1 for those that are not current."""
        rows: Longs
        if self.run is not None:
            rows = mine + self.run.start
        else:
            places = np.minimum(np.searchsorted(self.mine, mine), len(self.mine) - 1)
            rows = np.where(self.mine[places] == mine, self.rows[places], -1)
        return rows


class Placed:
    """A segment, and the row of the snapshot that each of its rows belongs to; -1 for those that died before."""

    def __init__(self, segment: Segment, rows: Longs) -> None:
        self.segment = segment
        self.rows = rows
        self._current: Current | None = None

    def current(self, number: int, places: Longs) -> Current:
        if self._current is None:
            known = np.flatnonzero(self.rows >= 0)
            mine = known[places[self.rows[known]] == _place(number, known)]
            self._current = Current(self.segment, mine, self.rows[mine], _run(self.rows, mine))
        return self._current

    def stale(self) -> None:
        self._current = None

    def copy(self) -> Placed:
        return Placed(self.segment, self.rows)


class Names:
    """Which id has which slot in one generation, as far as it was asked for: to ask SQLite takes longer than to score.

    Threads may share it: what one asks for is looked up by it alone, and what it learns is true for all.
    """

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._ids: dict[int, str] = {}

    def slots(self, transaction: Transaction, ids: Collection[str]) -> list[int]:
        """The slot of each id, in this order. Raises UnknownId."""
        known = self._slots
        strange = [id for id in ids if id not in known]
        learnt = transaction.slots_of(strange)
        for id in strange:
            if id not in learnt:
                raise unknown(id)
        self._learn(learnt.items())
        return [learnt[id] if id in learnt else known[id] for id in ids]

    def ids(self, transaction: Transaction, slots: Sequence[int]) -> list[str]:
        """The id of each slot, which must be there, in this order."""
        known = self._ids
        strange = [slot for slot in slots if slot not in known]
        learnt = dict(zip(strange, transaction.ids_of(strange), strict=True))
        self._learn((id, slot) for slot, id in learnt.items())
        return [learnt[slot] if slot in learnt else known[slot] for slot in slots]

    def _learn(self, named: Iterable[tuple[str, int]]) -> None:
        if len(self._slots) > _REMEMBERED:
            self._slots, self._ids = {}, {}
        for id, slot in named:
            self._slots[id] = slot
            self._ids[slot] = id


class Snapshot:
    """The state of one generation. `readers` counts who is reading: it is changed in place only where nobody is."""

    def __init__(self, folder: Path) -> None:
        self.readers = 0
        self.generation = -1
        self.widths: dict[Mode, int] = {}
        self.codings: dict[Mode, Coding | None] = {}
        self.count = 0
        self.living = 0
        self.columns = Columns()
        self.limits: Limits | None = None
        self._names = Names()
        self._filling = threading.Lock()
        self._folder = folder
        self._next_slot = 0
        self._slots: Longs = np.zeros(0, np.int64)
        self._live: Mask = np.zeros(0, bool)
        self._places: dict[Mode, Longs] = {}
        self._begins: Longs = np.zeros(0, np.int64)
        self._ends: Longs = np.zeros(0, np.int64)
        self._placed: dict[int, Placed] = {}

    @property
    def slots(self) -> Longs:
        """(count,) the slot of each row, ascending."""
        return self._slots[: self.count]

    @property
    def live(self) -> Mask:
        """(count,) which rows are passages still."""
        return self._live[: self.count]

    def copy(self) -> Snapshot:
        twin = Snapshot(self._folder)
        twin.generation, twin.count, twin.living = self.generation, self.count, self.living
        twin.widths, twin.codings = self.widths, self.codings
        twin.columns, twin._next_slot = self.columns.copy(), self._next_slot
        twin._slots, twin._live = self._slots.copy(), self._live.copy()
        twin._places = {mode: places.copy() for mode, places in self._places.items()}
        twin._begins, twin._ends, twin.limits = self._begins.copy(), self._ends.copy(), self.limits
        twin._placed = {number: placed.copy() for number, placed in self._placed.items()}
        return twin

    def wasteful(self) -> bool:
        """Whether most rows are of passages that are gone, so that loading afresh is the better way on."""
        return self.count > 2 * self.living + _FEW

    def advance(self, transaction: Transaction) -> None:
        """Apply what was committed since. Raises FileNotFoundError where a segment was merged away meanwhile."""
        state = transaction.state()
        self._names = Names()
        if not self.widths:
            kept = transaction.modes()
            self.widths = {mode: each.width for mode, each in kept.items()}
            self.codings = {mode: each.coding for mode, each in kept.items()}
            self._places = {mode: np.full(len(self._slots), _NOWHERE, np.int64) for mode in self.widths}
        first_new = self.count
        self._append(transaction.slots(self._next_slot))
        self._bury(transaction.buried(self.generation))
        self._place_segments(transaction)
        self._require_vectors(first_new)
        self.generation, self._next_slot = state.generation, state.next_slot

    def rows_named(self, transaction: Transaction, ids: Collection[str]) -> Longs:
        """The rows of these ids, in this order. Raises UnknownId."""
        return self.rows_of(self._names.slots(transaction, ids))

    def ids_of(self, transaction: Transaction, rows: Longs) -> list[str]:
        return self._names.ids(transaction, self.slots[rows].tolist())

    def rows_of(self, slots: Iterable[int]) -> Longs:
        """The rows of slots that are there."""
        return self._look_up(np.fromiter(slots, np.int64))

    def allowed(self, transaction: Transaction, where: Where | None) -> Longs:
        """The rows that live and pass the filter, ascending."""
        if where is None:
            return np.flatnonzero(self.live)
        with self._filling:
            self._fill(transaction, where.fields())
            return np.flatnonzero(self.live & self.columns.passing(where, self.count))

    def segments(self, mode: Mode) -> list[Current]:
        """Each segment of a mode; the passages may be dead."""
        return [
            placed.current(number, self._places[mode])
            for number, placed in self._placed.items()
            if placed.segment.mode == mode
        ]

    def vectors(self, mode: Mode, rows: Longs) -> Encoded:
        """A copy of the vectors of these rows, in this order."""
        lying = list(self.lying(mode, rows))
        if not lying:
            return empty(mode, self.widths[mode])
        parts = [segment.take(mine) for segment, mine, _ in lying]
        joined = parts[0].join(*parts[1:])
        return joined if len(parts) == 1 else joined.take(np.argsort(np.concatenate([which for _, _, which in lying])))

    def lying(self, mode: Mode, rows: Longs) -> Iterator[tuple[Segment, Longs, Longs]]:
        """Each segment in which vectors of these rows lie, the rows of it, and which of `rows` these are."""
        places = self._places[mode][rows]
        order = np.argsort(places >> _ROW_BITS, kind="stable")
        sorted_places = places[order]
        numbers, mine = sorted_places >> _ROW_BITS, sorted_places & ((1 << _ROW_BITS) - 1)
        bounds = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1)).tolist()
        for number, (begin, end) in zip(numbers[bounds[:-1]].tolist(), pairwise(bounds), strict=True):
            yield self._segment(number), mine[begin:end], order[begin:end]

    def ragged(self, rows: Longs) -> Ragged:
        """Where the multi-vectors of these rows lie."""
        numbers = self._places["multi_vector"][rows] >> _ROW_BITS
        segments = {number: self._segment(number) for number in set(numbers.tolist())}
        return Ragged(segments, numbers, self._begins[rows], self._ends[rows])

    def all_vectors(self, rows: Longs, modes: Iterable[Mode]) -> Encoded:
        return Encoded(**{mode: getattr(self.vectors(mode, rows), mode) for mode in modes})

    def counted_places(self, mode: Mode, rows: Longs) -> dict[int, int]:
        """How many of these rows' vectors lie in each segment, by its number."""
        numbers, counts = np.unique(self._places[mode][rows] >> _ROW_BITS, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def written(self, mode: Mode) -> Longs:
        """(count,) the generation in which each row's vectors were made."""
        written = np.zeros(self.count, np.int64)
        for segment, mine, rows, _ in self.segments(mode):
            written[rows] = segment.written[mine]
        return written

    def newest_of(self, number: int) -> tuple[Segment, Longs]:
        """A segment, and those of its rows that are a living passage's vectors."""
        placed = self._placed[number]
        segment, mine, rows, _ = placed.current(number, self._places[placed.segment.mode])
        return segment, mine[self._live[rows]]

    def _fill(self, transaction: Transaction, fields: frozenset[str]) -> None:
        filled = self.columns.filled(fields)
        if fields and filled < self.count:
            rows = {slot: row for row, slot in enumerate(self.slots[filled:].tolist(), filled)}
            metadata = transaction.metadata(int(self._slots[filled]))
            self.columns.fill(fields, ((rows[slot], said) for slot, said in metadata), self.count)

    def _segment(self, number: int) -> Segment:
        placed = self._placed.get(number)
        if placed is None:
            raise broken("a segment that passages lie in is not named", self._folder)
        return placed.segment

    def _append(self, slots: Sequence[int]) -> None:
        count = self.count + len(slots)
        if count > len(self._slots):
            room = max(count, 2 * self.count) - len(self._slots)
            self._slots = np.concatenate([self._slots, np.zeros(room, np.int64)])
            self._live = np.concatenate([self._live, np.zeros(room, bool)])
            nowhere = np.full(room, _NOWHERE, np.int64)
            self._places = {mode: np.concatenate([places, nowhere]) for mode, places in self._places.items()}
            self._begins, self._ends = (np.concatenate([each, nowhere]) for each in (self._begins, self._ends))
        self._slots[self.count : count] = slots
        self._live[self.count : count] = True
        self.count, self.living = count, self.living + len(slots)

    def _bury(self, slots: Sequence[int]) -> None:
        rows = self._look_up(np.array(slots, np.int64))
        rows = rows[rows >= 0]
        self.living -= int(np.count_nonzero(self._live[rows]))
        self._live[rows] = False

    def _place_segments(self, transaction: Transaction) -> None:
        named = {row.number: row for row in transaction.segments()}
        for number in self._placed.keys() - named.keys():
            del self._placed[number]
        for placed in self._placed.values():
            placed.stale()
        for number, row in named.items():
            if number not in self._placed:
                if row.mode not in self.widths:
                    raise broken(f"a {row.mode} segment in an index of {sorted(self.widths)}")
                path = self._folder / row.file
                segment = map_segment(path, row.mode, self.widths[row.mode], row.length, self.codings[row.mode])
                if len(segment) != row.rows:
                    raise damaged(path, f"has {len(segment)} rows instead of {row.rows}")
                self._place(number, segment)
        late = [placed.segment.arrays for placed in self._placed.values() if placed.segment.mode == "multi_vector"]
        self.limits = limits_of(late)

    def _place(self, number: int, segment: Segment) -> None:
        rows = self._look_up(segment.slots)
        known = np.flatnonzero(rows >= 0)
        self._places[segment.mode][rows[known]] = _place(number, known)
        if segment.mode == "multi_vector":
            offsets = segment.arrays["offsets"]
            self._begins[rows[known]], self._ends[rows[known]] = offsets[known], offsets[known + 1]
        self._placed[number] = Placed(segment, rows)

    def _require_vectors(self, first: int) -> None:
        for mode, places in self._places.items():
            lost = np.flatnonzero(self._live[first : self.count] & (places[first : self.count] == _NOWHERE))
            if len(lost):
                raise broken(f"the passage of slot {self._slots[first + lost[0]]} has no {mode} vectors", self._folder)
        if self.living and not self._places:
            raise broken("it has passages but no modes", self._folder)

    def _look_up(self, slots: Longs) -> Longs:
        """The row of each slot, -1 where there is none."""
        if not self.count:
            return np.full(len(slots), -1, np.int64)
        rows = np.minimum(np.searchsorted(self.slots, slots), self.count - 1)
        return np.where(self._slots[rows] == slots, rows, -1)


def empty(mode: Mode, width: int) -> Encoded:
    """No text, in one mode."""
    if mode == "dense":
        return Encoded(dense=np.zeros((0, width)))
    if mode == "sparse":
        return Encoded(sparse=scipy.sparse.csr_array((0, width), dtype=np.float32))
    return Encoded(multi_vector=MultiVectors.of([], width))


def _run(rows: Longs, mine: Longs) -> slice | None:
    if not len(mine) or len(mine) < len(rows) or np.any(np.diff(rows) != 1):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1)


def _place(number: int, rows: Longs) -> Longs:
    """Where vectors lie, as one number: the segment's above, the row's below."""
    return (np.int64(number) << _ROW_BITS) | rows

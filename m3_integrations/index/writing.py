"""One commit of a local index: files first, written and synced, then the transaction that names them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.index.arrays import damaged, sync_folder
from m3_integrations.index.catalogue import SEGMENT_NAME, Kept, SegmentRow, Transaction
from m3_integrations.index.checks import widths
from m3_integrations.index.codes import Coding, centre_of, coding_of
from m3_integrations.index.entries import Entry
from m3_integrations.index.graph import UNFINISHED_NAME
from m3_integrations.index.segments import Longs, write_segment
from m3_integrations.index.snapshot import Snapshot

# Every question goes through all dense and sparse segments, and looks late interaction up where it is.
_FANOUT_BITS: Mapping[Mode, int] = {"dense": 2, "sparse": 2, "multi_vector": 3}
_LARGEST_MERGED: Mapping[Mode, int] = {"dense": 1 << 26, "sparse": 1 << 26, "multi_vector": 1 << 25}
_KEPT_TOMBSTONES = 1024


class Writing:
    """What one commit changes. As a context: on an error its files are removed, and the caller rolls back."""

    def __init__(self, folder: Path, transaction: Transaction, snapshot: Snapshot) -> None:
        self.transaction = transaction
        self.snapshot = snapshot
        self._folder = folder
        self._generation = snapshot.generation + 1
        self._next_slot = transaction.state().next_slot
        self._codings = snapshot.codings
        self._changed = False
        self._files: list[Path] = []

    def fix_modes(self, encoded: Encoded) -> None:
        """From now on the index keeps the modes of these vectors, in their widths, coded around their centre."""
        kept = {mode: Kept(width, self._coding(mode, encoded)) for mode, width in widths(encoded).items()}
        self._codings = {mode: each.coding for mode, each in kept.items()}
        self.transaction.fix_modes(kept)

    def _coding(self, mode: Mode, encoded: Encoded) -> Coding | None:
        if mode != "multi_vector":
            return None
        return coding_of(self.transaction.precision(), centre_of(encoded.multi_vector.values))

    def keep(self, entries: Sequence[Entry]) -> Longs:
        """New slots for these passages, which must not be there."""
        first = self._next_slot
        self.transaction.keep(first, entries)
        self._next_slot += len(entries)
        self._changed = True
        return np.arange(first, self._next_slot)

    def bury(self, slots: Collection[int]) -> None:
        """These passages are no more."""
        if slots:
            for mode in self.snapshot.widths:
                self.outdate(mode, slots)
            self.transaction.bury(slots, self._generation)
            self._changed = True

    def outdate(self, mode: Mode, slots: Iterable[int]) -> None:
        """The vectors of these passages in this mode are no longer the newest."""
        self.transaction.count_dead(self.snapshot.counted_places(mode, self.snapshot.rows_of(slots)))

    def segment(self, slots: Longs, encoded: Encoded) -> None:
        """Vectors in one mode, made now."""
        self._segment(slots, np.full(len(slots), self._generation), encoded)

    def merge(self, group: Sequence[SegmentRow]) -> list[str]:
        """Make one segment of these; those of their vectors that nobody has any more are left behind.

        Returns the names of the files to be removed after the commit.
        """
        found = [self.snapshot.newest_of(row.number) for row in group]
        parts = [segment.take(rows) for segment, rows in found if len(rows)]
        if parts:
            slots = np.concatenate([segment.slots[rows] for segment, rows in found])
            written = np.concatenate([segment.written[rows] for segment, rows in found])
            self._segment(slots, written, parts[0].join(*parts[1:]))
        self.transaction.drop_segments(row.number for row in group)
        self._changed = True
        return [row.file for row in group]

    def _segment(self, slots: Longs, written: Longs, encoded: Encoded) -> None:
        (mode,) = encoded.modes
        name = f"{mode}-{self.transaction.next_segment_number():08d}-{secrets.token_hex(8)}.segment"
        self._files.append(self._folder / name)
        stamp = write_segment(self._files[-1], slots, written, encoded, self._codings[mode])
        self.transaction.name_segment(mode, name, stamp, len(slots))
        self._changed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._undo()
            raise
        if kind is not None:
            self._undo()

    def _finish(self) -> None:
        if not self._changed:
            return
        if self._files:
            sync_folder(self._folder)
        if self.transaction.tombstones() > self.snapshot.living + _KEPT_TOMBSTONES:
            self.transaction.forget_tombstones(self._generation)
        self.transaction.move_on(self._generation, self._next_slot)

    def _undo(self) -> None:
        for path in self._files:
            path.unlink(missing_ok=True)


def due(segments: Iterable[SegmentRow]) -> list[list[SegmentRow]]:
    """The groups to merge: of each mode, four or eight or more of like size, and each segment that is mostly dead.

    Sizes are alike in powers of the same number, and large segments are left alone, so that each vector is moved a
    bounded number of times in its life.
    """
    sparse = [row for row in segments if 2 * row.dead > row.rows]
    living = [row for row in segments if 2 * row.dead <= row.rows and row.length <= _LARGEST_MERGED[row.mode]]
    tiers = groupby(sorted(living, key=_tier), key=_tier)
    full = [
        group for group in (list(members) for _, members in tiers) if len(group) >= 1 << _FANOUT_BITS[group[0].mode]
    ]
    return [*([row] for row in sparse), *full]


def sweep(folder: Path, transaction: Transaction) -> None:
    """Remove segments that no commit names and unfinished graphs: what a crash left behind, and nothing else."""
    named = {row.file for row in transaction.segments()}
    for path in folder.iterdir():
        orphan = SEGMENT_NAME.fullmatch(path.name) and path.name not in named
        if orphan or UNFINISHED_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def missing(lost: FileNotFoundError) -> DamagedFolder:
    return damaged(Path(lost.filename), "is missing")


def _tier(row: SegmentRow) -> tuple[str, int]:
    return row.mode, row.length.bit_length() // _FANOUT_BITS[row.mode]

"""One write transaction: write and sync segment files, then commit the catalog."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.errors import DamagedFolder, IndexFolderError
from m3_integrations.core.files import sync_folder, translate_write_errors
from m3_integrations.index.local.array_file import damaged_file_error
from m3_integrations.index.local.candidates.derived_files import UNFINISHED_NAME
from m3_integrations.index.local.catalog import SEGMENT_NAME, ModeConfig, SegmentRow, Transaction
from m3_integrations.index.local.segments import UNPUBLISHED, Longs, write_segment
from m3_integrations.index.local.snapshot import Snapshot
from m3_integrations.index.quantization.codecs import Codec, make_codec, mean_vector
from m3_integrations.index.records import PassageRecord
from m3_integrations.index.validation import widths

# Every query scans all dense and sparse segments, and looks multi-vectors up by location.
_FANOUT_BITS: Mapping[Mode, int] = {"dense": 2, "sparse": 2, "multi_vector": 3}
_MAX_MERGED_BYTES: Mapping[Mode, int] = {"dense": 1 << 26, "sparse": 1 << 26, "multi_vector": 1 << 25}
_MIN_PURGED_TOMBSTONES = 1024


class WriteTransaction:
    """The changes of one commit.

    Its files get their final names by `publish`, after the commit: a file with another name was never committed, or
    its commit never acknowledged. As a context manager, it removes its files on an error; the caller rolls back.
    """

    def __init__(self, folder: Path, transaction: Transaction, snapshot: Snapshot) -> None:
        self.transaction = transaction
        self.snapshot = snapshot
        self._folder = folder
        self._generation = snapshot.generation + 1
        self._next_slot = transaction.state().next_slot
        self._codecs = snapshot.codecs
        self._changed = False
        self._must_sync = False
        self._files: list[Path] = []

    def set_modes(self, encoded: Encoded) -> None:
        """Set modes and widths, and the codec around the mean of the multi-vectors."""
        configs = {mode: ModeConfig(width, self._make_codec(mode, encoded)) for mode, width in widths(encoded).items()}
        self._codecs = {mode: config.codec for mode, config in configs.items()}
        self.transaction.set_modes(configs)

    def insert(self, records: Sequence[PassageRecord]) -> Longs:
        """Insert passages with new ids, and return their slots."""
        first = self._next_slot
        self.transaction.insert_passages(first, records)
        self._next_slot += len(records)
        self._changed = True
        return np.arange(first, self._next_slot)

    def delete(self, slots: Collection[int]) -> None:
        """Delete passages with their embeddings."""
        if slots:
            for mode in self.snapshot.widths:
                self.supersede(mode, slots)
            self.transaction.add_tombstones(slots, self._generation)
            self._changed = True

    def clear_embeddings(self) -> None:
        """Remove modes and embeddings; new ones must follow. Every reader loads the index again."""
        rows = self.transaction.segments()
        self.transaction.drop_segments(row.number for row in rows)
        self.transaction.clear_modes()
        self.transaction.purge_tombstones(self._generation)
        self.transaction.set_removed_files({*self.transaction.removed_files(), *(row.file for row in rows)})
        self._changed = True

    def supersede(self, mode: Mode, slots: Iterable[int]) -> None:
        """Count the current embeddings of passages as dead."""
        self.transaction.add_dead_rows(self.snapshot.rows_per_segment(mode, self.snapshot.rows_of(slots)))

    def add_segment(self, slots: Longs, encoded: Encoded) -> None:
        """Write new embeddings of passages, in one mode."""
        self._add_segment(slots, np.full(len(slots), self._generation), encoded)

    def set_removed_files(self, files: Iterable[str]) -> None:
        """Record the files to delete after the commit, in place of those recorded before, which are deleted."""
        self.transaction.set_removed_files(files)
        self._must_sync = True  # a deleted file that comes back after a power cut would be an unknown segment

    def merge(self, group: Sequence[SegmentRow]) -> list[str]:
        """Merge the live rows of segments into one segment.

        Args:
            group: Segments of one mode.

        Returns:
            Names of the files to delete after the commit; record them with `set_removed_files`.
        """
        found = [self.snapshot.live_segment_rows(row.number) for row in group]
        parts = [segment.take(rows) for segment, rows in found if len(rows)]
        if parts:
            slots = np.concatenate([segment.slots[rows] for segment, rows in found])
            written = np.concatenate([segment.written[rows] for segment, rows in found])
            self._add_segment(slots, written, parts[0].join(*parts[1:]))
        self.transaction.drop_segments(row.number for row in group)
        self._changed = True
        return [row.file for row in group]

    def merge_dead(self) -> list[str]:
        """Rewrite each segment with embeddings that are not current without these.

        Returns:
            Names of the files to delete after the commit; record them with `set_removed_files`.
        """
        segments = self.transaction.segments()
        dead = [row for row in segments if len(self.snapshot.live_segment_rows(row.number)[1]) < row.rows]
        return [file for row in dead for file in self.merge([row])]

    def publish(self) -> None:
        """Give the files their final names."""
        for path in self._files:
            with suppress(OSError):  # another process that opened the folder renamed it, or the next one does
                path.rename(path.with_name(path.name.removesuffix(UNPUBLISHED)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._remove_files()
            raise
        if kind is not None:
            self._remove_files()

    def _make_codec(self, mode: Mode, encoded: Encoded) -> Codec | None:
        if mode != "multi_vector":
            return None
        return make_codec(self.transaction.precision(), mean_vector(encoded.multi_vector.values))

    def _add_segment(self, slots: Longs, written: Longs, encoded: Encoded) -> None:
        (mode,) = encoded.modes
        name = f"{mode}-{self.transaction.next_segment_number():08d}-{secrets.token_hex(8)}.segment"
        self._files.append(self._folder / f"{name}{UNPUBLISHED}")
        with translate_write_errors(self._files[-1]):
            checksum = write_segment(self._files[-1], slots, written, encoded, self._codecs[mode])
        self.transaction.add_segment(mode, name, checksum, len(slots))
        self._changed = True

    def _finish(self) -> None:
        if self._files or self._must_sync:
            with translate_write_errors(self._folder):
                sync_folder(self._folder)
        if not self._changed:
            return
        if self.transaction.tombstone_count() > self.snapshot.live_count + _MIN_PURGED_TOMBSTONES:
            self.transaction.purge_tombstones(self._generation)
        self.transaction.next_generation(self._generation, self._next_slot)

    def _remove_files(self) -> None:
        for path in self._files:
            with suppress(OSError):  # the error of the write is the one to report; the next opening removes it
                path.unlink(missing_ok=True)


def segments_to_merge(segments: Iterable[SegmentRow]) -> list[list[SegmentRow]]:
    """Return groups of segments to merge.

    A group is four (multi-vectors: eight) or more segments of similar size, or one segment with mostly dead rows.
    Sizes are similar if they are in the same tier, of powers of the group size. Large segments are not merged, so that
    each embedding is rewritten a bounded number of times.
    """
    mostly_dead = [row for row in segments if 2 * row.dead > row.rows]
    others = [row for row in segments if 2 * row.dead <= row.rows and row.length <= _MAX_MERGED_BYTES[row.mode]]
    tiers = (list(members) for _, members in groupby(sorted(others, key=_tier), key=_tier))
    return [*([row] for row in mostly_dead), *(tier for tier in tiers if len(tier) >= 1 << _FANOUT_BITS[tier[0].mode])]


def settle_files(folder: Path, transaction: Transaction) -> list[str]:
    """Finish what a killed writer left: rename its committed segments, remove files that no state needs.

    Args:
        folder: The index folder.
        transaction: A write transaction, so that there is no other writer.

    Returns:
        Names of committed segments that the catalog does not name. They are kept: the catalog may be older than they.
    """
    named, removed = {row.file for row in transaction.segments()}, transaction.removed_files()
    removed = [file for file in removed if file not in named]
    left = remove_segments(folder, removed)
    unknown = []
    for path in folder.iterdir():
        name = path.name.removesuffix(UNPUBLISHED)
        if UNFINISHED_NAME.fullmatch(name) or (SEGMENT_NAME.fullmatch(name) and name != path.name):
            path.rename(folder / name) if name in named else path.unlink(missing_ok=True)
        elif SEGMENT_NAME.fullmatch(name) and name not in named:
            unknown.append(name)
    if removed != left:
        sync_folder(folder)  # a removed file that comes back after a power cut would be unknown
        transaction.set_removed_files(left)
    return sorted(set(unknown) - set(left))


def settle_all_files(folder: Path, transaction: Transaction) -> None:
    """Finish what a killed writer left, before a purge.

    Raises:
        IndexFolderError: If there are segments that the catalog does not name, which may hold any passage.
    """
    unknown = settle_files(folder, transaction)
    if unknown:
        raise IndexFolderError(
            f"{folder} has {len(unknown)} files with vectors that its catalog does not name, such as {unknown[0]}: "
            "whether they hold a purged passage is unknown, and nothing was deleted; move them to a backup if the "
            "catalog is complete, then repeat"
        )


def remove_segments(folder: Path, files: Iterable[str]) -> list[str]:
    """Remove segments that a merge replaced; return those that cannot be removed now."""
    left = []
    for file in files:
        try:
            for name in (file, f"{file}{UNPUBLISHED}"):
                (folder / name).unlink(missing_ok=True)
        except OSError:
            left.append(file)
    return left


def missing_segment_error(error: FileNotFoundError) -> DamagedFolder:
    """Return the error for a segment without a file."""
    return damaged_file_error(Path(error.filename), "is missing")


def _tier(row: SegmentRow) -> tuple[str, int]:
    return row.mode, row.length.bit_length() // _FANOUT_BITS[row.mode]

"""What can be read of an index folder that may be damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.errors import DamagedFolder, M3Error
from m3_integrations.core.types import Passage
from m3_integrations.index.local.catalog import FILE_NAME, Catalog, ModeConfig, Transaction
from m3_integrations.index.local.recovery.salvage import salvaged_catalog
from m3_integrations.index.local.recovery.segment_rows import SegmentRows, modes_of_files, read_segment, rows_of_files
from m3_integrations.index.local.recovery.values import DamagedFile, DamagedPassage
from m3_integrations.index.local.segments import Longs

_TIMEOUT = 60.0
_FAILURES = (M3Error, sqlite3.Error, ValueError, TypeError, LookupError, UnicodeError, OverflowError)
T = TypeVar("T")
D = TypeVar("D")


class Location(NamedTuple):
    """Where the embeddings of passages in one mode are.

    Attributes:
        numbers: Number of the segment of each passage; -1 if they are not intact.
        rows: Row in the segment.
    """

    numbers: Longs
    rows: Longs


class FolderContent(NamedTuple):
    """What was read of an index folder.

    Attributes:
        transaction: Read transaction of its catalog.
        encoder: Fingerprint and repr of the encoder of the index; None if they cannot be read.
        modes: How each mode is stored.
        segments: Its segments by number.
        slots: Slots of all passages, ascending.
        ids: Id of each; None if it cannot be read.
        problems: What is wrong with the text, metadata or id of a passage, by slot.
        locations: Intact embeddings by mode.
        files: Damaged files.
    """

    transaction: Transaction
    encoder: tuple[str | None, str | None]
    modes: Mapping[Mode, ModeConfig]
    segments: Mapping[int, SegmentRows]
    slots: Longs
    ids: Sequence[str | None]
    problems: Mapping[int, str]
    locations: Mapping[Mode, Location]
    files: Sequence[DamagedFile]

    def is_intact(self) -> list[bool]:
        """Return whether each passage is intact with all of its embeddings."""
        has_vectors = np.ones(len(self.slots), bool)
        for location in self.locations.values():
            has_vectors &= location.numbers >= 0
        return [
            has and slot not in self.problems
            for has, slot in zip(has_vectors.tolist(), self.slots.tolist(), strict=True)
        ]

    def damaged_passages(self) -> list[DamagedPassage]:
        """Return the passages that are not intact, ordered by slot."""
        damaged = []
        for i, (slot, is_intact) in enumerate(zip(self.slots.tolist(), self.is_intact(), strict=True)):
            if not is_intact:
                modes = [mode for mode, location in self.locations.items() if location.numbers[i] < 0]
                problem = self.problems.get(slot) or f"its {' and '.join(modes)} embeddings are damaged"
                damaged.append(DamagedPassage(self.ids[i], problem, slot not in self.problems))
        return damaged

    def encoded(self, positions: Longs) -> Encoded:
        """Return the embeddings of intact passages at ascending positions of `slots`."""
        by_mode = {}
        for mode, location in self.locations.items():
            numbers, rows = location.numbers[positions], location.rows[positions]
            parts, order = [], []
            for number in np.unique(numbers).tolist():
                own = np.flatnonzero(numbers == number)
                segment = self.segments[number].segment
                if segment is not None:
                    parts.append(segment.take(rows[own]))
                    order.append(own)
            by_mode[mode] = getattr(parts[0].join(*parts[1:]).take(np.argsort(np.concatenate(order))), mode)
        return Encoded(**by_mode)

    def passages(self, positions: Longs) -> tuple[Longs, list[Passage]]:
        """Return the passages at positions of `slots`, and the positions of those that can be read."""
        readable, passages = [], []
        for position, slot in zip(positions.tolist(), self.slots[positions].tolist(), strict=True):
            with suppress(*_FAILURES):  # a lookup can fail for a row that a scan found
                passages += self.transaction.passages([slot])
                readable.append(position)
        return np.array(readable, np.int64), passages


@contextmanager
def read_folder(folder: Path) -> Iterator[FolderContent]:
    """Read what can be read of an index folder.

    Rows of the catalog that SQLite does not reach, because a page that leads to them is damaged, are looked for in all
    pages.

    Raises:
        DamagedFolder: If nothing of the catalog can be read.
        FileNotFoundError: If a segment is missing that a writer may have merged in the meantime.
    """
    with ExitStack() as stack:
        content: FolderContent | None = None
        try:
            content = stack.enter_context(_read_by(folder, folder))
            problems = [each for each in content.files if each.file == FILE_NAME]
        except DamagedFolder as error:
            first, problems = error, [_damaged_catalog(error)]
        if problems:
            found = stack.enter_context(_read_by(stack.enter_context(salvaged_catalog(folder)), folder))
            if content is None and not len(found.slots):
                raise first
            if content is None or sum(found.is_intact()) > sum(content.is_intact()):
                content = found._replace(files=list(dict.fromkeys([*problems, *found.files])))
        assert content is not None
        yield content


@contextmanager
def _read_by(catalog_folder: Path, folder: Path) -> Iterator[FolderContent]:
    """Read a folder by its catalog, or by one in another folder."""
    catalog = Catalog(catalog_folder, _TIMEOUT)
    reading = catalog.read()
    transaction = reading.__enter__()
    try:
        yield _read(folder, transaction, is_salvaged=catalog_folder != folder)
    finally:
        with suppress(DamagedFolder):  # SQLite reports again, at the end, what it found on the way
            reading.__exit__(None, None, None)
        catalog.close()


def _damaged_catalog(error: Exception) -> DamagedFile:
    return DamagedFile(FILE_NAME, str(error).partition("is damaged: ")[2].partition("; put back")[0] or str(error))


def _read(folder: Path, transaction: Transaction, *, is_salvaged: bool) -> FolderContent:
    files: list[DamagedFile] = []

    def attempt(read: Callable[[], T], default: D) -> T | D:
        try:
            return read()
        except _FAILURES as error:
            if _damaged_catalog(error) not in files:
                files.append(_damaged_catalog(error))
            return default

    attempt(transaction.check_integrity, None)
    state = attempt(transaction.state, None)
    if state is None:
        attempt(transaction.distrust_state, None)
    attempt(transaction.plan, None)
    encoder = attempt(transaction.encoder, (None, None)) if state is not None else (None, None)
    modes = attempt(transaction.modes, None)
    rows = attempt(transaction.segments, None)
    if modes is None or rows is None or (is_salvaged and not (modes and rows)):
        modes, rows = modes or modes_of_files(folder), rows or rows_of_files(folder)
    segments = {row.number: read_segment(folder, row, modes[row.mode]) for row in rows if row.mode in modes}
    files += (DamagedFile(each.row.file, each.problem) for each in segments.values() if each.problem)
    indexed: dict[int, str] = dict(attempt(transaction.slots_and_ids, None) or ())
    known = {slot for each in segments.values() for slot in each.slots.tolist()} | indexed.keys()
    found = dict(attempt(lambda: list(transaction.verified_passages(None)), None) or ())
    if not found:  # a page is damaged: passage by passage
        found = dict(transaction.verified_passages(sorted(known)))
    for slot, id in indexed.items():
        if slot not in found:
            found[slot] = (id, "it cannot be read")
        elif found[slot][0] != id:
            found[slot] = (id, "its id differs from what was written")
    slots = np.array(sorted(found), np.int64)
    attempt(lambda: transaction.check_found(slots), None)
    problems = {slot: problem for slot, (_, problem) in found.items() if problem}
    if problems:
        files.append(DamagedFile(FILE_NAME, f"{len(problems)} passages differ from what was written"))
    locations = {mode: _locate(mode, segments, slots) for mode in modes}
    ids = [found[slot][0] or indexed.get(slot) for slot in slots.tolist()]
    return FolderContent(transaction, encoder, modes, segments, slots, ids, problems, locations, files)


def _locate(mode: Mode, segments: Mapping[int, SegmentRows], slots: Longs) -> Location:
    """Find the newest embedding of each passage; none is taken that may be outdated."""
    own = [segments[number] for number in sorted(segments) if segments[number].row.mode == mode]
    numbers, rows = np.full(len(slots), -1, np.int64), np.full(len(slots), -1, np.int64)
    for each in own:
        positions = np.minimum(np.searchsorted(slots, each.slots), max(0, len(slots) - 1))
        known = np.flatnonzero(slots[positions] == each.slots) if len(slots) else positions[:0]
        targets = positions[known]
        rows[targets] = known
        numbers[targets] = np.where(each.is_intact[known], each.row.number, -1)
    last_unknown = max((each.row.number for each in own if each.has_unknown_rows), default=0)
    for each in own:
        current = numbers == each.row.number
        is_complete = int(np.count_nonzero(current)) <= each.row.rows - each.row.dead
        if each.row.number < last_unknown and not is_complete:  # rows that are unknown replaced some of these
            numbers[current] = -1
    return Location(numbers, rows)

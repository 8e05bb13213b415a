"""Rows of a segment that may be damaged: which are intact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.core.errors import DamagedFolder, IndexFolderError
from m3_integrations.core.files import checksum
from m3_integrations.index.local.array_file import MappedArrays, map_arrays
from m3_integrations.index.local.catalog import SEGMENT_NAME, ModeConfig, SegmentRow
from m3_integrations.index.local.segments import Longs, Segment, find_segment, map_segment, row_checksums
from m3_integrations.index.quantization.codecs import PRECISIONS, make_codec

_ROW_SECTIONS = {"slots", "written", "offsets"}
_DERIVED_OF_FLOATS = {"numbers", "scales"}
_NO_ROWS = np.empty(0, np.int64)


class SegmentRows(NamedTuple):
    """The rows of a segment.

    Attributes:
        row: Its row in the catalog.
        problem: What is wrong with its file; empty if it is intact.
        segment: The segment, whose blocks are not verified; None if it cannot be read.
        slots: Slot of each row that has a known one; -1 for other rows.
        is_intact: Whether each row is intact.
    """

    row: SegmentRow
    problem: str
    segment: Segment | None
    slots: Longs
    is_intact: npt.NDArray[np.bool_]

    @property
    def has_unknown_rows(self) -> bool:
        """Whether it has rows of unknown passages."""
        return self.segment is None or bool((self.slots < 0).any())


def read_segment(folder: Path, row: SegmentRow, config: ModeConfig) -> SegmentRows:
    """Read a segment block by block, and row by row if a block is damaged.

    Args:
        folder: The index folder.
        row: The segment in the catalog.
        config: How its mode is stored.

    Raises:
        FileNotFoundError: If its file is missing.
        IndexFolderError: If a newer version wrote it.
    """
    path = find_segment(folder, row.file)
    try:
        is_as_written = checksum(path) == row.checksum
        arrays, problem = _map(path, row.length)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        return SegmentRows(row, f"cannot be read ({error.strerror})", None, _NO_ROWS, _NO_ROWS.astype(bool))
    except DamagedFolder as error:
        return SegmentRows(row, _problem(error, path), None, _NO_ROWS, _NO_ROWS.astype(bool))
    segment = Segment(row.mode, config.width, path, arrays.without_checksums(), config.codec)
    if is_as_written:
        try:
            map_segment(path, row.mode, config.width, row.length, config.codec).take(np.arange(len(segment)))
        except DamagedFolder as error:
            return SegmentRows(row, _problem(error, path), None, _NO_ROWS, _NO_ROWS.astype(bool))
        return SegmentRows(row, "", segment, segment.slots, np.ones(len(segment), bool))
    return _read_damaged(row, segment, arrays, problem)


def modes_of_files(folder: Path) -> dict[Mode, ModeConfig]:
    """Return how each mode is stored, as the segments state it, for a catalog that does not."""
    modes: dict[Mode, ModeConfig] = {}
    for _, arrays in _readable_segments(folder):
        mode, width, precision = (arrays.about.get(name) for name in ("mode", "width", "precision"))
        with suppress(DamagedFolder):
            if mode in MODES and isinstance(width, int) and precision in PRECISIONS:
                codec = make_codec(precision, arrays["center"]) if "center" in arrays else None
                modes[mode] = ModeConfig(width, codec)
    return {mode: modes[mode] for mode in MODES if mode in modes}


def rows_of_files(folder: Path) -> list[SegmentRow]:
    """Return the segments in a folder as rows of a catalog, for a catalog that does not have them."""
    rows = []
    for path, arrays in _readable_segments(folder):
        mode = arrays.about.get("mode")
        if mode in MODES and "slots" in arrays:
            count = len(arrays.unverified("slots"))
            number = int(path.name.split("-")[1])
            rows.append(SegmentRow(number, mode, path.name, path.stat().st_size, "", count, count))
    return sorted(rows)


def _readable_segments(folder: Path) -> Iterator[tuple[Path, MappedArrays]]:
    for path in sorted(folder.iterdir()):
        if SEGMENT_NAME.fullmatch(path.name):
            with suppress(DamagedFolder, OSError):
                yield path, _map(path, path.stat().st_size)[0]


def _map(path: Path, length: int) -> tuple[MappedArrays, str]:
    """Map a file by its table or the copy, without checksums of blocks if need be; return what is wrong with it too."""
    first: DamagedFolder | None = None
    for unverified in (False, True):
        for by_copy in (False, True):
            try:
                arrays = map_arrays(path, length, by_copy=by_copy, unverified=unverified)
                return arrays, _problem(first, path) if first else ""
            except DamagedFolder as error:
                first = first or error
    assert first is not None
    raise first


def _read_damaged(row: SegmentRow, segment: Segment, arrays: MappedArrays, problem: str) -> SegmentRows:
    rows = row.rows
    damaged = {name: arrays.damaged_blocks(name) for name in arrays}
    blocks = sorted(block for of_array in damaged.values() for block in of_array)
    if blocks:
        problem = f"differs from what was written in {_spans(blocks)}"
    elif "row_checks" not in arrays:  # of an earlier format
        return SegmentRows(row, "differs from what was written", segment, segment.slots[:rows], np.zeros(rows, bool))
    elif not problem and row.checksum:
        problem = "differs from what was written outside of its sections"
    if len(segment) != rows:
        return SegmentRows(row, problem, None, _NO_ROWS, _NO_ROWS.astype(bool))
    if arrays.has_checksums and not any(damaged[name] for name in _row_sections(segment)):
        return SegmentRows(row, problem, segment, segment.slots, np.ones(rows, bool))
    raw = {name: segment.arrays[name] for name in segment.arrays}
    return SegmentRows(row, problem, segment, *_verify_rows(arrays, raw, damaged))


def _verify_rows(
    arrays: MappedArrays, raw: Mapping[str, npt.NDArray[Any]], damaged: Mapping[str, list[tuple[int, int]]]
) -> tuple[Longs, npt.NDArray[np.bool_]]:
    """Return the slot of each row, -1 if it is unknown, and whether the row is intact."""
    rows = len(raw["slots"])
    slots, is_intact = np.full(rows, -1, np.int64), np.zeros(rows, bool)
    for name in ("slots_copy", "slots"):
        if name in raw and len(raw[name]) == rows:
            has_slot = row_checksums({**raw, "slots": raw[name]}, range(rows)) == raw["row_checks"]
            is_intact |= has_slot
            if arrays.has_checksums:
                has_slot |= ~_in_blocks(arrays, name, damaged[name])
            slots[has_slot] = raw[name][has_slot]
    return slots, is_intact


def _row_sections(segment: Segment) -> set[str]:
    """Return the sections with the rows themselves; the others are derived from them."""
    names = {*_ROW_SECTIONS, *(("columns", "weights") if segment.mode == "sparse" else ("values", "numbers", "scales"))}
    return (names - _DERIVED_OF_FLOATS if segment.codec is None else names) & set(segment.arrays)


def _in_blocks(arrays: MappedArrays, name: str, blocks: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Return which elements of an array are in some blocks."""
    array, start = arrays.unverified(name), arrays.offset(name)
    inside = np.zeros(len(array), bool)
    for begin, end in blocks:
        inside[(begin - start) // array.itemsize : -(-(end - start) // array.itemsize)] = True
    return inside


def _spans(blocks: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"bytes {begin} to {end}" for begin, end in blocks[:3])
    return shown if len(blocks) <= 3 else f"{shown} and {len(blocks) - 3} more blocks"


def _problem(error: IndexFolderError, path: Path) -> str:
    return str(error).removeprefix(f"{path} ").partition("; the index in that folder")[0]

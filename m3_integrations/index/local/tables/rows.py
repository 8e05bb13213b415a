"""Rows of the catalog as values; each is validated when it is read."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3_integrations.core.encoded import MODES, Array, Mode
from m3_integrations.core.errors import DamagedFolder, IndexFolderError, M3Error
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.index.local.tables.checks import (
    CatalogChecks,
    add_sums,
    find_row_fault,
    is_content,
    is_id,
    sum_ids,
    sum_slots,
)
from m3_integrations.index.quantization.codecs import PRECISIONS, Codec, make_codec
from m3_integrations.index.records import from_json, hash_content

FILE_NAME = "catalogue.sqlite"
SEGMENT_NAME = re.compile(r"(dense|sparse|multi_vector)-[0-9]{8,19}-[0-9a-f]{16}\.segment", re.ASCII)
_MAX_SEGMENT_NUMBER = 1 << 31


class State(NamedTuple):
    """The row changed by every commit.

    Attributes:
        generation: Number of the last commit.
        next_slot: Slot of the next passage.
        forgotten: Generation up to which tombstones are purged.
    """

    generation: int
    next_slot: int
    forgotten: int


class SegmentRow(NamedTuple):
    """A segment in the catalog.

    Attributes:
        number: Of two segments with the same slot, the higher number is current.
        mode: The mode of its embeddings.
        file: Name of its file.
        length: Length of the file in bytes.
        checksum: SHA-256 of the file.
        rows: Number of rows.
        dead: Number of rows that are no longer current.
    """

    number: int
    mode: Mode
    file: str
    length: int
    checksum: str
    rows: int
    dead: int


class ModeConfig(NamedTuple):
    """How one mode is stored: its width, and its codec; None for float32."""

    width: int
    codec: Codec | None


def damaged_catalog_error(problem: str, folder: Path | None = None) -> DamagedFolder:
    """Return the error for a damaged catalog."""
    return DamagedFolder(
        f"{FILE_NAME}{f' in {folder}' if folder else ''} is damaged: {problem}; put back a copy of the whole folder, "
        "or add the passages to a new one"
    )


def to_bytes(text: str) -> bytes:
    """Encode a text as stored; lone surrogates are preserved."""
    return text.encode("utf-8", "surrogatepass")


def parse_text(data: Any) -> str:
    try:
        return str(bytes.decode(data, "utf-8", "surrogatepass"))
    except (TypeError, UnicodeDecodeError) as error:
        raise damaged_catalog_error(f"{data!r} is not a text") from error


def verify_row(row: Any) -> tuple[str | None, str]:
    """Return the id of a passage, if it can be read, and what is wrong with the passage."""
    slot, id, _, metadata, hash, checks = row
    try:
        passage_id = checked_id(slot, id, checks)
    except (DamagedFolder, TypeError):
        return None, "its id differs from what was written"
    try:
        parse_passage(row)
        fault = find_row_fault(slot, id, metadata, hash, checks)
    except (DamagedFolder, TypeError):
        return passage_id, "its text or metadata differs from what was written"
    return passage_id, f"its {fault} differs from what was written" if fault else ""


def checked_id(slot: int, id: Any, checks: Any) -> str:
    text = parse_text(id)
    if not is_id(slot, id, checks):
        raise damaged_catalog_error(f"the id of slot {slot} differs from what was written")
    return text


def checked_hash(slot: int, hash: Any, checks: Any) -> str:
    if not is_content(slot, hash, checks):
        raise damaged_catalog_error(f"the content hash of slot {slot} differs from what was written")
    return str(hash)


def unpack_checks(stored: Any) -> CatalogChecks:
    try:
        return CatalogChecks.unpack(stored)
    except (struct.error, TypeError) as error:
        raise damaged_catalog_error("its checksums differ from what was written") from error


def updated_members(
    before: CatalogChecks, added: Sequence[tuple[int, bytes]], removed: Sequence[tuple[int, bytes]]
) -> list[int]:
    """Return number of passages, sum of slots and sum of ids after a write."""
    sums = []
    for rows in (added, removed):
        sums.append((len(rows), sum_slots(np.array([slot for slot, _ in rows], np.int64)), sum_ids(rows)))
    return [add_sums(old, new, -gone) for old, new, gone in zip(before[:3], *sums, strict=True)]


def _parse_metadata(data: Any) -> dict[str, Any]:
    try:
        metadata = from_json(data)
    except (AttributeError, ValueError, RecursionError) as error:
        raise damaged_catalog_error(f"metadata is not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise damaged_catalog_error(f"metadata is not a JSON object: {metadata!r}")
    return metadata


def parse_all_metadata(data: Sequence[Any]) -> list[dict[str, Any]]:
    """Parse all by one call of the JSON parser, in half the time of one call each."""
    try:
        parsed = from_json(b"[" + b",".join(data) + b"]")
    except (TypeError, ValueError, RecursionError):
        parsed = []
    is_valid = len(parsed) == len(data) and all(isinstance(item, dict) for item in parsed)
    return parsed if is_valid else [_parse_metadata(item) for item in data]


def parse_passage(row: Any) -> Passage:
    slot, id, text, metadata, hash, checks = row
    try:
        passage = Passage(checked_id(slot, id, checks), parse_text(text), _parse_metadata(metadata))
    except ValueError as error:
        raise damaged_catalog_error(str(error)) from error
    if hash_content(passage.text, passage.metadata) != hash:
        raise damaged_catalog_error(f"the text or metadata of passage {passage.id!r} differs from what was written")
    return passage


def parse_plan(data: Any) -> SearchPlan:
    try:
        return SearchPlan.from_json(json.loads(data))
    except (TypeError, ValueError, AttributeError, RecursionError, M3Error) as error:
        raise damaged_catalog_error(f"the search plan cannot be read ({error})") from error


def parse_mode(mode: Any, width: Any, precision: Any, center: Any = None) -> ModeConfig:
    if mode not in MODES or precision not in PRECISIONS or (mode != "multi_vector" and precision != "float32"):
        raise newer_format_error(f"{mode} vectors stored as {precision}")
    if parse_integer(width) < 0:
        raise damaged_catalog_error(f"{mode} vectors have width {width}")
    return ModeConfig(width, None if precision == "float32" else make_codec(precision, _center(center, width)))


def _center(data: Any, width: int) -> Array:
    if not isinstance(data, bytes) or len(data) != 4 * width:
        raise damaged_catalog_error(f"the center of vectors of width {width} has another width")
    center = np.frombuffer(data, "<f4")
    if not np.isfinite(center).all():
        raise damaged_catalog_error("the center of the vectors is not finite")
    return center


def parse_segment(row: Any) -> SegmentRow:
    number, mode, file, length, digest, rows, dead = row
    if not (is_segment_name(file) and file.startswith(f"{mode}-")):
        raise damaged_catalog_error(f"a segment has the name {file!r}")
    if not 0 < number < _MAX_SEGMENT_NUMBER:
        raise damaged_catalog_error(f"a segment has the number {number}")
    return SegmentRow(number, mode, file, parse_integer(length), str(digest), parse_integer(rows), parse_integer(dead))


def is_segment_name(file: Any) -> bool:
    return isinstance(file, str) and SEGMENT_NAME.fullmatch(file) is not None


def parse_integer(value: Any) -> int:
    if not isinstance(value, int):
        raise damaged_catalog_error(f"{value!r} is not an integer")
    return value


def newer_format_error(what: str) -> IndexFolderError:
    return IndexFolderError(f"the folder has {what}, which this version cannot read; install a newer m3-integrations")

"""Stored passages: JSON-normalized metadata and content hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np

from m3_integrations.core.types import Passage

_MAX_DEPTH = 100  # of metadata: Python's JSON parser recurses
_MAX_INTEGER_BITS = 14_000  # Python neither writes nor reads integers of more than 4,300 digits


@dataclass(frozen=True, slots=True)
class PassageRecord:
    """A passage with JSON metadata, and its content hash."""

    id: str
    text: str
    metadata: dict[str, Any]
    hash: str

    @classmethod
    def from_passage(cls, passage: Passage) -> PassageRecord:
        """Normalize the metadata of a passage and hash its content.

        Raises:
            ValueError: If the metadata is not JSON; the message names the passage and the key.
        """
        metadata = _json_metadata(passage)
        return cls(passage.id, passage.text, metadata, hash_content(passage.text, metadata))

    def to_passage(self) -> Passage:
        """Return the passage, with a copy of the metadata."""
        return Passage(self.id, self.text, _json_object(self.metadata, "", _MAX_DEPTH))


def to_records(passages: Sequence[Passage]) -> list[PassageRecord]:
    """Convert passages to records; see `PassageRecord.from_passage`."""
    return [PassageRecord.from_passage(passage) for passage in passages]


def content_hash(passage: Passage) -> str:
    """Hash the text and metadata of a passage, independent of its id and of the order of keys.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        ValueError: If the metadata is not JSON; the message names the passage and the key.
    """
    return hash_content(passage.text, _json_metadata(passage))


def to_json(value: Any) -> bytes:
    """Serialize to JSON as UTF-8; lone surrogates are preserved."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def from_json(data: bytes) -> Any:
    """Parse the output of `to_json`.

    Raises:
        ValueError: If `data` is not such output.
    """
    text = data.decode("utf-8", "surrogatepass")
    try:
        return json.loads(text)
    except RecursionError:  # perhaps of the caller: a new thread has all frames
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(json.loads, text).result()


def hash_content(text: str, metadata: Mapping[str, Any]) -> str:
    """Hash a text and JSON metadata; see `content_hash`."""
    canonical = json.dumps([text, metadata], ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def json_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of metadata in JSON types; numpy scalars become Python numbers.

    Raises:
        ValueError: If a value is not JSON; the message names the key and the value.
    """
    try:
        return _json_object(metadata, "", _MAX_DEPTH)
    except RecursionError:
        raise ValueError(f"its metadata contains itself or is nested more than {_MAX_DEPTH} deep; flatten it") from None


def _json_metadata(passage: Passage) -> dict[str, Any]:
    try:
        return json_metadata(passage.metadata)
    except ValueError as error:
        raise ValueError(f"passage {passage.id!r}: {error}") from None


def _json_object(mapping: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
    return {
        _key(key, path): _to_json_value(value, f"{path}.{key}" if path else key, depth)
        for key, value in mapping.items()
    }


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        location = f" {path!r}" if path else ""
        raise ValueError(f"keys of metadata{location} must be strings, got {key!r}; convert it with str()")
    return str(key)


def _to_json_value(value: Any, path: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        if value.bit_length() > _MAX_INTEGER_BITS:
            raise ValueError(f"metadata {path!r} is an integer of {value.bit_length()} bits; use a float or a string")
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, np.generic) and isinstance(value.item(), (bool, int, float)) and value.dtype.kind not in "mM":
        return _to_json_value(value.item(), path, depth)
    if isinstance(value, (Mapping, list, tuple)) and not depth:
        raise ValueError(f"metadata {path[:40]!r}... is nested more than {_MAX_DEPTH} deep; flatten it")
    if isinstance(value, Mapping):
        return _json_object(value, path, depth - 1)
    if isinstance(value, (list, tuple)):
        return [_to_json_value(item, f"{path}[{i}]", depth - 1) for i, item in enumerate(value)]
    raise ValueError(f"metadata {path!r} is {value!r}, which is not JSON; {_hint(value)}")


def _hint(value: Any) -> str:
    return next((hint for kinds, hint in _HINTS if isinstance(value, kinds)), _DEFAULT_HINT)


_DEFAULT_HINT = "use a string, a number, True, False, None, or a list or dict of these"
_HINTS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (datetime, "use value.isoformat(), after value.astimezone(UTC) if it has a time zone, which filters compare"),
    ((date, time), "use value.isoformat(), which filters compare"),
    (float, "use None, or omit the key"),
    (Decimal, "use float(value), or str(value) to keep every digit"),
    ((PurePath, UUID), "use str(value)"),
    (Enum, "use value.value"),
    ((set, frozenset), "use sorted(value)"),
    ((np.datetime64, np.timedelta64), "use str(value)"),
    ((np.ndarray, np.generic), "use value.tolist()"),
)

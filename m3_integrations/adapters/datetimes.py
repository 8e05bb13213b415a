"""Datetimes in metadata to JSON and back: ISO 8601 text, with the kind of each stored in the metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import date, datetime, time, timedelta, timezone
from typing import Any, TypeAlias

from m3_integrations.index.datetimes import KINDS, kind_of, to_isoformat

TIMES = "_times"
_Path: TypeAlias = tuple[str | int, ...]


def serialize_datetimes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Convert dates and times to ISO 8601, and list their kinds and paths under "_times".

    Datetimes with a time zone are converted to UTC, so that filters compare instants; the entry of each keeps its
    offset from UTC in seconds.

    Raises:
        ValueError: If the metadata has a key "_times" of its own, contains itself, or holds an invalid time such as
            pandas' NaT; the message names its key.
    """
    if TIMES in metadata:
        raise ValueError(
            f"the metadata key {TIMES!r} is reserved for the kinds of its dates and times; give yours another name"
        )
    try:
        times = [_entry(value, path) for value, path in _times(metadata)]
        serialized: dict[str, Any] = to_isoformat(metadata)
    except RecursionError:
        raise ValueError("the metadata contains itself, or is nested too deeply") from None
    return {**serialized, TIMES: times} if times else serialized


def restore_datetimes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `serialize_datetimes`; a time zone is restored as its offset from UTC.

    Text that is no date or time is returned as text, so that stored metadata can always be read.
    """
    restored = deepcopy({key: value for key, value in metadata.items() if key != TIMES})
    for entry in metadata.get(TIMES) or ():
        with suppress(ValueError, TypeError, LookupError, OverflowError):
            _restore(restored, *entry)
    return restored


def _entry(value: date | time, path: _Path) -> list[Any]:
    """Return the kind and path of a date or time, and the offset of a datetime outside UTC."""
    try:
        to_isoformat(value)
    except ValueError as error:
        raise ValueError(f"metadata {_to_name(path)!r}: {error}") from None
    offset = value.utcoffset() if isinstance(value, datetime) else None
    return [kind_of(value), list(path), *([offset.total_seconds()] if offset else [])]


def _restore(metadata: Any, kind: str, path: Sequence[str | int], offset: float | None = None) -> None:
    *steps, last = path
    for step in steps:
        metadata = metadata[step]
    value = KINDS[kind].fromisoformat(metadata[last])
    if offset is not None and isinstance(value, datetime):
        value = value.astimezone(timezone(timedelta(seconds=offset)))
    metadata[last] = value


def _times(value: Any, *path: str | int) -> Iterator[tuple[date | time, _Path]]:
    """Yield each date and time in a value, and its path of keys and positions."""
    if isinstance(value, (date, time)):
        yield value, path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _times(inner, *path, key)
    elif isinstance(value, (list, tuple)):
        for position, inner in enumerate(value):
            yield from _times(inner, *path, position)


def _to_name(path: _Path) -> str:
    """Return a path as messages name it: "author.born" or "visits[2]"."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")

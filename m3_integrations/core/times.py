"""Dates and times in metadata, which JSON cannot say: kept as text, and what they were beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import date, datetime, time
from typing import Any

TIMES = "_times"
_KINDS: Mapping[str, type[date] | type[time]] = {"datetime": datetime, "date": date, "time": time}


def times_as_text(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with every date and time as ISO 8601, and under "_times" their kinds and where they stand.

    Filters compare them as text, which sorts as they do while all are of one time zone.
    Raises ValueError where the metadata has a "_times" of its own, or holds itself.
    """
    if TIMES in metadata:
        raise ValueError(
            f"the metadata key {TIMES!r} is kept for what its dates and times were; give yours another name"
        )
    try:
        times = [[kind, path] for kind, path in _times(metadata)]
        said: dict[str, Any] = as_text(metadata)
    except RecursionError:
        raise ValueError("the metadata holds itself, or is nested too deeply") from None
    return {**said, TIMES: times} if times else said


def times_restored(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What `times_as_text` was given: a time zone comes back as its distance from UTC."""
    restored = deepcopy({key: value for key, value in metadata.items() if key != TIMES})
    for kind, path in metadata.get(TIMES, ()):
        *steps, last = path
        place: Any = restored
        for step in steps:
            place = place[step]
        place[last] = _KINDS[kind].fromisoformat(place[last])
    return restored


def as_text(value: Any) -> Any:
    """A value whose dates and times, also those within lists and mappings, are ISO 8601."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: as_text(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_text(inner) for inner in value]
    return value


def _times(value: Any, *path: str | int) -> Iterator[tuple[str, list[str | int]]]:
    """The kind of each date and time in a value, and the keys and positions that lead to it."""
    if isinstance(value, (date, time)):
        yield next(kind for kind, each in _KINDS.items() if isinstance(value, each)), list(path)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _times(inner, *path, key)
    elif isinstance(value, (list, tuple)):
        for position, inner in enumerate(value):
            yield from _times(inner, *path, position)

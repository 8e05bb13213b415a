"""Dates and times as ISO 8601 text; instants in UTC, so that text of any time zone compares as the instants do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any

KINDS: Mapping[str, type[date] | type[time]] = {"datetime": datetime, "date": date, "time": time}


def kind_of(value: date | time) -> str:
    """Return the name in `KINDS` of a date, a time, or both."""
    return next(kind for kind, each in KINDS.items() if isinstance(value, each))


def to_isoformat(value: Any) -> Any:
    """Convert dates and times to ISO 8601, also inside lists and mappings; other values are unchanged.

    Datetimes with a time zone are converted to UTC.

    Raises:
        ValueError: If a value is no valid time, such as pandas' NaT.
    """
    if isinstance(value, (date, time)):
        return _to_standard(value).isoformat()
    if isinstance(value, Mapping):
        return {key: to_isoformat(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_isoformat(inner) for inner in value]
    return value


def _to_standard(value: date | time) -> date | time:
    """Convert a date or time, possibly of a subclass, to the standard library's, and an instant to UTC."""
    try:
        standard = KINDS[kind_of(value)].fromisoformat(value.isoformat())
        return standard.astimezone(UTC) if isinstance(standard, datetime) and standard.tzinfo else standard
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is no date or time in the years 1 to 9999; use None") from None

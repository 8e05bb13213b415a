"""Metadata fields of an index and their values, for filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from m3_integrations.index import Index

MAX_PASSAGES = 20_000  # read for the listing; of a larger index, evenly spaced ones by id
MAX_FIELDS = 50
MAX_DISTINCT = 1000  # values of a field that are counted
LONGEST = 100  # characters of a value
_AT_ONCE = 1000


class FieldValues:
    """Values of one field, counted."""

    def __init__(self) -> None:
        self.passages = 0
        self._counts: Counter[Any] = Counter()
        self._is_list = False
        self._has_more = False

    def add(self, value: Any) -> None:
        """Count the value of a passage; of a list, each item."""
        self.passages += 1
        self._is_list |= isinstance(value, list)
        for each in value if isinstance(value, list) else [value]:
            self._add_one(each)

    def _add_one(self, value: Any) -> None:
        key = (type(value).__name__, value) if isinstance(value, (str, int, float, bool)) else None
        is_short = not isinstance(value, str) or len(value) <= LONGEST
        if key is None or not is_short or (key not in self._counts and len(self._counts) == MAX_DISTINCT):
            self._has_more = True
        else:
            self._counts[key] += 1

    def to_json(self, name: str, most: int) -> dict[str, Any]:
        """Describe the field with its most frequent values, the least and the greatest number."""
        numbers = [value for kind, value in self._counts if kind in ("int", "float")]
        ranked = sorted(self._counts.items(), key=lambda each: (-each[1], str(each[0][1])))[:most]
        return {
            "name": name,
            "passages": self.passages,
            "kind": "number" if numbers and len(numbers) == len(self._counts) else "value",
            "is_list": self._is_list,
            "min": min(numbers, default=None),
            "max": max(numbers, default=None),
            "values": [{"value": value, "passages": count} for (_, value), count in ranked],
            "has_more": self._has_more or len(self._counts) > most,
        }


def list_fields(index: Index, most: int) -> list[dict[str, Any]]:
    """List the metadata fields of an index, those of most passages first.

    Args:
        index: The index.
        most: Number of values of a field.
    """
    fields: dict[str, FieldValues] = {}
    for metadata in _metadata(index):
        for name, value in _flatten(metadata):
            fields.setdefault(name, FieldValues()).add(value)
    ranked = sorted(fields.items(), key=lambda each: (-each[1].passages, each[0]))[:MAX_FIELDS]
    return [values.to_json(name, most) for name, values in ranked]


def _metadata(index: Index) -> Iterator[Mapping[str, Any]]:
    ids = index.ids()
    chosen = ids[:: -(-len(ids) // MAX_PASSAGES)] if ids else []
    for start in range(0, len(chosen), _AT_ONCE):
        known = index.content_hashes(chosen[start : start + _AT_ONCE])  # some may be deleted meanwhile
        yield from (passage.metadata for passage in index.passages(sorted(known)))


def _flatten(metadata: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields, those of nested metadata by their dotted paths."""
    for name, value in metadata.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value

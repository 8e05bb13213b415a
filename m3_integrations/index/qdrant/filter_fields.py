"""Payload fields that make Qdrant filters mean what `Where` means.

Qdrant's own conditions match a list if any element matches, do not order strings, and do not compare floats for
equality. So each point carries its metadata a second time: as facts, keywords such as '"year" == 2020', and as fields
with a number or a string for range filters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FACTS = "facts"
FIELDS = "fields"
NUMBER, STRING = "number", "string"
CHUNK = 6  # bytes; 257 ** 6 < 2 ** 53, the integers that a float64 holds exactly
CHUNKS = 8
EXACT_BELOW = 2**53  # integers from here on are not exact in float64
_LONGEST_FACT = 100
STAND_IN = "\ufdd0"
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


class NotExpressible(Exception):
    """A filter that facts and fields cannot decide; the metadata itself is needed."""


def filter_keywords(metadata: Mapping[str, Any]) -> list[str]:
    """Return keywords for ==, in, contains and exists."""
    return sorted({fact for name, value in named(metadata) for fact in _facts_of(name, value)})


def ordered_fields(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return ordered values by `field_key`: {"number": 2.0}, or {"string": "en", "c0": ...}."""
    return {field_key(name): parts for name, value in named(metadata) if (parts := _comparable(value))}


def exists(name: str) -> str:
    """Return the keyword of a field that exists."""
    return _fact(name, "exists", "")


def equal(name: str, value: Any) -> str:
    """Return the keyword of equality.

    Raises:
        NotExpressible: If the value is not JSON.
    """
    return _fact(name, "==", canonical(value))


def contains(name: str, element: Any) -> str:
    """Return the keyword of a list that holds this element.

    Raises:
        NotExpressible: If the element is not JSON.
    """
    return _fact(name, "has", canonical(element))


def field_key(name: str) -> str:
    """Return a key without dots or quotes; two names never share one."""
    return name if _PLAIN.fullmatch(name) else f"_{_digest(name)}"


def chunks(text: str) -> list[float]:
    """Convert the first 48 bytes of a string to integers of six bytes each that sort as the string does."""
    data = text.encode("utf-8", "surrogatepass")[: CHUNK * CHUNKS]
    starts = range(0, min(len(data) + 1, CHUNK * CHUNKS), CHUNK)
    return [float(_chunk(data[start : start + CHUNK])) for start in starts]


def named(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every name that `look_up` resolves, with its value."""
    found = dict(_nested(metadata))
    found.update(metadata)  # a key with dots takes precedence over a path
    yield from found.items()


def canonical(value: Any) -> str:
    """Return equal strings for equal metadata values only: 1 and 1.0 are equal, 1 and True are not."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _to_canonical(list(value)) if isinstance(value, tuple) else _to_canonical(value)


def is_valid_unicode(text: str) -> bool:
    """Return whether a string has no lone surrogates."""
    return _SURROGATE.search(text) is None


def searchable(text: str) -> str:
    """Replace lone surrogates by a character that no text holds, for substring search."""
    return _SURROGATE.sub(STAND_IN, text)


def _nested(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in metadata.items():
        if "." not in key and isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", each) for inner, each in named(value))


def _facts_of(name: str, value: Any) -> Iterator[str]:
    yield exists(name)
    yield equal(name, value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        yield from (contains(name, element) for element in value)


def _fact(name: str, relation: str, value: str) -> str:
    fact = f"{_quoted(name)} {relation} {value}"
    return fact if len(fact) <= _LONGEST_FACT else f"#{_digest(fact)}"


def _to_canonical(value: Any) -> str:
    # Inside lists and dicts Python's equality decides, for which True is 1.
    if value is None:
        return "null"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (bool, int, float)):
        return str(int(value)) if value == value and abs(value) != float("inf") and value == int(value) else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(_to_canonical, value))}]"
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return "{" + ",".join(f"{_quoted(key)}:{_to_canonical(value[key])}" for key in sorted(value)) + "}"
    raise NotExpressible


def _quoted(text: str) -> str:
    return json.dumps(text) if is_valid_unicode(text) else f"#{_digest(text)}"


def _comparable(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {STRING: searchable(value)} | {f"c{i}": chunk for i, chunk in enumerate(chunks(value))}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {NUMBER: _nearest(value)}
    return {}


def _nearest(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer beyond float64 keeps its order
        return 1.7976931348623157e308 if number > 0 else -1.7976931348623157e308


def _chunk(data: bytes) -> int:
    number = 0
    for i in range(CHUNK):
        number = number * 257 + (data[i] + 1 if i < len(data) else 0)
    return number


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

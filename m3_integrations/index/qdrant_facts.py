"""What Qdrant can compare of metadata, so that its filters mean what `Where` means.

Qdrant's own conditions take a list as each of its elements, know no order of strings and no equality of floats. So each
point carries its metadata once more: as facts, short strings such as '"year" == 2020', to be matched as keywords, and
as fields, with a number or a string each, to be compared.
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
CHUNK = 6  # 257 ** 6 < 2 ** 53: six bytes, and whether they are there, in the whole numbers that a float64 holds
CHUNKS = 8
EXACT_BELOW = 2**53  # from here on a float64 takes several whole numbers for one
_LONGEST_FACT = 100
STAND_IN = "\ufdd0"
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


class Undecidable(Exception):
    """What Qdrant cannot decide by facts and fields: only the metadata itself can tell."""


def facts(metadata: Mapping[str, Any]) -> list[str]:
    """Everything that can be asked with ==, in, contains and exists, as keywords."""
    return sorted({fact for name, value in named(metadata) for fact in _facts_of(name, value)})


def fields(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Everything that has an order, by `field_key`: {"number": 2.0}, or {"string": "en", "c0": ...}."""
    return {field_key(name): said for name, value in named(metadata) if (said := _comparable(value))}


def exists(name: str) -> str:
    return _fact(name, "exists", "")


def equal(name: str, value: Any) -> str:
    """Raises Undecidable for a value that is not JSON."""
    return _fact(name, "==", canonical(value))


def holds(name: str, element: Any) -> str:
    """That a list has this element. Raises Undecidable for one that is not JSON."""
    return _fact(name, "has", canonical(element))


def field_key(name: str) -> str:
    """A name as a key without dots or quotes; two names never share one."""
    return name if _PLAIN.fullmatch(name) else f"_{_digest(name)}"


def chunks(text: str) -> list[float]:
    """A string as whole numbers that sort as it does: six bytes each, 0 where it has ended; the first eight of them."""
    said = text.encode("utf-8", "surrogatepass")[: CHUNK * CHUNKS]
    starts = range(0, min(len(said) + 1, CHUNK * CHUNKS), CHUNK)
    return [float(_chunk(said[start : start + CHUNK])) for start in starts]


def named(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every name that `look_up` finds something under, and what it finds."""
    found = dict(_nested(metadata))
    found.update(metadata)  # a key with dots comes before a path
    yield from found.items()


def canonical(value: Any) -> str:
    """Equal for values that are equal as metadata, and for no others: 1 and 1.0 are, 1 and True are not."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _say(list(value)) if isinstance(value, tuple) else _say(value)


def clean(text: str) -> bool:
    """Whether a string is one in every language that it may pass through."""
    return _SURROGATE.search(text) is None


def searchable(text: str) -> str:
    """A string to find parts in: each lone surrogate is the same character that no text holds."""
    return _SURROGATE.sub(STAND_IN, text)


def _nested(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in metadata.items():
        if "." not in key and isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", each) for inner, each in named(value))


def _facts_of(name: str, value: Any) -> Iterator[str]:
    yield exists(name)
    yield equal(name, value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        yield from (holds(name, element) for element in value)


def _fact(name: str, relation: str, said: str) -> str:
    fact = f"{_quoted(name)} {relation} {said}"
    return fact if len(fact) <= _LONGEST_FACT else f"#{_digest(fact)}"


def _say(value: Any) -> str:
    # Inside lists and dicts Python's own equality decides, where True is 1.
    if value is None:
        return "null"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, (bool, int, float)):
        return str(int(value)) if value == value and abs(value) != float("inf") and value == int(value) else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(_say, value))}]"
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return "{" + ",".join(f"{_quoted(key)}:{_say(value[key])}" for key in sorted(value)) + "}"
    raise Undecidable


def _quoted(text: str) -> str:
    return json.dumps(text) if clean(text) else f"#{_digest(text)}"


def _comparable(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {STRING: searchable(value)} | {f"c{i}": chunk for i, chunk in enumerate(chunks(value))}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {NUMBER: _nearest(value)}
    return {}


def _nearest(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number beyond every float64; they keep their order with it
        return 1.7976931348623157e308 if number > 0 else -1.7976931348623157e308


def _chunk(said: bytes) -> int:
    number = 0
    for i in range(CHUNK):
        number = number * 257 + (said[i] + 1 if i < len(said) else 0)
    return number


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

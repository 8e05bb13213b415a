"""Metadata filters (Where), with the same semantics in every index."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.index.datetimes import to_isoformat

Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains", "icontains", "exists"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
Scalar: TypeAlias = "str | int | float | bool | None"

MAX_DEPTH = 50  # each level takes some of Python's 1,000 frames
ABSENT = object()  # the value of a metadata field that does not exist


@dataclass(frozen=True, slots=True)
class Field:
    """One condition: `Field("year", ">=", 2020)`.

    A missing field matches only `!=`, `not in` and `("exists", False)`. Values of different kinds (a number and a
    string) are unequal and have no order, so `<`, `<=`, `>` and `>=` do not match. A list matches `==` if it equals the
    value, and `contains` if the value is one of its items; a string `contains` its substrings, and `icontains`
    those that differ only in case.

    Args:
        name: Metadata key. If there is no such key, dots lead into nested metadata ("author.name").
        operator: One of `OPERATORS`.
        value: Value to compare with: a list for `in` and `not in`, a number or a string for `<`, `<=`, `>` and `>=`,
            True or False for `exists`. Dates and times stand for their ISO 8601 text, in UTC if they have a time zone.

    Raises:
        UnsupportedFilter: If the operator is unknown or does not take the value.
    """

    name: str
    operator: Operator
    value: Any = True

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise UnsupportedFilter(f"unknown operator {self.operator!r}; the operators are {list(OPERATORS)}")
        try:
            object.__setattr__(self, "value", _to_json_types(self.name, self.value))
        except RecursionError:
            raise UnsupportedFilter(f"the filter on {self.name!r} has a value that is nested too deeply") from None
        if self.operator in ("in", "not in"):
            if isinstance(self.value, str) or not isinstance(self.value, (Sequence, set, frozenset)):
                raise UnsupportedFilter(f"{self.operator!r} takes a list of values, got {self.value!r}")
            object.__setattr__(self, "value", _ValueSet(self.value))
        if self.operator in ("<", "<=", ">", ">=") and not isinstance(self.value, (str, int, float)):
            raise UnsupportedFilter(f"{self.operator!r} compares with a number or a string, got {self.value!r}")
        if self.operator == "exists" and not isinstance(self.value, bool):
            raise UnsupportedFilter(f"'exists' takes True or False, got {self.value!r}")

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether metadata satisfies the condition.

        Args:
            metadata: Metadata of a passage.
        """
        return self.matches_value(look_up(metadata, self.name))

    def matches_value(self, value: Any) -> bool:
        """Return whether a value satisfies the condition; ABSENT if the field is missing.

        Args:
            value: Value of the field.
        """
        return _TESTS[self.operator](value, self.value)

    def fields(self) -> frozenset[str]:
        """Return the name of the field as a set."""
        return frozenset((self.name,))


@dataclass(frozen=True, slots=True)
class _Combination:
    """Several filters as one."""

    parts: tuple[Where, ...]
    depth: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inner = [part.depth for part in self.parts if isinstance(part, _Combination)]
        object.__setattr__(self, "depth", 1 + max(inner, default=0))

    def fields(self) -> frozenset[str]:
        """Return the names of all fields."""
        return frozenset[str]().union(*(part.fields() for part in self.parts))


class AllOf(_Combination):
    """Matches if every part matches; an empty one matches everything."""

    __slots__ = ()

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether metadata satisfies every part."""
        return all(part.matches(metadata) for part in self.parts)


class AnyOf(_Combination):
    """Matches if at least one part matches; an empty one matches nothing."""

    __slots__ = ()

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether metadata satisfies at least one part."""
        return any(part.matches(metadata) for part in self.parts)


class NoneOf(_Combination):
    """Matches if no part matches; an empty one matches everything."""

    __slots__ = ()

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether metadata satisfies no part."""
        return not any(part.matches(metadata) for part in self.parts)


Where: TypeAlias = Field | AllOf | AnyOf | NoneOf
"""A metadata filter: a `Field`, or a combination of filters."""


def all_of(*parts: Where) -> AllOf:
    """Match if every part matches; without parts, match everything.

    Args:
        parts: Filters.

    Returns:
        The combined filter.
    """
    return AllOf(parts)


def any_of(*parts: Where) -> AnyOf:
    """Match if at least one part matches; without parts, match nothing.

    Args:
        parts: Filters.

    Returns:
        The combined filter.
    """
    return AnyOf(parts)


def none_of(*parts: Where) -> NoneOf:
    """Match if no part matches; without parts, match everything.

    Args:
        parts: Filters.

    Returns:
        The combined filter.
    """
    return NoneOf(parts)


def equals(**values: Any) -> AllOf:
    """Match if every named field equals its value: `equals(language="de", year=2020)`."""
    return AllOf(tuple(Field(name, "==", value) for name, value in values.items()))


def too_deep_error() -> UnsupportedFilter:
    """Return the error for a filter that is nested too deeply to evaluate."""
    return UnsupportedFilter(
        f"the filter is nested more than {MAX_DEPTH} deep; pass all parts to one any_of(...) or all_of(...)"
    )


def check_depth(where: Where) -> None:
    """Raise UnsupportedFilter for a filter that is nested too deeply to evaluate."""
    if isinstance(where, _Combination) and where.depth > MAX_DEPTH:
        raise too_deep_error()


def look_up(metadata: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field by its key or dotted path; ABSENT if it is missing."""
    if name in metadata:
        return metadata[name]
    head, dot, rest = name.partition(".")
    inner = metadata.get(head) if dot else None
    return look_up(inner, rest) if isinstance(inner, Mapping) else ABSENT


def _equal(stored: Any, value: Any) -> bool:
    if isinstance(stored, bool) != isinstance(value, bool):
        return False  # unlike in Python, true is not 1 in JSON
    if isinstance(stored, (list, tuple)) and isinstance(value, (list, tuple)):
        return list(stored) == list(value)
    return bool(stored == value)


def _to_json_types(name: str, value: Any) -> Any:
    """Convert dates, times and numpy scalars, also inside a list or set."""
    if isinstance(value, (set, frozenset)):
        return {_to_json_types(name, item) for item in value}
    if isinstance(value, (list, tuple)):
        return [_to_json_types(name, item) for item in value]
    try:
        return to_isoformat(value.item() if isinstance(value, np.generic) else value)
    except ValueError as error:
        raise UnsupportedFilter(f"the filter on {name!r}: {error}") from None


class _ValueSet(tuple[Any, ...]):
    """Values of `in` and `not in`; scalars are hashed, since there may be thousands."""

    @cached_property
    def scalars(self) -> frozenset[tuple[bool, Any]]:
        return frozenset(_key(item) for item in self if _is_scalar(item))

    @cached_property
    def others(self) -> list[Any]:
        return [item for item in self if not _is_scalar(item)]


def _is_one_of(stored: Any, values: _ValueSet) -> bool:
    if _is_scalar(stored):
        return _key(stored) in values.scalars
    return any(_equal(stored, item) for item in values.others)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _key(scalar: Any) -> tuple[bool, Any]:
    return isinstance(scalar, bool), scalar


def _comparison(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(stored: Any, value: Any) -> bool:
        return _has_order(stored) and _kind(stored) == _kind(value) and compare(stored, value)

    return test


def _kind(value: Any) -> type:
    return str if isinstance(value, str) else float


def _has_order(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False
    return not (isinstance(value, float) and math.isnan(value))


def _contains(stored: Any, value: Any) -> bool:
    if isinstance(stored, str):
        return isinstance(value, str) and value in stored
    return isinstance(stored, (list, tuple)) and any(_equal(value, item) for item in stored)


def _icontains(stored: Any, value: Any) -> bool:
    return isinstance(stored, str) and isinstance(value, str) and value.lower() in stored.lower()


_TESTS: Mapping[Operator, Callable[[Any, Any], bool]] = {
    "==": lambda stored, value: stored is not ABSENT and _equal(stored, value),
    "!=": lambda stored, value: stored is ABSENT or not _equal(stored, value),
    "<": _comparison(lambda stored, value: stored < value),
    "<=": _comparison(lambda stored, value: stored <= value),
    ">": _comparison(lambda stored, value: stored > value),
    ">=": _comparison(lambda stored, value: stored >= value),
    "in": lambda stored, value: stored is not ABSENT and _is_one_of(stored, value),
    "not in": lambda stored, value: stored is ABSENT or not _is_one_of(stored, value),
    "contains": _contains,
    "icontains": _icontains,
    "exists": lambda stored, value: (stored is not ABSENT) == value,
}

"""Filters on metadata as a small tree of data, with one meaning for every index."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

from m3_integrations.core.errors import UnsupportedFilter

Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains", "exists"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
Scalar: TypeAlias = "str | int | float | bool | None"

ABSENT = object()


@dataclass(frozen=True, slots=True)
class Field:
    """One condition: `Field("year", ">=", 2020)`.

    name: a metadata key; where no such key is there, its dots go down into nested metadata ("author.name").
    A field that is absent passes only `!=`, `not in` and `("exists", False)`. Values of different kinds (a number and a
    string) are unequal and have no order: `<` and its kin fail. A list in the metadata passes `==` when it equals the
    value and `contains` when it holds it; a string `contains` its substrings.
    """

    name: str
    operator: Operator
    value: Any = True

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise UnsupportedFilter(f"{self.operator!r} is no operator; the operators are {list(OPERATORS)}")
        if self.operator in ("in", "not in"):
            if isinstance(self.value, str) or not isinstance(self.value, (Sequence, set, frozenset)):
                raise UnsupportedFilter(f"{self.operator!r} takes a list of values, got {self.value!r}")
            object.__setattr__(self, "value", _Choices(self.value))
        if self.operator in ("<", "<=", ">", ">=") and not isinstance(self.value, (str, int, float)):
            raise UnsupportedFilter(f"{self.operator!r} compares with a number or a string, got {self.value!r}")
        if self.operator == "exists" and not isinstance(self.value, bool):
            raise UnsupportedFilter(f"'exists' takes True or False, got {self.value!r}")

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return self.holds(look_up(metadata, self.name))

    def holds(self, value: Any) -> bool:
        """Whether the condition holds for this value of the field; ABSENT where the field is not there."""
        return _TESTS[self.operator](value, self.value)

    def fields(self) -> frozenset[str]:
        return frozenset((self.name,))


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds; true of no parts."""

    parts: tuple[Where, ...]

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return all(part.matches(metadata) for part in self.parts)

    def fields(self) -> frozenset[str]:
        return _fields(self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part holds; false of no parts."""

    parts: tuple[Where, ...]

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return any(part.matches(metadata) for part in self.parts)

    def fields(self) -> frozenset[str]:
        return _fields(self.parts)


@dataclass(frozen=True, slots=True)
class NoneOf:
    """No part holds; true of no parts."""

    parts: tuple[Where, ...]

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return not any(part.matches(metadata) for part in self.parts)

    def fields(self) -> frozenset[str]:
        return _fields(self.parts)


Where: TypeAlias = Field | AllOf | AnyOf | NoneOf


def all_of(*parts: Where) -> AllOf:
    return AllOf(parts)


def any_of(*parts: Where) -> AnyOf:
    return AnyOf(parts)


def none_of(*parts: Where) -> NoneOf:
    return NoneOf(parts)


def equals(**values: Any) -> AllOf:
    """Every named field equals its value: `equals(language="de", year=2020)`."""
    return AllOf(tuple(Field(name, "==", value) for name, value in values.items()))


def look_up(metadata: Mapping[str, Any], name: str) -> Any:
    """The value of a field, by its key or down a dotted path; ABSENT where there is none."""
    if name in metadata:
        return metadata[name]
    head, dot, rest = name.partition(".")
    inner = metadata.get(head) if dot else None
    return look_up(inner, rest) if isinstance(inner, Mapping) else ABSENT


def _fields(parts: Sequence[Where]) -> frozenset[str]:
    return frozenset[str]().union(*(part.fields() for part in parts))


def _equal(kept: Any, asked: Any) -> bool:
    if isinstance(kept, bool) != isinstance(asked, bool):
        return False  # JSON's true is not 1, though Python's is
    if isinstance(kept, (list, tuple)) and isinstance(asked, (list, tuple)):
        return list(kept) == list(asked)
    return bool(kept == asked)


class _Choices(tuple[Any, ...]):
    """Values to be one of, of which there may be thousands."""

    @cached_property
    def scalars(self) -> frozenset[tuple[bool, Any]]:
        return frozenset(_key(each) for each in self if _is_scalar(each))

    @cached_property
    def others(self) -> list[Any]:
        return [each for each in self if not _is_scalar(each)]


def _is_one_of(kept: Any, asked: _Choices) -> bool:
    if _is_scalar(kept):
        return _key(kept) in asked.scalars
    return any(_equal(kept, each) for each in asked.others)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _key(scalar: Any) -> tuple[bool, Any]:
    return isinstance(scalar, bool), scalar


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(kept: Any, asked: Any) -> bool:
        return _comparable(kept) and _kind(kept) == _kind(asked) and compare(kept, asked)

    return test


def _kind(value: Any) -> type:
    return str if isinstance(value, str) else float


def _comparable(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False
    return not (isinstance(value, float) and math.isnan(value))


def _contains(kept: Any, asked: Any) -> bool:
    if isinstance(kept, str):
        return isinstance(asked, str) and asked in kept
    return isinstance(kept, (list, tuple)) and any(_equal(asked, each) for each in kept)


_TESTS: Mapping[Operator, Callable[[Any, Any], bool]] = {
    "==": lambda kept, asked: kept is not ABSENT and _equal(kept, asked),
    "!=": lambda kept, asked: kept is ABSENT or not _equal(kept, asked),
    "<": _ordered(lambda kept, asked: kept < asked),
    "<=": _ordered(lambda kept, asked: kept <= asked),
    ">": _ordered(lambda kept, asked: kept > asked),
    ">=": _ordered(lambda kept, asked: kept >= asked),
    "in": lambda kept, asked: kept is not ABSENT and _is_one_of(kept, asked),
    "not in": lambda kept, asked: kept is ABSENT or not _is_one_of(kept, asked),
    "contains": _contains,
    "exists": lambda kept, asked: (kept is not ABSENT) == asked,
}

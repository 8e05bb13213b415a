"""`Where` as a filter of Qdrant, with the same meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import models

from m3_integrations.index.qdrant_facts import (
    CHUNK,
    CHUNKS,
    EXACT_BELOW,
    FACTS,
    FIELDS,
    NUMBER,
    STAND_IN,
    STRING,
    Undecidable,
    chunks,
    clean,
    equal,
    exists,
    field_key,
    holds,
)
from m3_integrations.index.where import AllOf, AnyOf, Field, Where

NOTHING = models.Filter(must=[models.HasIdCondition(has_id=[])])


def filter_of(where: Where) -> models.Filter:
    """Points that pass it, and no others.

    Raises Undecidable for what only the metadata can tell: the order of whole numbers from 2 ** 53 and of strings of 48
    bytes and more, parts of strings with lone surrogates, values that are not JSON.
    """
    if isinstance(where, Field):
        return _field(where)
    parts: list[Any] = [filter_of(part) for part in where.parts]
    if isinstance(where, AllOf):
        return models.Filter(must=parts)
    if isinstance(where, AnyOf):
        return models.Filter(should=parts) if parts else NOTHING
    return models.Filter(must_not=parts)


def _field(field: Field) -> models.Filter:
    name, value = field.name, field.value
    if field.operator in ("!=", "not in"):
        positive = Field(name, "==" if field.operator == "!=" else "in", value)
        return models.Filter(must_not=[_field(positive)])
    if field.operator == "exists":
        there = _any_fact([exists(name)])
        return there if value else models.Filter(must_not=[there])
    if field.operator == "==":
        return _any_fact([equal(name, value)])
    if field.operator == "in":
        return _any_fact([equal(name, each) for each in value])
    if field.operator == "contains":
        return models.Filter(should=[_any_fact([holds(name, value)]), *_substring(name, value)])
    return _strings(field) if isinstance(value, str) else _numbers(field)


def _any_fact(facts: Sequence[str]) -> models.Filter:
    if not facts:
        return NOTHING
    return models.Filter(must=[models.FieldCondition(key=FACTS, match=models.MatchAny(any=list(facts)))])


def _substring(name: str, value: Any) -> list[Any]:
    if not isinstance(value, str):
        return []
    if not clean(value) or STAND_IN in value:
        raise Undecidable
    return [models.FieldCondition(key=_key(name, STRING), match=models.MatchSubstring(substring=value))]


def _numbers(field: Field) -> models.Filter:
    if field.value != field.value:
        return NOTHING  # nothing is before or after what is no number
    if abs(field.value) >= EXACT_BELOW:
        raise Undecidable
    return models.Filter(must=[_range(_key(field.name, NUMBER), field.operator, float(field.value))])


def _strings(field: Field) -> models.Filter:
    """By the first chunk that differs."""
    if len(field.value.encode("utf-8", "surrogatepass")) >= CHUNK * CHUNKS:
        raise Undecidable
    strictly = field.operator[0]
    *before, last = [(_key(field.name, f"c{i}"), chunk) for i, chunk in enumerate(chunks(field.value))]
    found = models.Filter(must=[_range(last[0], field.operator, last[1])])
    for key, chunk in reversed(before):
        same = models.Filter(must=[_range(key, "==", chunk), found])
        found = models.Filter(should=[_range(key, strictly, chunk), same])
    return found


def _range(key: str, operator: str, value: float) -> models.FieldCondition:
    bounds = {
        "<": models.Range(lt=value),
        "<=": models.Range(lte=value),
        ">": models.Range(gt=value),
        ">=": models.Range(gte=value),
        "==": models.Range(gte=value, lte=value),
    }
    return models.FieldCondition(key=key, range=bounds[operator])


def _key(name: str, part: str) -> str:
    return f"{FIELDS}.{field_key(name)}.{part}"

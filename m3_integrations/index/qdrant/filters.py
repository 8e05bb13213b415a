"""`Where` to Qdrant filters of the same meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import models

from m3_integrations.index.filters import AllOf, AnyOf, Field, Where
from m3_integrations.index.qdrant.filter_fields import (
    CHUNK,
    CHUNKS,
    EXACT_BELOW,
    FACTS,
    FIELDS,
    NUMBER,
    STAND_IN,
    STRING,
    NotExpressible,
    chunks,
    contains,
    equal,
    exists,
    field_key,
    is_valid_unicode,
)

NOTHING = models.Filter(must=[models.HasIdCondition(has_id=[])])


def to_qdrant_filter(where: Where) -> models.Filter:
    """Translate a filter.

    Raises:
        NotExpressible: If only the metadata can decide: integers from 2 ** 53, order of strings from 48 bytes,
            substrings with lone surrogates or in any case, values that are not JSON.
    """
    if isinstance(where, Field):
        return _field(where)
    parts: list[Any] = [to_qdrant_filter(part) for part in where.parts]
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
        present = _match_any_keyword([exists(name)])
        return present if value else models.Filter(must_not=[present])
    if field.operator == "==":
        return _match_any_keyword([equal(name, value)])
    if field.operator == "in":
        return _match_any_keyword([equal(name, each) for each in value])
    if field.operator == "icontains":
        raise NotExpressible
    if field.operator == "contains":
        return models.Filter(should=[_match_any_keyword([contains(name, value)]), *_substring(name, value)])
    return _strings(field) if isinstance(value, str) else _numbers(field)


def _match_any_keyword(facts: Sequence[str]) -> models.Filter:
    if not facts:
        return NOTHING
    return models.Filter(must=[models.FieldCondition(key=FACTS, match=models.MatchAny(any=list(facts)))])


def _substring(name: str, value: Any) -> list[Any]:
    if not isinstance(value, str):
        return []
    if not is_valid_unicode(value) or STAND_IN in value:
        raise NotExpressible
    return [models.FieldCondition(key=_key(name, STRING), match=models.MatchSubstring(substring=value))]


def _numbers(field: Field) -> models.Filter:
    if field.value != field.value:
        return NOTHING  # NaN is neither less nor greater
    if abs(field.value) >= EXACT_BELOW:
        raise NotExpressible
    return models.Filter(must=[_range(_key(field.name, NUMBER), field.operator, float(field.value))])


def _strings(field: Field) -> models.Filter:
    """Compare by the first chunk that differs."""
    if len(field.value.encode("utf-8", "surrogatepass")) >= CHUNK * CHUNKS:
        raise NotExpressible
    strict = field.operator[0]
    *before, last = [(_key(field.name, f"c{i}"), chunk) for i, chunk in enumerate(chunks(field.value))]
    found = models.Filter(must=[_range(last[0], field.operator, last[1])])
    for key, chunk in reversed(before):
        same = models.Filter(must=[_range(key, "==", chunk), found])
        found = models.Filter(should=[_range(key, strict, chunk), same])
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

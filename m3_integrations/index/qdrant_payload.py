"""A passage as the payload of a Qdrant point, and back, to the letter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from m3_integrations.core.texts import Passage
from m3_integrations.index.entries import Entry, from_json, to_json
from m3_integrations.index.qdrant_facts import EXACT_BELOW, FACTS, FIELDS, clean, facts, fields

ID, TEXT, METADATA, HASH = "id", "text", "metadata", "hash"
PASSAGE = [ID, TEXT, METADATA]
_AS_JSON = "json:"
_SHORT = 15  # decimal digits that every parser reads as the float64 that was written


def point_id(id: str) -> str:
    """The id of a passage's point: the same wherever and whenever it is written. 122 bits and more of a hash."""
    return str(UUID(bytes=hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()))


def payload(entry: Entry) -> dict[str, Any]:
    """Id, text, metadata and content hash as anyone would write them, and what filters compare.

    What Qdrant might not give back to the letter (lone surrogates, numbers of many digits) is kept as a string that
    begins with 'json:'.
    """
    return {
        ID: _said(entry.id),
        TEXT: _said(entry.text),
        METADATA: entry.metadata if _survives(entry.metadata) else _as_json(entry.metadata),
        HASH: entry.hash,
        FACTS: facts(entry.metadata),
        FIELDS: fields(entry.metadata),
    }


def passage(kept: Mapping[str, Any]) -> Passage:
    metadata = kept[METADATA]
    return Passage(passage_id(kept), _heard(kept[TEXT]), _heard(metadata) if isinstance(metadata, str) else metadata)


def passage_id(kept: Mapping[str, Any]) -> str:
    id: str = _heard(kept[ID])
    return id


def _said(text: str) -> str:
    return text if clean(text) and not text.startswith(_AS_JSON) else _as_json(text)


def _heard(said: str) -> Any:
    return from_json(said[len(_AS_JSON) :].encode("latin-1")) if said.startswith(_AS_JSON) else said


def _as_json(value: Any) -> str:
    # Each byte as the letter of its number: JSON's own escapes would join two lone surrogates to one letter.
    return _AS_JSON + to_json(value).decode("latin-1")


def _survives(value: Any) -> bool:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return abs(value) < EXACT_BELOW
    if isinstance(value, float):
        return len(repr(abs(value)).replace(".", "")) <= _SHORT and "e" not in repr(value)
    if isinstance(value, dict):
        return all(clean(key) and _survives(each) for key, each in value.items())
    return all(map(_survives, value))

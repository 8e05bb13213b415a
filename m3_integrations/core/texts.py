"""What goes in: passages to keep, and queries to ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to be found, its id, and JSON-like metadata to filter by."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    def __post_init__(self) -> None:
        _require_id_and_text("Passage", self.id, self.text)


@dataclass(frozen=True, slots=True)
class Query:
    """A question, its id, and the passages that answer it: passage id -> grade."""

    id: str
    text: str
    relevant: Mapping[str, float] = field(default_factory=lambda: NOTHING)

    def __post_init__(self) -> None:
        _require_id_and_text("Query", self.id, self.text)


def _require_id_and_text(kind: str, id: object, text: object) -> None:
    if not isinstance(id, str) or not id:
        raise ValueError(f"{kind} ids are non-empty strings, got {id!r}; write {kind}(id={str(id) or 'doc-1'!r}, ...)")
    if not isinstance(text, str):
        raise ValueError(f"{kind} {id!r} needs a text, got {text!r}; an empty text is ''")

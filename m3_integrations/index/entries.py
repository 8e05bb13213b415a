"""What an index keeps of a passage besides its vectors, checked before anything is kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

from m3_integrations.core.texts import Passage


@dataclass(frozen=True, slots=True)
class Entry:
    """A passage whose metadata is plain JSON values, and the hash of its content."""

    id: str
    text: str
    metadata: dict[str, Any]
    hash: str

    @classmethod
    def of(cls, passage: Passage) -> Entry:
        """Raises ValueError, naming the passage and the key, for metadata that JSON cannot say."""
        metadata = _plain_metadata(passage)
        return cls(passage.id, passage.text, metadata, _hash(passage.text, metadata))

    def passage(self) -> Passage:
        """The passage, with metadata that its receiver may change."""
        return Passage(self.id, self.text, _plain_mapping(self.metadata, ""))


def content_hash(passage: Passage) -> str:
    """64 hex digits over text and metadata, whatever the id and the order of the keys: equal where nothing changed.

    Raises ValueError, naming the passage and the key, for metadata that JSON cannot say.
    """
    return _hash(passage.text, _plain_metadata(passage))


def to_json(value: Any) -> bytes:
    """JSON as bytes. Lone surrogates, which no text should hold and some do, come through."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def from_json(said: bytes) -> Any:
    """What `to_json` was given. Raises ValueError for bytes that it did not write."""
    return json.loads(said.decode("utf-8", "surrogatepass"))


def _hash(text: str, metadata: Mapping[str, Any]) -> str:
    canonical = json.dumps([text, metadata], ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


class _NotJson(ValueError):
    """A value that JSON cannot say, with the key that leads to it."""


def _plain_metadata(passage: Passage) -> dict[str, Any]:
    try:
        return _plain_mapping(passage.metadata, "")
    except _NotJson as error:
        raise ValueError(f"passage {passage.id!r}: {error}") from None
    except RecursionError:
        raise ValueError(f"passage {passage.id!r}: its metadata holds itself, or is nested too deeply") from None


def _plain_mapping(mapping: Mapping[Any, Any], path: str) -> dict[str, Any]:
    return {_key(key, path): _plain(value, f"{path}.{key}" if path else key) for key, value in mapping.items()}


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise _NotJson(f"the keys of metadata{' ' + repr(path) if path else ''} are strings, got {key!r}; write str()")
    return str(key)


def _plain(value: Any, path: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, path)
    if isinstance(value, (list, tuple)):
        return [_plain(each, f"{path}[{i}]") for i, each in enumerate(value)]
    raise _NotJson(f"metadata {path!r} is {value!r}, which JSON cannot say; {_remedy(value)}")


def _remedy(value: Any) -> str:
    if isinstance(value, (date, datetime, time)):
        return "write value.isoformat(), which also sorts in `<` filters"
    if isinstance(value, float):
        return "write None, or leave the key out"
    if isinstance(value, (set, frozenset)):
        return "write sorted(value)"
    if hasattr(value, "tolist"):
        return "write value.tolist()"
    return "write a string, a number, True, False, None, or a list or dict of these"


def entries(passages: Sequence[Passage]) -> list[Entry]:
    return [Entry.of(passage) for passage in passages]

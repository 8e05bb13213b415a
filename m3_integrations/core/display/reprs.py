"""Short reprs of values that hold arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import fields, is_dataclass
from typing import Any

from m3_integrations.core.display.html import html_table

SHOWN = 8  # items of a collection, beyond which its length is shown instead
CHARACTERS = 80  # of a text
LONG = 300  # characters of the repr of another value, beyond which its type is shown instead


class FieldsDisplay:
    """A dataclass whose repr shows arrays by type and shape, and that is a table in a notebook."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={short_repr(value)}" for name, value in _fields_of(self).items())
        return f"{type(self).__name__}({shown})"

    def _repr_html_(self) -> str:
        rows = [(name, short_repr(value)) for name, value in _fields_of(self).items()]
        return html_table((type(self).__name__, ""), rows)


def short_repr(value: Any) -> str:
    """Return the repr of a value, with arrays by type and shape, and long collections and texts by their beginning.

    Args:
        value: Any value.
    """
    if hasattr(value, "dtype") and hasattr(value, "shape") and value.shape:
        return f"<{value.dtype} array of shape {tuple(value.shape)}>"
    if isinstance(value, str):
        return repr(value) if len(value) <= CHARACTERS else f"{value[:CHARACTERS]!r}..."
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named = zip(value._fields, value, strict=True)
        return f"{type(value).__name__}({', '.join(f'{name}={short_repr(each)}' for name, each in named)})"
    if isinstance(value, Mapping | Sequence | set | frozenset) and isinstance(value, Sized) and len(value) > SHOWN:
        return f"<{type(value).__name__} of {len(value)}>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {short_repr(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(short_repr, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    text = repr(value)
    return f"<{type(value).__name__}>" if len(text) > LONG else text


def _fields_of(value: object) -> dict[str, Any]:
    if not is_dataclass(value):
        return {}
    return {each.name: getattr(value, each.name) for each in fields(value) if each.repr}

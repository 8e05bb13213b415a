"""Short reprs of values that hold arrays, and their HTML in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any, NamedTuple

SHOWN = 8  # items of a collection, beyond which its length is shown instead
CHARACTERS = 80  # of a text
LONG = 300  # characters of the repr of another value, beyond which its type is shown instead


class TextMark(NamedTuple):
    """A place of a text to highlight, text[start:stop], with a strength from 0 to 1."""

    start: int
    stop: int
    strength: float


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


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table; everything is escaped.

    Args:
        headings: Headings of the columns.
        rows: Cells.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def marked_html(text: str, marks: Iterable[TextMark]) -> str:
    """Return a text as HTML with highlighted places; overlapping ones are joined to the first.

    Args:
        text: The text, which is escaped.
        marks: Places and their strengths.
    """
    parts, at = [], 0
    for start, stop, strength in sorted(marks):
        if start < at or start >= stop:
            continue
        opacity = 0.15 + 0.6 * min(1.0, max(0.0, strength))
        style = f"background: rgba(255, 193, 7, {opacity:.2f}); color: inherit"
        parts += [escape(text[at:start]), f'<mark style="{style}">{escape(text[start:stop])}</mark>']
        at = stop
    return "".join([*parts, escape(text[at:])])


def _fields_of(value: object) -> dict[str, Any]:
    if not is_dataclass(value):
        return {}
    return {each.name: getattr(value, each.name) for each in fields(value) if each.repr}

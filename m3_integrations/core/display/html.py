"""HTML of tables and of texts with highlighted places; everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


class TextMark(NamedTuple):
    """A place of a text to highlight, text[start:stop], with a strength from 0 to 1."""

    start: int
    stop: int
    strength: float


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

"""Output of the commands: results on stdout as text or JSON; notes, progress and errors on stderr."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

SCHEMA = 1  # of the JSON documents; increases when a field changes its meaning or goes
SPINNER = "line"  # in ASCII
UNWRAPPED = 1 << 16  # width of lines that are not written to a terminal
# Control characters but tab and newline, line separators, marks that reverse the direction of text, lone surrogates.
_UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """Replace what a terminal would obey instead of show by its JSON escape."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def on_one_line(text: str) -> str:
    """Escape control characters, tabs and line ends too, so that an id stays on its line."""
    return escape_controls(text).replace("\t", "\\t").replace("\n", "\\n")


class SafeConsole(Console):
    """A console that escapes control characters and wraps lines on terminals only."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr)
        if not self.is_terminal:
            self.width = UNWRAPPED

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with every text escaped; the codes of styles are added later."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_controls(segment.text))


@dataclass(frozen=True)
class CommandResult:
    """What a command found or did.

    Attributes:
        data: Fields of the JSON document.
        show: Prints it for people.
        failed: Whether the exit status is 1 although there is a result.
    """

    data: Mapping[str, Any]
    show: Callable[[], None]
    failed: bool = False


@dataclass
class Terminal:
    """Where commands write, and how much."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    out: Console = field(default_factory=SafeConsole)
    err: Console = field(default_factory=partial(SafeConsole, stderr=True))

    @property
    def shows_progress(self) -> bool:
        """Whether progress is shown: on a terminal, unless --quiet."""
        return self.err.is_terminal and not self.quiet

    def working(self, text: str) -> AbstractContextManager[object]:
        """Show what is being done, with something that moves, where progress is shown."""
        return self.err.status(text, spinner=SPINNER) if self.shows_progress else nullcontext()

    def print(self, *parts: RenderableType | tuple[str, str]) -> None:
        """Print a line of texts, each plain or with a style, or one renderable; a line is never broken."""
        if len(parts) == 1 and not isinstance(parts[0], str | tuple):
            self.out.print(parts[0])
        else:
            self.out.print(Text.assemble(*parts), soft_wrap=True)  # type: ignore[arg-type]  # texts only

    def print_row(self, *cells: str) -> None:
        """Print cells with tabs between, for other programs."""
        sys.stdout.write("\t".join(map(on_one_line, cells)) + "\n")

    def note(self, text: str, style: str = "dim") -> None:
        """Print a remark to stderr, unless --quiet."""
        if not self.quiet:
            self.err.print(Text(text, style), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning to stderr, unless --quiet."""
        if not self.quiet:
            self.err.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)

    def error(self, text: str) -> None:
        """Print an error to stderr."""
        self.err.print(Text.assemble(("error: ", "red"), text), soft_wrap=True)

    def show(self, command: str, result: CommandResult) -> None:
        """Print a result."""
        if self.as_json:
            self.print_json(command, result.data)
        else:
            result.show()

    def print_json(self, command: str | None, data: Mapping[str, Any]) -> None:
        """Print one JSON document on one line."""
        sys.stdout.write(to_json_line({"schema": SCHEMA, "command": command, **data}))
        sys.stdout.flush()


def to_json_line(document: Mapping[str, Any], encoding: str | None = None) -> str:
    """Return a document as one line of JSON, without NaN and infinity, which JSON lacks.

    Args:
        document: The document.
        encoding: Encoding of the file; that of stdout by default. One that is not Unicode gets ASCII.
    """
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "ascii"
    is_ascii = not encoding.lower().startswith("utf")
    try:
        text = json.dumps(document, ensure_ascii=is_ascii, default=_to_json, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document), ensure_ascii=is_ascii, default=_to_json)
    return escape_controls(text) + "\n"


def _finite(value: Any) -> Any:
    """Return a value with null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_json(value: Any) -> Any:
    """Return a value that JSON lacks: numpy scalars as numbers, paths as text."""
    return value.item() if hasattr(value, "item") else str(value)


terminal = Terminal()


def table(*headings: str, title: str | None = None) -> Table:
    """Return an empty table without lines; headings that end in > are aligned to the right."""
    empty = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        name = heading.removesuffix(">")
        empty.add_column(name, justify="right" if name != heading else "left", overflow="fold")
    return empty


def describe_plan(plan: Mapping[str, Any]) -> str:
    """Return a search plan, as `SearchPlan.to_json` gives it, in words."""
    weights = plan["weights"] or {}
    chosen = ", ".join(f"{mode} {weight:g}" for mode, weight in weights.items()) or "of the model"
    return f"weights {chosen}; {plan['candidates']} candidates by {', '.join(plan['propose'])}"


def print_metrics(
    metrics: Mapping[str, Mapping[str, float]], title: str, before: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Print one row per search plan; with `before`, each value shows its change."""
    rows = table("search mode", *(f"{metric}>" for metric in next(iter(metrics.values()))), title=title)
    for plan, values in metrics.items():
        known = (before or {}).get(plan, {})
        rows.add_row(plan, *(_with_change(value, known.get(metric)) for metric, value in values.items()))
    terminal.print(rows)


def _with_change(value: float, before: float | None) -> str:
    return f"{value:.3f}" if before is None else f"{value:.3f} ({value - before:+.3f})"

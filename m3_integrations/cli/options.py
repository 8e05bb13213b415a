"""Arguments and options that several subcommands share, and their checks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from m3_integrations import Where
    from m3_integrations.core.encoded import Mode

Model = Annotated[str, typer.Option("--model", "-m", help="m3-mini, a local folder, or a hub id such as BAAI/bge-m3.")]
IndexModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        show_default="the model of the index, m3-mini for a new one",
        help="m3-mini, a local folder, or a hub id such as BAAI/bge-m3.",
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")]
TopK = Annotated[int, typer.Option("--k", "-k", help="Number of passages.")]
Modes = Annotated[
    str, typer.Option("--mode", help="dense, sparse or multi_vector, or several with commas between; all by default.")
]
Filter = Annotated[
    str | None,
    typer.Option("--where", "-w", help='Metadata filter, such as \'year >= 2020 and lang in ["de", "en"]\'.'),
]
Question = Annotated[
    str, typer.Argument(metavar="QUESTION", help="The question; - reads one question a line from stdin.")
]


class UsageError(ValueError):
    """Arguments that do not make a command; the exit status is 2."""


def check_k(k: int) -> None:
    """Check a number of passages.

    Raises:
        UsageError: If it is less than 1.
    """
    if k < 1:
        raise UsageError(f"-k must be at least 1, got {k}")


def parse_modes(text: str) -> tuple[Mode, ...] | None:
    """Return the modes named by --mode; None if it is empty or "all".

    Raises:
        UsageError: If a mode is unknown.
    """
    from m3_integrations.core.encoded import MODES

    names = split_commas(text)
    if names in ([""], ["all"]):
        return None
    unknown = [name for name in names if name not in MODES]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not a mode; use {', '.join(MODES)} or all")
    return tuple(mode for mode in MODES if mode in names)


def parse_filter(text: str | None) -> Where | None:
    """Parse --where.

    Raises:
        UsageError: If it is not a filter.
    """
    from m3_integrations.core.errors import UnsupportedFilter
    from m3_integrations.index import parse_where

    try:
        return None if text is None else parse_where(text)
    except UnsupportedFilter as error:
        raise UsageError(f"--where: {error}") from error


def check_question(question: str) -> None:
    """Check a question; "-" stands for those of stdin.

    Raises:
        UsageError: If it is empty.
    """
    from m3_integrations.core.types import is_blank

    if is_blank(question):
        raise UsageError(f"the question {question!r} is empty; write what to search for, such as 'old bridges'")


def read_questions(question: str) -> Iterator[str]:
    """Yield the question, or the lines of stdin that are not blank if it is "-"."""
    from m3_integrations.core.types import is_blank

    yield from (line.strip() for line in sys.stdin if not is_blank(line)) if question == "-" else (question,)


def split_commas(text: str) -> list[str]:
    """Split a comma-separated option."""
    return [part.strip() for part in text.split(",")]

"""Arguments and options that several subcommands share, and their checks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len

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
    """Arguments that do not make a command; the exit status is 2.

    Attributes:
        excerpt: Lines that show where an argument is wrong, printed below the message.
    """

    excerpt: str = ""


def check_k(k: int) -> int:
    """Return a number of passages.

    Raises:
        UsageError: If it is less than 1.
    """
    if k < 1:
        raise UsageError(f"-k must be at least 1, got {k}")
    return k


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
        usage = UsageError(f"--where: {error}")
        if error.position is not None and text is not None and text.isprintable():
            usage.excerpt = f"  {text}\n  {' ' * cell_len(text[: error.position])}^"
        raise usage from error


def check_question(question: str) -> None:
    """Check a question; "-" stands for those of stdin.

    Raises:
        UsageError: If it is empty, or not in the encoding of the terminal.
    """
    from m3_integrations.core.types import is_blank

    if any("\ud800" <= character <= "\udfff" for character in question):  # a byte that could not be decoded
        raise UsageError(f"the question {question!r} is not {sys.getfilesystemencoding()}; set your terminal to it")
    if is_blank(question):
        raise UsageError(f"the question {question!r} is empty; write what to search for, such as 'old bridges'")


def read_questions(question: str) -> Iterator[str]:
    """Yield the question, or the lines of stdin that are not blank if it is "-"."""
    yield from map(str.strip, read_stdin()) if question == "-" else (question,)


def read_stdin() -> Iterator[str]:
    """Yield the lines of stdin that are not blank, without their ends.

    Raises:
        InvalidFile: If a line is not UTF-8.
    """
    from m3_integrations.data.text_files import STDIN, read_lines

    return (line for _, line in read_lines(STDIN))


def split_commas(text: str) -> list[str]:
    """Split a comma-separated option."""
    return [part.strip() for part in text.split(",")]


def prepare_output(out: Path | None) -> None:
    """Make the folder of a file to write, before the work whose result it will hold.

    Raises:
        IsADirectoryError: If the file is a folder.
        PermissionError: If its folder cannot be written.
    """
    if out is None:
        return
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name a file in it")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"{out} cannot be written: its folder is read-only; name another place")


def prepare_folder(out: Path | None) -> None:
    """Make a folder of files to write, before the work whose results they will hold.

    Raises:
        NotADirectoryError: If it is a file.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; name a folder")
    if out is not None:
        prepare_output(out / "file")

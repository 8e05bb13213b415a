"""Text files, plain or .gz, read line by line with the location of each line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from m3_integrations.core.errors import InvalidFile

LONGEST_LINE = 1 << 24  # characters
LONGEST_DOCUMENT = 1 << 28  # characters of a file that is one JSON value
STDIN = Path("-")
SEPARATORS = ",;\t"  # of columns
SHOWN = 80  # characters of a line in a message


def text_lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[str]:
    """Yield the lines of a text file with their ends.

    Args:
        path: File in UTF-8, or in UTF-16 with a byte order mark, as spreadsheets write it; compressed by gzip if its
            name ends in .gz. "-" is stdin, in UTF-8.
        longest: Characters that a line may have.

    Raises:
        ValueError: If the file is damaged gzip, or a line is too long or not text; the message begins with the path.
    """
    number = 0
    try:
        with _open_text(path) as file:
            while line := file.readline(longest + 1):
                number += 1
                _check_line(f"{path}:{number}", line, longest)
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidFile(f"{path} is not a whole gzip file ({error}); copy or compress it again") from error
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path}:{number + 1} is not UTF-16 ({error.reason}); save the file as UTF-8") from error


def _open_text(path: Path) -> TextIO:
    if path == STDIN:
        return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors="surrogateescape")
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    # surrogateescape keeps a wrong byte in its line, so that an error can name both.
    encoding, errors = ("utf-16", "strict") if wide else ("utf-8-sig", "surrogateescape")
    return cast("TextIO", opener(path, "rt", encoding=encoding, errors=errors))


def _check_line(location: str, line: str, longest: int) -> None:
    if len(line) > longest:
        raise InvalidFile(f"{location} has more than {longest:,} characters; break the text into shorter lines")
    if "\0" in line:
        raise InvalidFile(f"{location} holds a zero byte and is not UTF-8 text; save the file as UTF-8")
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = len(line[: error.start].encode()) + 1
        value = ord(line[error.start]) & 0xFF
        raise InvalidFile(f"{location} is not UTF-8 at byte {byte} (0x{value:02x}); save the file as UTF-8") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (`path:line`, line) for each line that is not blank; see `text_lines`."""
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            yield f"{path}:{number}", line.rstrip("\r\n")


def parse_object(location: str, line: str, expected: str = "each line is one object") -> dict[str, Any]:
    """Parse one line of JSONL; `expected` ends the message of an error.

    Raises:
        ValueError: If the line is not a JSON object; the message begins with `location`.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits
        raise InvalidFile(f"{location} is not JSON ({error}); {expected}") from error
    if not isinstance(value, dict):
        raise InvalidFile(f"{location} is not a JSON object, got {line[:SHOWN]!r}; {expected}")
    return value


def read_jsonl(path: Path, expected: str = "each line is one object") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`path:line`, object) for each line that is not blank; `expected` ends the message of an error.

    Raises:
        ValueError: If a line is not a JSON object.
    """
    return ((location, parse_object(location, line, expected)) for location, line in read_lines(path))


def read_table(path: Path, required: Collection[str], expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`path:line`, fields that are not empty) for each row of a table with a header.

    Args:
        path: File as `text_lines` reads it, with commas, semicolons or tabs between its columns.
        required: Columns that the header must have.
        expected: Columns that the message of an error names.

    Raises:
        ValueError: If the header lacks a column, or a line is not a row.
    """
    lines = text_lines(path)
    header = next(lines, "")
    separator = next((each for each in SEPARATORS if set(_columns(header, each)) >= set(required)), None)
    if separator is None:
        raise InvalidFile(
            f"{path} begins with {header[:SHOWN].rstrip()!r}; its first line is {expected} with commas, "
            "semicolons or tabs between"
        )
    rows = csv.DictReader(lines, _columns(header, separator), delimiter=separator)
    try:
        for fields in rows:
            yield (
                f"{path}:{rows.line_num + 1}",
                {name: each for name, each in fields.items() if name and each not in (None, "")},
            )
    except csv.Error as error:
        raise InvalidFile(f"{path}:{rows.line_num + 1} is not a line of a table ({error})") from error


def _columns(header: str, separator: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]

"""Passages from files: JSON lines, CSV, TSV and Parquet."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from m3_integrations.core.errors import InvalidFile
from m3_integrations.core.optional import import_optional
from m3_integrations.core.types import Passage
from m3_integrations.data.text_files import read_jsonl, read_table
from m3_integrations.index.datetimes import to_isoformat

PASSAGE_FILES = (".jsonl", ".csv", ".tsv", ".parquet")
_ROWS_AT_ONCE = 1024
_RESERVED = {"_id", "id", "text", "title", "metadata"}


def read_passages(path: str | os.PathLike[str]) -> Iterator[Passage]:
    """Read the passages of one file in order.

    Args:
        path: A .csv, .tsv or .parquet file, otherwise JSON lines; text files may be .gz, and "-" is stdin. Each line or
            row has a text, an `_id` or `id`, and optionally a title and a `metadata` object. Other fields become
            metadata; numbers, true and false in tables are read as such. Rows of a table without a column of ids are
            numbered after its name.

    Returns:
        The passages, in the order of the file.

    Raises:
        ValueError: If a line or row is not a passage; the message begins with its location.
        MissingExtra: If the file is Parquet and pyarrow is not installed.
    """
    file = Path(path)
    kind = passage_file_kind(file)
    if kind == ".jsonl":
        return (to_passage(JsonLine(location, fields)) for location, fields in read_jsonl(file))
    rows = _parquet_rows(file) if kind == ".parquet" else _table_rows(file)
    return (
        to_passage(JsonLine(location, _numbered(file, number, fields)))
        for number, (location, fields) in enumerate(rows, start=1)
    )


def passage_file_kind(path: Path) -> str:
    """Return the ending of a file without .gz; .jsonl if it is none of `PASSAGE_FILES`."""
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    return ending if ending in PASSAGE_FILES else ".jsonl"


class JsonLine(NamedTuple):
    """One object of a file and its location (`path:line`)."""

    location: str
    fields: Mapping[str, Any]

    @property
    def id(self) -> str:
        id = self.fields.get("_id", self.fields.get("id"))
        if not isinstance(id, str | int) or id == "":
            raise InvalidFile(f'{self.location} has no \'_id\'; a line is {{"_id": "1", "text": "..."}}')
        return str(id)

    def text(self, key: str) -> str:
        text = self.fields.get(key)
        if not isinstance(text, str):
            raise InvalidFile(f"{self.location} needs a string as {key!r}, got {text!r}")
        return text


def to_passage(line: JsonLine) -> Passage:
    """Return the passage of a line: its text is title and text on two lines, and its metadata include the title.

    Raises:
        ValueError: If it has no id or text, or its metadata are not an object.
    """
    metadata = line.fields.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidFile(f"{line.location} needs an object as 'metadata', got {metadata!r}")
    others = {name: value for name, value in line.fields.items() if name not in _RESERVED}
    metadata = {**others, **metadata}
    if not line.fields.get("title"):
        return Passage(line.id, line.text("text"), metadata)
    title, text = line.text("title"), line.text("text")
    return Passage(line.id, f"{title}\n{text}" if text else title, {**metadata, "title": title})


def _numbered(file: Path, number: int, fields: dict[str, Any]) -> dict[str, Any]:
    return fields if "_id" in fields or "id" in fields else {"_id": f"{file.name}#{number}", **fields}


def _table_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for location, fields in read_table(file, {"text"}, "id,text,title and metadata"):
        yield location, {"text": "", **{name: _parse(name, text) for name, text in fields.items()}}


def _parse(name: str, text: str) -> Any:
    """Return the value of a cell: a number, true or false if it is metadata and written as JSON writes them."""
    if name in _RESERVED:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_scalar = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_scalar and json.dumps(value) == text else text


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    arrow: Any = import_optional("pyarrow", extra="files")
    parquet: Any = import_optional("pyarrow", extra="files", module="pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(file) as opened:
            if "text" not in opened.schema_arrow.names:
                raise InvalidFile(f"{file} has no column 'text'; its columns are {opened.schema_arrow.names}")
            for batch in opened.iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", to_isoformat({key: each for key, each in row.items() if each is not None})
    except InvalidFile:
        raise
    except FileNotFoundError:
        raise
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InvalidFile(f"{file} cannot be read as Parquet ({error})") from error

"""TREC run files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from m3_integrations.core.errors import InvalidFile
from m3_integrations.core.files import replace_text
from m3_integrations.data.beir import _is_number
from m3_integrations.data.text_files import read_lines
from m3_integrations.index.base import Hit


def write_run(path: str | os.PathLike[str], run: Mapping[str, Sequence[Hit]], tag: str) -> None:
    """Write each query's hits, best first, as a TREC run file.

    Args:
        path: File to write.
        run: Hits by query id.
        tag: Name of the run.

    Raises:
        ValueError: If an id or the tag holds white space.
    """
    replace_text(Path(path), "".join(_run_lines(run, tag)))


def read_run(path: str | os.PathLike[str]) -> dict[str, list[Hit]]:
    """Read each query's hits from a TREC run file, plain or .gz, by descending score, ties by id.

    Args:
        path: The file.

    Returns:
        The hits by id of the query.

    Raises:
        ValueError: If a line is not `query Q0 passage rank score tag`; the message begins with `path:line`.
    """
    run: dict[str, list[Hit]] = {}
    for location, line in read_lines(Path(path)):
        query, hit = _run_hit(location, line)
        run.setdefault(query, []).append(hit)
    return {query: sorted(hits, key=lambda hit: (-hit.score, hit.id)) for query, hits in run.items()}


def _run_lines(run: Mapping[str, Sequence[Hit]], tag: str) -> Iterator[str]:
    for query, hits in run.items():
        for rank, hit in enumerate(hits, start=1):
            columns = (query, "Q0", hit.id, str(rank), repr(float(hit.score)), tag)
            if broken := [column for column in columns if column.split() != [column]]:
                raise ValueError(f"columns of a run file are separated by white space and cannot hold {broken[0]!r}")
            yield " ".join(columns) + "\n"


def _run_hit(location: str, line: str) -> tuple[str, Hit]:
    columns = line.split()
    if len(columns) != 6 or not _is_number(columns[4]):
        raise InvalidFile(f"{location} is not 'query Q0 passage rank score tag': {line!r}")
    return columns[0], Hit(columns[2], float(columns[4]))

"""BEIR folders and qrels files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from m3_integrations.core.errors import InvalidFile
from m3_integrations.core.types import Passage, Query
from m3_integrations.data.passages import JsonLine, read_passages
from m3_integrations.data.text_files import parse_object, read_jsonl, read_lines

HEADER = "query-id\tcorpus-id\tscore"
NAMED = 12  # files of a folder that an error names


@dataclass(frozen=True, slots=True)
class JudgedCollection:
    """Passages and the judged queries of one split."""

    passages: list[Passage]
    queries: list[Query]


def read_beir(folder: str | os.PathLike[str], split: str = "test", qrels: str = "qrels") -> JudgedCollection:
    """Read the passages of a BEIR folder and the queries judged in one split, in the order of their files.

    Args:
        folder: Folder with corpus.jsonl (or passages.jsonl), queries.jsonl and <qrels>/<split>.tsv, each plain or .gz.
        split: Name of the split.
        qrels: Folder of the qrels.

    Returns:
        Passages, whose text is title and text on two lines and whose metadata includes the title, and judged queries.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a line cannot be read, or a judgement names an unknown passage or query; the message begins with
            `path:line`.
    """
    root = Path(folder)
    passages = list(read_passages(_find(root, "corpus.jsonl", "passages.jsonl")))
    questions = {line.id: line.text("text") for line in _json_lines(_find(root, "queries.jsonl"))}
    relevant = _judgements(_find(root, f"{qrels}/{split}.tsv"), {passage.id for passage in passages}, questions)
    return JudgedCollection(
        passages, [Query(id, text, relevant[id]) for id, text in questions.items() if id in relevant]
    )


def _judgements(path: Path, passages: set[str], questions: Mapping[str, str]) -> dict[str, dict[str, float]]:
    relevant: dict[str, dict[str, float]] = {}
    for location, query, passage, grade in _graded(path):
        if passage not in passages:
            raise InvalidFile(
                f"{location} grades passage {passage!r}, which the corpus does not hold; is it from another dataset?"
            )
        if query not in questions:
            raise InvalidFile(
                f"{location} grades query {query!r}, which queries.jsonl does not hold; is it from another dataset?"
            )
        relevant.setdefault(query, {})[passage] = grade
    return relevant


def _graded(path: Path) -> Iterator[tuple[str, str, str, float]]:
    lines = read_lines(path)
    _, header = next(lines, ("", ""))
    if not header.lower().startswith("query"):
        raise InvalidFile(f"{path} has no header line; write {HEADER!r} as its first line, got {header!r}")
    for location, line in lines:
        columns = line.split("\t")
        if len(columns) != 3 or not _is_number(columns[2]):
            raise InvalidFile(f"{location} is not query, passage and grade with a tab between: {line!r}")
        yield location, columns[0], columns[1], float(columns[2])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _json_lines(path: Path) -> Iterator[JsonLine]:
    return (JsonLine(location, fields) for location, fields in read_jsonl(path))


def _find(root: Path, *names: str) -> Path:
    candidates = [root / f"{name}{ending}" for name in names for ending in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{root} has no {' or '.join(names)} (plain or .gz); a BEIR folder holds corpus.jsonl, queries.jsonl and "
        f"qrels/<split>.tsv, and this one holds {_held(root)}"
    )


def _held(root: Path) -> str:
    if not root.is_dir():
        return "nothing: there is no such folder"
    files = sorted(path.relative_to(root).as_posix() for path in (*root.glob("*"), *root.glob("*/*")) if path.is_file())
    return ", ".join(files[:NAMED]) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "") or "nothing"


def read_judged(folder: str | os.PathLike[str], split: str = "train", qrels: str = "qrels") -> list[Query]:
    """Read the queries judged in one split of a BEIR folder; see `read_beir`.

    Args:
        folder: The BEIR folder.
        split: Name of the split.
        qrels: Name of the folder of judgements.

    Returns:
        The queries with their relevant passages.
    """
    return read_beir(folder, split, qrels).queries


def read_languages(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the languages of queries.

    Args:
        path: BEIR folder, or its queries.jsonl, whose lines state "lang" or "language".

    Returns:
        Language by query id; queries that state none are left out.
    """
    file = Path(path)
    if file.is_dir():
        file = _find(file, "queries.jsonl")
    languages = {}
    for _, fields in read_jsonl(file):
        stated = fields.get("language") or fields.get("lang")
        if isinstance(stated, str):
            languages[str(fields.get("_id", fields.get("id")))] = stated
    return languages


def read_qrels(queries: str | os.PathLike[str], qrels: str | os.PathLike[str]) -> list[Query]:
    """Read judged queries from a file of queries and one of qrels, in the order of the first.

    Args:
        queries: JSONL with `_id` (or `id`) and `text`; or .tsv with id and text. Plain or .gz.
        qrels: Lines of TREC (query 0 passage grade) or of BEIR (query passage grade, with a header). Plain or .gz.

    Returns:
        The queries with a judgement.

    Raises:
        ValueError: If a line cannot be read or grades an unknown query; the message begins with `path:line`.
    """
    texts = dict(_questions(Path(queries)))
    relevant: dict[str, dict[str, float]] = {}
    for location, query, passage, grade in _qrels_lines(Path(qrels)):
        if query not in texts:
            raise InvalidFile(
                f"{location} grades query {query!r}, which {queries} does not hold; is it from another dataset?"
            )
        relevant.setdefault(query, {})[passage] = grade
    return [Query(id, text, relevant[id]) for id, text in texts.items() if id in relevant]


def _questions(path: Path) -> Iterator[tuple[str, str]]:
    tabbed = path.name.removesuffix(".gz").endswith(".tsv")
    for location, line in read_lines(path):
        if tabbed:
            id, _, text = line.partition("\t")
        else:
            fields = parse_object(location, line)
            id, text = str(fields.get("_id", fields.get("id", ""))), str(fields.get("text", ""))
        if not id or not text:
            raise InvalidFile(f'{location} is no query: {line!r}; a line is {{"_id": "q1", "text": "..."}}')
        yield id, text


def _qrels_lines(path: Path) -> Iterator[tuple[str, str, str, float]]:
    for number, (location, line) in enumerate(read_lines(path)):
        columns = line.split("\t") if line.count("\t") in (2, 3) else line.split()
        if number == 0 and columns[0].lower().startswith("query"):
            continue
        if len(columns) not in (3, 4):
            raise InvalidFile(f"{location} is neither 'query 0 passage grade' nor 'query passage grade': {line!r}")
        if not _is_number(columns[-1]):
            raise InvalidFile(f"{location} has the grade {columns[-1]!r}; a grade is a number")
        yield location, columns[0], columns[-2], float(columns[-1])

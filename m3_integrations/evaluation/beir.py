"""Judged collections and runs, in the files in which the field exchanges them: BEIR folders and TREC runs."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from m3_integrations.core.texts import Passage, Query
from m3_integrations.index.base import Hit

HEADER = "query-id\tcorpus-id\tscore"
NAMED = 12  # files of a folder that an error names


@dataclass(frozen=True, slots=True)
class Collection:
    """Passages to search, and the questions of one split with the passages that answer them."""

    passages: list[Passage]
    queries: list[Query]


def read_beir(folder: str | os.PathLike[str], split: str = "test", qrels: str = "qrels") -> Collection:
    """The passages of a BEIR folder, and the queries that one split judges, in the order of their file.

    folder: holds corpus.jsonl (or passages.jsonl), queries.jsonl and <qrels>/<split>.tsv, each plain or .gz.
    A passage's text is its title and its text on two lines; its metadata is the line's, with the title.
    Raises FileNotFoundError for a file that is not there, ValueError, naming file and line, for one that cannot be
    read, or for a judgement of a passage or a query that the folder does not hold.
    """
    root = Path(folder)
    passages = list(read_passages(_find(root, "corpus.jsonl", "passages.jsonl")))
    questions = {line.id: line.text("text") for line in _json_lines(_find(root, "queries.jsonl"))}
    relevant = _judgements(_find(root, f"{qrels}/{split}.tsv"), {passage.id for passage in passages}, questions)
    return Collection(passages, [Query(id, text, relevant[id]) for id, text in questions.items() if id in relevant])


def read_passages(path: str | os.PathLike[str]) -> Iterator[Passage]:
    """The passages of one file in the order of its lines, plain or .gz; see `read_beir`."""
    return (_passage(line) for line in _json_lines(Path(path)))


def write_run(path: str | os.PathLike[str], run: Mapping[str, Sequence[Hit]], tag: str) -> None:
    """Write each query's hits, best first, as a TREC run file, which trec_eval and ir-measures read.

    Raises ValueError for an id or a tag with white space, which the format cannot hold.
    """
    target = Path(path)
    half_written = target.with_name(f"{target.name}.part")
    half_written.write_text("".join(_run_lines(run, tag)), encoding="utf-8")
    half_written.replace(target)


def read_run(path: str | os.PathLike[str]) -> dict[str, list[Hit]]:
    """Each query's hits in a TREC run file, plain or .gz, by falling score; ties by id.

    Raises ValueError, naming file and line, for a line that is not `query Q0 passage rank score tag`.
    """
    run: dict[str, list[Hit]] = {}
    for at, line in _lines(Path(path)):
        query, hit = _run_hit(at, line)
        run.setdefault(query, []).append(hit)
    return {query: sorted(hits, key=lambda hit: (-hit.score, hit.id)) for query, hits in run.items()}


class _JsonLine(NamedTuple):
    """One object of a .jsonl file, and where it stands."""

    at: str
    fields: Mapping[str, Any]

    @property
    def id(self) -> str:
        id = self.fields.get("_id")
        if not isinstance(id, str | int) or id == "":
            raise ValueError(f'{self.at} has no \'_id\'; a line is {{"_id": "1", "text": "..."}}')
        return str(id)

    def text(self, key: str) -> str:
        text = self.fields.get(key)
        if not isinstance(text, str):
            raise ValueError(f"{self.at} needs a string as {key!r}, got {text!r}")
        return text


def _passage(line: _JsonLine) -> Passage:
    metadata = line.fields.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f"{line.at} needs an object as 'metadata', got {metadata!r}")
    if not line.fields.get("title"):
        return Passage(line.id, line.text("text"), metadata)
    title, text = line.text("title"), line.text("text")
    return Passage(line.id, f"{title}\n{text}" if text else title, {**metadata, "title": title})


def _judgements(path: Path, passages: set[str], questions: Mapping[str, str]) -> dict[str, dict[str, float]]:
    relevant: dict[str, dict[str, float]] = {}
    for at, query, passage, grade in _graded(path):
        if passage not in passages:
            raise ValueError(f"{at} judges passage {passage!r}, which the corpus does not hold; is it of another set?")
        if query not in questions:
            raise ValueError(f"{at} judges query {query!r}, which queries.jsonl does not hold; is it of another set?")
        relevant.setdefault(query, {})[passage] = grade
    return relevant


def _graded(path: Path) -> Iterator[tuple[str, str, str, float]]:
    lines = _lines(path)
    _, header = next(lines, ("", ""))
    if not header.lower().startswith("query"):
        raise ValueError(f"{path} has no header line; write {HEADER!r} as its first line, got {header!r}")
    for at, line in lines:
        columns = line.split("\t")
        if len(columns) != 3 or not _is_number(columns[2]):
            raise ValueError(f"{at} is not query, passage and grade with a tab between: {line!r}")
        yield at, columns[0], columns[1], float(columns[2])


def _run_lines(run: Mapping[str, Sequence[Hit]], tag: str) -> Iterator[str]:
    for query, hits in run.items():
        for rank, hit in enumerate(hits, start=1):
            columns = (query, "Q0", hit.id, str(rank), repr(float(hit.score)), tag)
            if broken := [column for column in columns if column.split() != [column]]:
                raise ValueError(f"a run file keeps its columns apart by white space and cannot hold {broken[0]!r}")
            yield " ".join(columns) + "\n"


def _run_hit(at: str, line: str) -> tuple[str, Hit]:
    columns = line.split()
    if len(columns) != 6 or not _is_number(columns[4]):
        raise ValueError(f"{at} is not 'query Q0 passage rank score tag': {line!r}")
    return columns[0], Hit(columns[2], float(columns[4]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json_lines(path: Path) -> Iterator[_JsonLine]:
    for at, line in _lines(path):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{at} is not JSON ({error}); each line is one object") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{at} is not a JSON object, got {line!r}; each line is one object")
        yield _JsonLine(at, fields)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, and where it stands: its file and number."""
    # utf-8-sig: files from spreadsheets begin with a byte order mark.
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}, line {number}", line.rstrip("\r\n")


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

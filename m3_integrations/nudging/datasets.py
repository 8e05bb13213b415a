"""Judged questions from where people keep them: folders and qrels files, and LlamaIndex's question-answer datasets."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from m3_integrations.core.texts import Passage, Query
from m3_integrations.evaluation.beir import Collection, read_beir

_SHAPE = '{"queries": {"q1": "..."}, "corpus": {"d1": "..."}, "relevant_docs": {"q1": ["d1"]}}'


@runtime_checkable
class Dataset(Protocol):
    """The shape of LlamaIndex's EmbeddingQAFinetuneDataset; no LlamaIndex is needed to have it."""

    @property
    def queries(self) -> Mapping[str, str]:
        """Query id -> its text."""

    @property
    def corpus(self) -> Mapping[str, str]:
        """Passage id -> its text."""

    @property
    def relevant_docs(self) -> Mapping[str, Iterable[str]]:
        """Query id -> the ids of the passages that answer it, or a mapping of these to grades."""


Source: TypeAlias = Dataset | Collection | str | os.PathLike[str]


def collection_of(source: Source) -> Collection:
    """The passages and judged queries of a dataset, or of the JSON file (plain or .gz) that its `save_json` wrote.

    An answer counts 1, or its grade where `relevant_docs` says grades; a query without answers stays, with none, and
    answers to queries that are not there, as of a dataset cut short, are passed over. A Collection stays as it is.
    Raises ValueError where no query has an answer though others have, and for answers that the corpus does not hold.
    """
    if isinstance(source, Collection):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_json(Path(source))
    if not isinstance(source, Dataset):
        raise ValueError(f"a dataset has .queries, .corpus and .relevant_docs, or is a path to a file; got {source!r}")
    return _collection("the dataset", source.queries, source.corpus, source.relevant_docs)


def read_judged(folder: str | os.PathLike[str], split: str = "train", qrels: str = "qrels") -> list[Query]:
    """The queries that one split of a BEIR folder judges; its files, plain or .gz, and what is raised: `read_beir`."""
    return read_beir(folder, split, qrels).queries


def read_qrels(queries: str | os.PathLike[str], qrels: str | os.PathLike[str]) -> list[Query]:
    """The judged queries of two files, plain or .gz, in the order of the first.

    queries: JSONL with `_id` (or `id`) and `text`, or, ending in .tsv, lines of id and text with a tab between.
    qrels: lines of TREC, `query 0 passage grade`, or of BEIR, `query passage grade`, with a first line that names them.
    Queries that nothing judges are left out. Raises ValueError, naming file and line, for a line that is neither, and
    for a judgement of a query that the first file does not hold.
    """
    texts = dict(_questions(Path(queries)))
    relevant: dict[str, dict[str, float]] = {}
    for at, query, passage, grade in _judgements(Path(qrels)):
        if query not in texts:
            raise ValueError(f"{at} judges query {query!r}, which {queries} does not hold; is it of another set?")
        relevant.setdefault(query, {})[passage] = grade
    return [Query(id, text, relevant[id]) for id, text in texts.items() if id in relevant]


def _collection(
    at: str, queries: Mapping[str, str], corpus: Mapping[str, str], relevant: Mapping[str, Iterable[str]]
) -> Collection:
    if relevant and queries and not relevant.keys() & queries.keys():
        raise ValueError(f"{at} answers {next(iter(relevant))!r} and none of its queries; is relevant_docs of another?")
    judged = [Query(id, text, _grades(relevant.get(id, ()))) for id, text in queries.items()]
    for query in judged:
        if strangers := sorted(set(query.relevant) - set(corpus)):
            raise ValueError(
                f"{at} says that {strangers[0]!r} answers query {query.id!r}, and its corpus does not hold it; "
                "add that text to the corpus, or remove it from relevant_docs"
            )
    return Collection([Passage(id, text) for id, text in corpus.items()], judged)


def _grades(answers: Iterable[str]) -> Mapping[str, float]:
    if isinstance(answers, Mapping):
        return {str(id): float(grade) for id, grade in answers.items()}
    if isinstance(answers, str):
        raise ValueError(f'the passages that answer a query are a list of ids, got {answers!r}; write ["{answers}"]')
    return dict.fromkeys(answers, 1.0)


def _read_json(path: Path) -> Collection:
    with _opened(path) as file:
        try:
            said = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); it holds {_SHAPE}") from error
    parts = [said.get(name) for name in ("queries", "corpus", "relevant_docs")] if isinstance(said, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path} is no dataset of questions; it holds {_SHAPE}")
    return _collection(str(path), *parts)


def _questions(path: Path) -> Iterator[tuple[str, str]]:
    tabbed = path.name.removesuffix(".gz").endswith(".tsv")
    for at, line in _lines(path):
        if tabbed:
            id, _, text = line.partition("\t")
        else:
            said = _object(at, line)
            id, text = str(said.get("_id", said.get("id", ""))), str(said.get("text", ""))
        if not id or not text:
            raise ValueError(f'{at} is no query: {line!r}; a line is {{"_id": "q1", "text": "..."}}')
        yield id, text


def _object(at: str, line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{at} is not JSON ({error}); each line is one object") from error
    if not isinstance(said, dict):
        raise ValueError(f"{at} is not a JSON object, got {line!r}; each line is one object")
    return said


def _judgements(path: Path) -> Iterator[tuple[str, str, str, float]]:
    for number, (at, line) in enumerate(_lines(path)):
        columns = line.split("\t") if line.count("\t") in (2, 3) else line.split()
        if number == 0 and columns[0].lower().startswith("query"):
            continue
        if len(columns) not in (3, 4):
            raise ValueError(f"{at} is neither 'query 0 passage grade' nor 'query passage grade': {line!r}")
        try:
            yield at, columns[0], columns[-2], float(columns[-1])
        except ValueError as wrong:
            raise ValueError(f"{at} has the grade {columns[-1]!r}; a grade is a number") from wrong


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", line.strip("\r\n")


def _opened(path: Path) -> Any:
    # utf-8-sig: files from spreadsheets begin with a byte order mark.
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig")

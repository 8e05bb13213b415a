"""Question-answer datasets in LlamaIndex's JSON format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from m3_integrations.core.errors import InvalidFile
from m3_integrations.core.types import Passage, Query
from m3_integrations.data.beir import JudgedCollection
from m3_integrations.data.text_files import LONGEST_DOCUMENT, text_lines

_SHAPE = '{"queries": {"q1": "..."}, "corpus": {"d1": "..."}, "relevant_docs": {"q1": ["d1"]}}'


@runtime_checkable
class Dataset(Protocol):
    """The attributes of LlamaIndex's EmbeddingQAFinetuneDataset; LlamaIndex is not required."""

    @property
    def queries(self) -> Mapping[str, str]:
        """Query id to text."""

    @property
    def corpus(self) -> Mapping[str, str]:
        """Passage id to text."""

    @property
    def relevant_docs(self) -> Mapping[str, Iterable[str]]:
        """Query id to ids of the passages that answer it, or to grades by id."""


Source: TypeAlias = Dataset | JudgedCollection | str | os.PathLike[str]


def load_qa_dataset(source: Source) -> JudgedCollection:
    """Load the passages and judged queries of a question-answer dataset.

    Args:
        source: A dataset, the path of a JSON file (plain or .gz) as `save_json` writes it, or a JudgedCollection, which
            is returned as it is.

    Returns:
        The collection. Answers have grade 1 unless `relevant_docs` gives grades; answers of unknown queries are
        ignored.

    Raises:
        ValueError: If no query has an answer though others have, or an answer is not in the corpus.
    """
    if isinstance(source, JudgedCollection):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_json(Path(source))
    if not isinstance(source, Dataset):
        raise ValueError(f"a dataset has .queries, .corpus and .relevant_docs, or is a path to a file; got {source!r}")
    return _to_collection("the dataset", source.queries, source.corpus, source.relevant_docs)


def _to_collection(
    source_name: str, queries: Mapping[str, str], corpus: Mapping[str, str], relevant: Mapping[str, Iterable[str]]
) -> JudgedCollection:
    if relevant and queries and not relevant.keys() & queries.keys():
        raise InvalidFile(
            f"{source_name} answers {next(iter(relevant))!r} and none of its queries; is it another dataset's?"
        )
    judged = [Query(id, text, _grades(relevant.get(id, ()))) for id, text in queries.items()]
    for query in judged:
        if unknown := sorted(set(query.relevant) - set(corpus)):
            raise InvalidFile(
                f"{source_name} says that {unknown[0]!r} answers query {query.id!r}, and its corpus does not hold it; "
                "add that text to the corpus, or remove it from relevant_docs"
            )
    return JudgedCollection([Passage(id, text) for id, text in corpus.items()], judged)


def _grades(answers: Iterable[str]) -> Mapping[str, float]:
    if isinstance(answers, Mapping):
        return {str(id): float(grade) for id, grade in answers.items()}
    if isinstance(answers, str):
        raise ValueError(f'the passages that answer a query are a list of ids, got {answers!r}; write ["{answers}"]')
    return dict.fromkeys(answers, 1.0)


def _read_json(path: Path) -> JudgedCollection:
    text = "".join(text_lines(path, LONGEST_DOCUMENT))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{path} is not JSON ({error}); it holds {_SHAPE}") from error
    parts = (
        [content.get(name) for name in ("queries", "corpus", "relevant_docs")] if isinstance(content, dict) else [None]
    )
    if not all(isinstance(part, dict) for part in parts):
        raise InvalidFile(f"{path} is not a question-answer dataset; it should hold {_SHAPE}")
    try:
        return _to_collection(str(path), *parts)
    except InvalidFile:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InvalidFile(f"{path} is not a question-answer dataset ({error}); it should hold {_SHAPE}") from error

"""Training examples (query, positives, hard negatives, teacher scores) and their files."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from m3_integrations.core.errors import InvalidFile
from m3_integrations.core.types import Query
from m3_integrations.data.beir import JudgedCollection, read_beir
from m3_integrations.data.qa_json import Source, load_qa_dataset
from m3_integrations.data.question_generation import read_pairs
from m3_integrations.data.text_files import parse_object, read_lines

FieldNames: TypeAlias = Literal["m3", "flag_embedding"]
# Field of Example -> field in FlagEmbedding's files.
FLAG_EMBEDDING = {
    "query": "query",
    "positives": "pos",
    "negatives": "neg",
    "positive_scores": "pos_scores",
    "negative_scores": "neg_scores",
}
_LINE_FORMAT = 'a line is {"query": "...", "positives": ["..."], "negatives": ["..."]}'
_PAIR_FIELDS = {"query", "passage", "text"}


@dataclass(frozen=True, slots=True)
class Example:
    """A query with relevant passages and hard negatives.

    Attributes:
        query: Text of the query.
        positives: Passages that answer the query, at least one.
        negatives: Hard negatives; none by default.
        positive_scores: A teacher's score of each positive; None without a teacher.
        negative_scores: A teacher's score of each negative; given exactly if `positive_scores` is.

    Raises:
        ValueError: If a text is blank, there is no positive, or the scores are not one finite number per passage.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] | None = None
    negative_scores: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("positives", "negatives"):
            object.__setattr__(self, name, _check_texts(name, getattr(self, name)))
        if not isinstance(self.query, str) or not self.query.strip():
            raise ValueError(f"query must not be blank, got {self.query!r}")
        if not self.positives:
            raise ValueError(f"the query {self.query!r} has no positives; omit the example")
        if (self.positive_scores is None) != (self.negative_scores is None):
            raise ValueError("positive_scores and negative_scores must be given together: pass both or neither")
        for name, passages in (("positive_scores", self.positives), ("negative_scores", self.negatives)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _check_scores(name, getattr(self, name), len(passages)))

    def drop_false_negatives(self) -> Example:
        """Drop negatives identical to a positive or to the query.

        Returns:
            The example without them.
        """
        known = {self.query, *self.positives}
        remaining = [i for i, text in enumerate(self.negatives) if text not in known]
        if len(remaining) == len(self.negatives):
            return self
        scores = self.negative_scores
        return replace(
            self,
            negatives=tuple(self.negatives[i] for i in remaining),
            negative_scores=None if scores is None else tuple(scores[i] for i in remaining),
        )


def read_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """Read examples from a JSONL file, as `write_examples` or FlagEmbedding writes it.

    Each line has the fields of Example, or query, pos, neg, pos_scores and neg_scores; other fields are ignored.
    Negatives identical to a positive or to the query, which public files contain, are dropped.

    Args:
        path: File, plain or .gz.

    Yields:
        Examples in the order of the file.

    Raises:
        InvalidFile: If a line is no example; the message names file and line.
    """
    for location, line in read_lines(Path(path)):
        fields = parse_object(location, line, _LINE_FORMAT)
        try:
            example = _parse_example(fields)
        except ValueError as error:
            raise InvalidFile(f"{location} is no example: {error}; {_LINE_FORMAT}") from error
        yield example.drop_false_negatives()


def write_examples(path: str | os.PathLike[str], examples: Iterable[Example], fields: FieldNames = "m3") -> None:
    """Write examples to a JSONL file, one per line, as they are produced.

    The file appears only once it is complete: it is written to a temporary neighbor and renamed.

    Args:
        path: Target file; the suffix .gz compresses it.
        examples: Examples to write.
        fields: "m3" for our field names, "flag_embedding" for those that FlagEmbedding's training reads.
    """
    names = FLAG_EMBEDDING if fields == "flag_embedding" else {name: name for name in FLAG_EMBEDDING}
    target = Path(path)
    temporary = target.with_name(f"{target.name}.part")
    with (gzip.open if target.suffix == ".gz" else open)(temporary, "wt", encoding="utf-8") as file:
        for example in examples:
            line = {names[name]: getattr(example, name) for name in names if getattr(example, name) is not None}
            file.write(f"{json.dumps(line, ensure_ascii=False)}\n")
    temporary.replace(target)


def to_examples(source: Source) -> list[Example]:
    """Convert judged queries to examples.

    Passages with a grade above 0 are positives, other judged passages negatives. Blank texts and queries without a
    positive are omitted.

    Args:
        source: A JudgedCollection, a LlamaIndex dataset, or the path of its JSON file.

    Returns:
        Examples in the order of the queries.

    Raises:
        ValueError: If no query has an answer though other ids have, or an answer is not in the corpus.
    """
    collection = load_qa_dataset(source)
    texts = {passage.id: passage.text for passage in collection.passages}
    judged = [_to_example(query, texts) for query in collection.queries]
    return [example.drop_false_negatives() for example in judged if example]


def read_parallel(path: str | os.PathLike[str], bidirectional: bool = False) -> list[Example]:
    """Read sentences and their translations as queries and positives.

    Args:
        path: File of lines with two tab-separated columns, plain or .gz.
        bidirectional: Add the examples with query and positive swapped; default False.

    Returns:
        One example per line, followed by the swapped ones.

    Raises:
        ValueError: If a line is not two texts; the message names file and line.
    """
    pairs = [_parse_columns(location, line) for location, line in read_lines(Path(path))]
    if bidirectional:
        pairs += [(right, left) for left, right in pairs]
    return [Example(left, (right,)) for left, right in pairs]


def load_examples(path: str | os.PathLike[str], split: str = "train", qrels: str = "qrels") -> list[Example]:
    """Load examples from a file or folder of any supported format.

    Formats: a BEIR folder; .tsv with parallel sentences; .json of a LlamaIndex dataset; .jsonl with examples (our field
    names or FlagEmbedding's) or with generated questions. All files but those of generated questions may be .gz.

    Args:
        path: File or folder.
        split: Split of a BEIR folder.
        qrels: Folder of the split's judgements within a BEIR folder.

    Returns:
        At least one example.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If the format is not supported or there is no example.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; pass a BEIR folder, or a .jsonl, .json or .tsv file")
    examples = to_examples(read_beir(root, split, qrels)) if root.is_dir() else _read_file(root)
    if not examples:
        raise InvalidFile(f"{root} holds no training example: no query has a relevant passage")
    return examples


def _read_file(path: Path) -> list[Example]:
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".tsv":
        return read_parallel(path)
    if kind == ".json":
        return to_examples(path)
    if kind != ".jsonl":
        raise InvalidFile(f"{path} ends in {kind!r}; pass a BEIR folder, or a .jsonl, .json or .tsv file")
    return _read_pair_file(path) if _is_pair_file(path) else list(read_examples(path))


def _is_pair_file(path: Path) -> bool:
    first = next(read_lines(path), None)
    return first is not None and parse_object(*first, _LINE_FORMAT).keys() >= _PAIR_FIELDS


def _read_pair_file(path: Path) -> list[Example]:
    if path.suffix == ".gz":
        raise InvalidFile(f"{path} holds generated questions, which must not be compressed; run: gunzip {path}")
    queries, passages = read_pairs(path)
    return to_examples(JudgedCollection(passages, queries))


def _to_example(query: Query, texts: Mapping[str, str]) -> Example | None:
    graded = [(texts[id], grade) for id, grade in query.relevant.items() if texts[id].strip()]
    positives = tuple(dict.fromkeys(text for text, grade in graded if grade > 0))
    negatives = tuple(dict.fromkeys(text for text, grade in graded if grade <= 0))
    return Example(query.text, positives, negatives) if positives and query.text.strip() else None


def _parse_example(fields: Mapping[str, Any]) -> Example:
    values = {name: fields.get(name, fields.get(alias)) or None for name, alias in FLAG_EMBEDDING.items()}
    if values["positive_scores"] and not values["negatives"]:
        # Without negatives, FlagEmbedding writes [], null or no field.
        values["negative_scores"] = values["negative_scores"] or ()
    query, positives, negatives, *scores = values.values()
    return Example(query or "", positives or (), negatives or (), *scores)


def _check_texts(name: str, texts: Any) -> tuple[str, ...]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ValueError(f"{name} must be a list of texts, got {texts!r}")
    if invalid := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise ValueError(f"{name} must be texts and not blank, got {invalid[0]!r} among them")
    return tuple(texts)


def _check_scores(name: str, scores: Any, count: int) -> tuple[float, ...]:
    if isinstance(scores, str) or not isinstance(scores, Sequence) or len(scores) != count:
        raise ValueError(f"{name} must be one number per passage, {count} in all, got {scores!r}")
    if invalid := [
        score for score in scores if not isinstance(score, int | float) or not abs(score) <= sys.float_info.max
    ]:
        raise ValueError(f"{name} must be finite numbers, got {invalid[0]!r} among them")
    return tuple(float(score) for score in scores)


def _parse_columns(location: str, line: str) -> tuple[str, str]:
    columns = [column.strip() for column in line.split("\t")]
    if len(columns) != 2 or not all(columns):
        raise InvalidFile(f"{location} must be a sentence and its translation separated by a tab, got {line!r}")
    return columns[0], columns[1]

"""What a model learns from: a query, passages that answer it, others that do not, and what a teacher thinks of them."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from m3_integrations.core.questions import read_pairs
from m3_integrations.core.texts import Query
from m3_integrations.evaluation.beir import Collection, read_beir
from m3_integrations.nudging.datasets import Source, collection_of

Fields: TypeAlias = Literal["m3", "flag_embedding"]
# Each field of an Example, as FlagEmbedding's files call it.
FLAG_EMBEDDING = {
    "query": "query",
    "positives": "pos",
    "negatives": "neg",
    "positive_scores": "pos_scores",
    "negative_scores": "neg_scores",
}
_LINE = '{"query": "...", "positives": ["..."], "negatives": ["..."]}'
_PAIR = {"query", "passage", "text"}


@dataclass(frozen=True, slots=True)
class Example:
    """A query, the passages that answer it, and passages that do not though they look as if.

    positive_scores, negative_scores: what a teacher gives each positive and each negative; both or neither.
    Raises ValueError for a blank text, for no positives, and for scores that are not one a passage or not finite.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] | None = None
    negative_scores: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("positives", "negatives"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        if not isinstance(self.query, str) or not self.query.strip():
            raise ValueError(f"an example needs a query that is not blank, got {self.query!r}")
        if not self.positives:
            raise ValueError(
                f"the query {self.query!r} has no positives; leave it out, nothing is to be learned from it"
            )
        if (self.positive_scores is None) != (self.negative_scores is None):
            raise ValueError("a teacher scores the positives and the negatives; give both scores or neither")
        for name, passages in (("positive_scores", self.positives), ("negative_scores", self.negatives)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _scores(name, getattr(self, name), len(passages)))

    def without_false_negatives(self) -> Example:
        """The same without negatives that are a positive, or the query, letter by letter."""
        known = {self.query, *self.positives}
        kept = [i for i, text in enumerate(self.negatives) if text not in known]
        if len(kept) == len(self.negatives):
            return self
        scores = self.negative_scores
        return replace(
            self,
            negatives=tuple(self.negatives[i] for i in kept),
            negative_scores=None if scores is None else tuple(scores[i] for i in kept),
        )


def read_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """The examples of a file of JSON lines, plain or .gz, as `write_examples` wrote them or as FlagEmbedding does.

    A line's fields are those of Example, or query, pos, neg, pos_scores and neg_scores; others are passed over.
    A negative that equals a positive or the query is left out: public files hold such.
    Raises ValueError, naming file and line, for a line that is no example.
    """
    for at, line in _lines(Path(path)):
        fields = _object(at, line)
        try:
            example = _example(fields)
        except ValueError as wrong:
            raise ValueError(f"{at} is no example: {wrong}; a line is {_LINE}") from wrong
        yield example.without_false_negatives()


def write_examples(path: str | os.PathLike[str], examples: Iterable[Example], fields: Fields = "m3") -> None:
    """Write examples as they come, one a line of JSON; packed where the path ends in .gz.

    fields: "flag_embedding" names them as FlagEmbedding's training reads them.
    The file is whole or not there: it is written beside its place and renamed.
    """
    names = FLAG_EMBEDDING if fields == "flag_embedding" else {name: name for name in FLAG_EMBEDDING}
    target = Path(path)
    half_written = target.with_name(f"{target.name}.part")
    with (gzip.open if target.suffix == ".gz" else open)(half_written, "wt", encoding="utf-8") as file:
        for example in examples:
            said = {names[name]: getattr(example, name) for name in names if getattr(example, name) is not None}
            file.write(f"{json.dumps(said, ensure_ascii=False)}\n")
    half_written.replace(target)


def examples_of(source: Source) -> list[Example]:
    """The judged queries of a Collection, a LlamaIndex dataset, or a dataset's JSON file, as examples.

    Passages with a grade above 0 are positives, judged ones without are negatives; blank texts and queries without a
    positive are left out. What is raised: `m3_integrations.nudging.datasets.collection_of`.
    """
    collection = collection_of(source)
    texts = {passage.id: passage.text for passage in collection.passages}
    judged = [_judged(query, texts) for query in collection.queries]
    return [example.without_false_negatives() for example in judged if example is not None]


def read_parallel(path: str | os.PathLike[str], both_ways: bool = False) -> list[Example]:
    """Sentences and their translations: lines of two columns with a tab between, plain or .gz.

    both_ways: the translations ask for the sentences too.
    Raises ValueError, naming file and line, for a line that is not two texts.
    """
    pairs = [_columns(at, line) for at, line in _lines(Path(path))]
    there = [Example(left, (right,)) for left, right in pairs]
    return there + [Example(right, (left,)) for left, right in pairs] if both_ways else there


def read_source(path: str | os.PathLike[str], split: str = "train", qrels: str = "qrels") -> list[Example]:
    """The examples of whatever a path names.

    A BEIR folder: queries that <qrels>/<split>.tsv judges. A .tsv: parallel sentences. A .json: a LlamaIndex dataset.
    A .jsonl: examples, ours or FlagEmbedding's, or questions that `m3_integrations.core.questions` wrote. All but these
    questions may be .gz.
    Raises FileNotFoundError for what is not there, ValueError for what is none of these or holds no example.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"there is no {root}; name a BEIR folder, or a .jsonl, .json or .tsv file")
    examples = examples_of(read_beir(root, split, qrels)) if root.is_dir() else _read_file(root)
    if not examples:
        raise ValueError(f"{root} holds no example to learn from: no query with a passage that answers it")
    return examples


def _read_file(path: Path) -> list[Example]:
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".tsv":
        return read_parallel(path)
    if kind == ".json":
        return examples_of(path)
    if kind != ".jsonl":
        raise ValueError(f"{path} ends in {kind!r}; examples are read from a BEIR folder, .jsonl, .json or .tsv")
    return _read_questions(path) if _holds_questions(path) else list(read_examples(path))


def _holds_questions(path: Path) -> bool:
    first = next(_lines(path), None)
    return first is not None and _object(*first).keys() >= _PAIR


def _read_questions(path: Path) -> list[Example]:
    if path.suffix == ".gz":
        raise ValueError(f"{path} holds questions about passages, which are read unpacked; run: gunzip {path}")
    queries, passages = read_pairs(path)
    return examples_of(Collection(passages, queries))


def _judged(query: Query, texts: Mapping[str, str]) -> Example | None:
    told = [(texts[id], grade) for id, grade in query.relevant.items() if texts[id].strip()]
    positives = tuple(dict.fromkeys(text for text, grade in told if grade > 0))
    negatives = tuple(dict.fromkeys(text for text, grade in told if grade <= 0))
    return Example(query.text, positives, negatives) if positives and query.text.strip() else None


def _example(fields: Mapping[str, Any]) -> Example:
    said = {name: fields.get(name, fields.get(theirs)) or None for name, theirs in FLAG_EMBEDDING.items()}
    if said["positive_scores"] and not said["negatives"]:
        said["negative_scores"] = (
            said["negative_scores"] or ()
        )  # there is nothing to score, and FlagEmbedding writes [], null or no such field
    query, positives, negatives, *scores = said.values()
    return Example(query or "", positives or (), negatives or (), *scores)


def _texts(name: str, texts: Any) -> tuple[str, ...]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ValueError(f"{name} are a list of texts, got {texts!r}")
    if broken := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise ValueError(f"{name} are texts that are not blank, got {broken[0]!r} among them")
    return tuple(texts)


def _scores(name: str, scores: Any, count: int) -> tuple[float, ...]:
    if isinstance(scores, str) or not isinstance(scores, Sequence) or len(scores) != count:
        raise ValueError(f"{name} are one number a passage, {count} of them, got {scores!r}")
    if broken := [score for score in scores if not isinstance(score, int | float) or not math.isfinite(score)]:
        raise ValueError(f"{name} are finite numbers, got {broken[0]!r} among them")
    return tuple(float(score) for score in scores)


def _columns(at: str, line: str) -> tuple[str, str]:
    columns = [column.strip() for column in line.split("\t")]
    if len(columns) != 2 or not all(columns):
        raise ValueError(f"{at} is not a sentence and its translation with a tab between: {line!r}")
    return columns[0], columns[1]


def _object(at: str, line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{at} is not JSON ({error}); a line is {_LINE}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{at} is not a JSON object, got {line!r}; a line is {_LINE}")
    return said


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, and where it stands: its file and number."""
    # utf-8-sig: files from spreadsheets begin with a byte order mark.
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", line.strip("\r\n")

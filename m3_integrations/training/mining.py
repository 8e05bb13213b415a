"""Hard-negative mining: high-ranking passages without the answer to a query."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.scoring import score
from m3_integrations.data.splits import normalize_question
from m3_integrations.retrieval.retriever import Match, Retriever
from m3_integrations.training.data.examples import Example, FieldNames, write_examples

T = TypeVar("T")
Reason: TypeAlias = Literal["window", "known", "margin", "teacher"]
# Why a query got fewer negatives than requested, as a report says it.
REASON_TEXTS: Mapping[Reason, str] = {
    "window": "too few passages within the ranks",
    "known": "passages are positives, the query itself, or duplicates",
    "margin": "scores are too close to the positives",
    "teacher": "the teacher's scores are too close to the positives",
}


class Teacher(Protocol):
    """Scorer of passages for a query, such as a cross-encoder; higher is better."""

    def __call__(self, query: str, passages: Sequence[str], /) -> Sequence[float] | np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Margin:
    """Minimum distance between a negative's score and the lowest positive's.

    Attributes:
        absolute: Distance in units of the score; default 0.
        relative: Distance as a share of the positive's score; default 0. The larger distance counts.

    Raises:
        ValueError: If a distance is negative.
    """

    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        if not (self.absolute >= 0 and self.relative >= 0):
            raise ValueError(f"margins must be at least 0, got absolute={self.absolute} and relative={self.relative}")

    def max_score(self, positive_scores: Sequence[float]) -> float:
        """Compute a negative's maximum score: the lowest positive's score less the margin.

        Args:
            positive_scores: Scores of the positives.

        Returns:
            The largest score that a negative may have.
        """
        lowest = min(positive_scores)
        return lowest - max(self.absolute, self.relative * abs(lowest))


@dataclass(frozen=True, slots=True)
class MiningOptions:
    """Selection of negatives among the retrieved passages.

    Attributes:
        negatives: Maximum negatives per query.
        first: Best rank to select from; 1 is the top.
        last: Worst rank to select from.
        margin: Margin on the retriever's scores; None for none.
        teacher_margin: Margin on a teacher's scores; None to record its scores without filtering. By default, a
            negative has at most 95 % of the positive's score, as in NV-Retriever (arXiv 2407.15831).

    Raises:
        ValueError: If negatives is below 1, or not 1 <= first <= last.
    """

    negatives: int = 7
    first: int = 1
    last: int = 100
    margin: Margin | None = None
    teacher_margin: Margin | None = Margin(relative=0.05)

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {self.negatives}")
        if not 1 <= self.first <= self.last:
            raise ValueError(f"ranks must be 1 <= first <= last, got first={self.first} and last={self.last}")


@dataclass(frozen=True, slots=True)
class Mined:
    """An example with mined negatives, and the reason for a shortfall (None without one)."""

    example: Example
    reason: Reason | None

    @property
    def shortfall(self) -> tuple[int, Reason | None]:
        """Number of negatives, and the reason for a shortfall."""
        return len(self.example.negatives), self.reason


@dataclass(frozen=True, slots=True)
class MiningReport:
    """Summary of mining.

    Attributes:
        queries: Mined queries.
        negatives: Negatives of all queries.
        without_negatives: Queries without negatives.
        shortfalls: Queries with fewer negatives than requested, by reason.
    """

    queries: int
    negatives: int
    without_negatives: int
    shortfalls: Mapping[Reason, int]

    @classmethod
    def from_shortfalls(cls, shortfalls: Iterable[tuple[int, Reason | None]]) -> MiningReport:
        """Summarize the `Mined.shortfall` of each query.

        Args:
            shortfalls: Number of negatives of each query, and the reason if there are too few.

        Returns:
            The report.
        """
        pairs = list(shortfalls)
        counts = [count for count, _ in pairs]
        reasons = dict(Counter(why for _, why in pairs if why is not None))
        return cls(len(counts), sum(counts), counts.count(0), reasons)

    def __str__(self) -> str:
        lines = [f"{self.negatives} negatives for {self.queries} queries; {self.without_negatives} queries got none"]
        texts = REASON_TEXTS.items()
        lines += [f"{count} got fewer: {text}" for why, text in texts if (count := self.shortfalls.get(why))]
        return "\n".join(lines)


def mine(
    examples: Iterable[Example],
    retriever: Retriever,
    mining: MiningOptions | None = None,
    *,
    teacher: Teacher | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[list[Example], MiningReport]:
    """Mine negatives for all examples.

    Args:
        examples: Examples; their negatives are replaced.
        retriever: Retriever over the corpus.
        mining: Options; None for the defaults.
        teacher: Scorer that filters the negatives; see `mine_each`.
        rng: Source of randomness; None selects the best ranks.

    Returns:
        The examples with negatives, in order, and a summary.

    Raises:
        ValueError: If a teacher does not return one finite number per passage.
    """
    mined = list(mine_each(examples, retriever, mining, teacher=teacher, rng=rng))
    return [each.example for each in mined], MiningReport.from_shortfalls(each.shortfall for each in mined)


def mine_each(
    examples: Iterable[Example],
    retriever: Retriever,
    mining: MiningOptions | None = None,
    *,
    teacher: Teacher | None = None,
    rng: np.random.Generator | None = None,
    batch: int = 64,
) -> Iterator[Mined]:
    """Mine negatives lazily, reading the examples batch by batch.

    A negative is never a positive, the query or another negative of its example, compared by text without case and
    spacing.

    Args:
        examples: Examples; their negatives are replaced.
        retriever: Retriever over the corpus.
        mining: Options; None for the defaults.
        teacher: Scorer of the candidates and the positives; it filters by `MiningOptions.teacher_margin`, and its
            scores are stored in the examples.
        rng: Source of randomness, to select negatives uniformly from all candidates; None selects the best ranks.
        batch: Queries per search; default 64.

    Yields:
        Mined examples, in order.

    Raises:
        ValueError: If batch is below 1, or a teacher does not return one finite number per passage.
    """
    options = mining or MiningOptions()
    for chunk in _iter_batches(examples, batch):
        queries = retriever.encode([example.query for example in chunk])
        retrieved = retriever.retrieve_encoded(queries, options.last)
        limits = _max_scores(retriever, queries, chunk, retrieved, options.margin)
        for example, matches, limit in zip(chunk, retrieved, limits, strict=True):
            yield _select_negatives(example, matches[options.first - 1 :], limit, options, teacher, rng)


def write_mined(path: str | os.PathLike[str], mined: Iterable[Mined], fields: FieldNames = "m3") -> MiningReport:
    """Write mined examples to a JSONL file as they are produced.

    Args:
        path: Target file; the suffix .gz compresses it.
        mined: Results of `mine_each`.
        fields: Field names, as in `write_examples`.

    Returns:
        A summary.
    """
    shortfalls = []

    def record() -> Iterator[Example]:
        for each in mined:
            shortfalls.append(each.shortfall)
            yield each.example

    write_examples(path, record(), fields)
    return MiningReport.from_shortfalls(shortfalls)


def _max_scores(
    retriever: Retriever,
    queries: Encoded,
    examples: Sequence[Example],
    retrieved: Sequence[Sequence[Match]],
    margin: Margin | None,
) -> list[float]:
    """Each query's maximum score of a negative; positives not retrieved are scored too."""
    if margin is None or not any(retrieved):
        return [np.inf] * len(examples)
    scored = [{match.passage.text: match.score for match in reversed(matches)} for matches in retrieved]
    pairs = [(i, text) for i, each in enumerate(examples) for text in each.positives if text not in scored[i]]
    if pairs:
        rows = {text: row for row, text in enumerate(dict.fromkeys(text for _, text in pairs))}
        weights = _weights(retriever, queries)
        passages = retriever.encoder.encode_passages(list(rows), weights.keys())
        for i, text in pairs:
            scored[i][text] = float(score(queries.take([i]), passages.take([rows[text]]), weights)[0, 0])
    return [
        margin.max_score([scores[text] for text in each.positives])
        for scores, each in zip(scored, examples, strict=True)
    ]


def _weights(retriever: Retriever, queries: Encoded) -> dict[Mode, float]:
    return {mode: weight for mode, weight in retriever.weights.items() if mode in queries.modes}


def _select_negatives(
    example: Example,
    matches: Sequence[Match],
    max_score: float,
    mining: MiningOptions,
    teacher: Teacher | None,
    rng: np.random.Generator | None,
) -> Mined:
    unknown = _drop_known(example, matches)
    below = [match.passage.text for match in unknown if match.score <= max_score]
    texts = below if rng is None else [below[i] for i in rng.permutation(len(below))]
    if teacher is None:
        mined = Example(example.query, example.positives, tuple(texts[: mining.negatives]))
    else:
        mined = _filter_by_teacher(example, texts, mining, teacher)
    remaining: dict[Reason, int] = {
        "window": len(matches),
        "known": len(unknown),
        "margin": len(below),
        "teacher": len(mined.negatives),
    }
    return Mined(mined, next((why for why, count in remaining.items() if count < mining.negatives), None))


def _drop_known(example: Example, matches: Sequence[Match]) -> list[Match]:
    """Drop positives, the query, blank texts and repetitions of a better match."""
    known = {normalize_question(text) for text in ("", example.query, *example.positives)}
    unknown = []
    for match in matches:
        text = normalize_question(match.passage.text)
        if text not in known:
            unknown.append(match)
            known.add(text)
    return unknown


def _filter_by_teacher(example: Example, texts: Sequence[str], mining: MiningOptions, teacher: Teacher) -> Example:
    """Take the first texts within the teacher's margin, scored a few at a time."""
    positive_scores = _teacher_scores(teacher, example.query, example.positives)
    max_score = np.inf if mining.teacher_margin is None else mining.teacher_margin.max_score(positive_scores)
    accepted: list[tuple[str, float]] = []
    candidates = iter(texts)
    while len(accepted) < mining.negatives and (chunk := list(islice(candidates, mining.negatives))):
        scored = zip(chunk, _teacher_scores(teacher, example.query, chunk), strict=True)
        accepted += [(text, value) for text, value in scored if value <= max_score]
    del accepted[mining.negatives :]
    return Example(
        example.query,
        example.positives,
        tuple(text for text, _ in accepted),
        tuple(positive_scores),
        tuple(value for _, value in accepted),
    )


def _teacher_scores(teacher: Teacher, query: str, passages: Sequence[str]) -> list[float]:
    scores = np.asarray(teacher(query, passages), np.float64)
    if scores.shape != (len(passages),) or not np.isfinite(scores).all():
        raise ValueError(
            f"a teacher must return one finite number per passage, {len(passages)} in all, got {scores.tolist()} for "
            f"the query {query!r}"
        )
    values: list[float] = scores.tolist()
    return values


def _iter_batches(examples: Iterable[T], size: int) -> Iterator[list[T]]:
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {size}")
    remaining = iter(examples)
    while chunk := list(islice(remaining, size)):
        yield chunk

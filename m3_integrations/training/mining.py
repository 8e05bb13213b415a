"""Hard negatives: passages that a retriever finds for a query and that do not answer it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from m3_integrations.core.encoded import Encoded, Mode, score
from m3_integrations.nudging.splits import normalised
from m3_integrations.retrieval.retriever import Match, Retriever
from m3_integrations.training.data import Example, Fields, write_examples

T = TypeVar("T")
Reason: TypeAlias = Literal["window", "known", "margin", "teacher"]
# Why a query has fewer negatives than asked, in the words of a report.
WHY: Mapping[Reason, str] = {
    "window": "the retriever found too few passages within the ranks",
    "known": "the passages found are positives, the query itself, or repeat one another",
    "margin": "the passages found score too near the positives",
    "teacher": "the teacher scores the passages found too near the positives",
}


class Teacher(Protocol):
    """Scores passages for a query, such as a cross-encoder does; higher is better."""

    def __call__(self, query: str, passages: Sequence[str], /) -> Sequence[float] | np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Margin:
    """How far below every positive a negative must score: by `absolute`, and by the share `relative` of its score."""

    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        if not (self.absolute >= 0 and self.relative >= 0):
            raise ValueError(f"margins are at least 0, got absolute={self.absolute} and relative={self.relative}")

    def ceiling(self, positive_scores: Sequence[float]) -> float:
        """What a negative may score at most: the lowest positive's score less the margin."""
        lowest = min(positive_scores)
        return lowest - max(self.absolute, self.relative * abs(lowest))


@dataclass(frozen=True, slots=True)
class Mining:
    """Which of the passages that are found become negatives.

    negatives: how many a query gets. first, last: the ranks to take them from, 1 being the best that was found.
    margin: on the retriever's scores; None takes whatever ranks there.
    teacher_margin: on the teacher's scores, where there is one; None keeps its scores and drops nothing by them. By
    default a negative has at most 95 % of the positive's score, as in NV-Retriever (arXiv 2407.15831).
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
            raise ValueError(f"ranks are 1 <= first <= last, got first={self.first} and last={self.last}")


@dataclass(frozen=True, slots=True)
class Mined:
    """An example with its negatives, and where these are fewer than asked, what first left too few."""

    example: Example
    shortage: Reason | None

    @property
    def outcome(self) -> tuple[int, Reason | None]:
        """How many negatives there are, and what left too few."""
        return len(self.example.negatives), self.shortage


@dataclass(frozen=True, slots=True)
class MiningReport:
    """How many queries were mined, how many got no negatives, and how many fewer than asked, by reason."""

    queries: int
    negatives: int
    without: int
    short: Mapping[Reason, int]

    @classmethod
    def of(cls, outcomes: Iterable[tuple[int, Reason | None]]) -> MiningReport:
        """What came of each query: how many negatives, and what left too few."""
        told = list(outcomes)
        counts = [count for count, _ in told]
        return cls(len(counts), sum(counts), counts.count(0), Counter(why for _, why in told if why is not None))

    def __str__(self) -> str:
        lines = [f"{self.negatives} negatives for {self.queries} queries; {self.without} queries got none"]
        return "\n".join(lines + [f"{self.short[why]} got fewer: {WHY[why]}" for why in WHY if self.short.get(why)])


def mine(
    examples: Iterable[Example],
    retriever: Retriever,
    mining: Mining | None = None,
    *,
    teacher: Teacher | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[list[Example], MiningReport]:
    """Each example with negatives mined, in their order, and how it went; see `mine_each`."""
    asked = mining or Mining()
    mined = list(mine_each(examples, retriever, asked, teacher=teacher, rng=rng))
    return [each.example for each in mined], MiningReport.of(each.outcome for each in mined)


def mine_each(
    examples: Iterable[Example],
    retriever: Retriever,
    mining: Mining | None = None,
    *,
    teacher: Teacher | None = None,
    rng: np.random.Generator | None = None,
    batch: int = 64,
) -> Iterator[Mined]:
    """Examples with negatives from what a retriever finds for their queries, as they come.

    Negatives that an example has are replaced. None is a positive, the query, or another negative, whatever its id,
    case and spacing.
    teacher: judges what is taken, and the positives; its scores go into the example.
    rng: draws the negatives from all that may be taken; None takes the best ranked.
    batch: queries that are asked together.
    Raises ValueError where a teacher does not answer one finite number a passage.
    """
    asked = mining or Mining()
    for together in _batched(examples, batch):
        queries = retriever.encode([example.query for example in together])
        found = retriever.retrieve_encoded(queries, asked.last)
        ceilings = _ceilings(retriever, queries, together, found, asked.margin)
        for example, matches, ceiling in zip(together, found, ceilings, strict=True):
            yield _mined(example, matches[asked.first - 1 :], ceiling, asked, teacher, rng)


def write_mined(path: str | os.PathLike[str], mined: Iterable[Mined], fields: Fields = "m3") -> MiningReport:
    """Write mined examples as they come, as `write_examples` does, and answer how it went."""
    outcomes = []

    def noted() -> Iterator[Example]:
        for each in mined:
            outcomes.append(each.outcome)
            yield each.example

    write_examples(path, noted(), fields)
    return MiningReport.of(outcomes)


def _ceilings(
    retriever: Retriever,
    queries: Encoded,
    examples: Sequence[Example],
    found: Sequence[Sequence[Match]],
    margin: Margin | None,
) -> list[float]:
    """What the retriever may give a negative of each query at most; positives that it did not find count too."""
    if margin is None or not any(found):
        return [np.inf] * len(examples)
    scored = [{match.passage.text: match.score for match in reversed(matches)} for matches in found]
    pairs = [(i, text) for i, each in enumerate(examples) for text in each.positives if text not in scored[i]]
    if pairs:
        places = {text: place for place, text in enumerate(dict.fromkeys(text for _, text in pairs))}
        weights = _weights(retriever, queries)
        passages = retriever.encoder.encode_passages(list(places), weights.keys())
        for i, text in pairs:
            scored[i][text] = float(score(queries.take([i]), passages.take([places[text]]), weights)[0, 0])
    return [
        margin.ceiling([there[text] for text in each.positives]) for there, each in zip(scored, examples, strict=True)
    ]


def _weights(retriever: Retriever, queries: Encoded) -> dict[Mode, float]:
    stated = retriever.encoder.weights if retriever.plan.weights is None else retriever.plan.weights
    there = queries.modes & retriever.index.modes
    return {mode: weight for mode, weight in stated.items() if weight and mode in there}


def _mined(
    example: Example,
    matches: Sequence[Match],
    ceiling: float,
    mining: Mining,
    teacher: Teacher | None,
    rng: np.random.Generator | None,
) -> Mined:
    unknown = _unknown(example, matches)
    below = [match.passage.text for match in unknown if match.score <= ceiling]
    texts = below if rng is None else [below[i] for i in rng.permutation(len(below))]
    if teacher is None:
        mined = Example(example.query, example.positives, tuple(texts[: mining.negatives]))
    else:
        mined = _taught(example, texts, mining, teacher)
    left: dict[Reason, int] = {
        "window": len(matches),
        "known": len(unknown),
        "margin": len(below),
        "teacher": len(mined.negatives),
    }
    return Mined(mined, next((why for why, count in left.items() if count < mining.negatives), None))


def _unknown(example: Example, matches: Sequence[Match]) -> list[Match]:
    """The matches that are neither a positive, nor the query, nor blank, nor a text that ranks above them."""
    known = {normalised(text) for text in ("", example.query, *example.positives)}
    unknown = []
    for match in matches:
        text = normalised(match.passage.text)
        if text not in known:
            unknown.append(match)
            known.add(text)
    return unknown


def _taught(example: Example, texts: Sequence[str], mining: Mining, teacher: Teacher) -> Example:
    """The example with the first texts that the teacher lets pass, judged a handful at a time, and its scores."""
    positive_scores = _judged(teacher, example.query, example.positives)
    ceiling = np.inf if mining.teacher_margin is None else mining.teacher_margin.ceiling(positive_scores)
    passed: list[tuple[str, float]] = []
    waiting = iter(texts)
    while len(passed) < mining.negatives and (some := list(islice(waiting, mining.negatives))):
        judged = zip(some, _judged(teacher, example.query, some), strict=True)
        passed += [(text, given) for text, given in judged if given <= ceiling]
    taken = passed[: mining.negatives]
    return Example(
        example.query,
        example.positives,
        tuple(text for text, _ in taken),
        tuple(positive_scores),
        tuple(given for _, given in taken),
    )


def _judged(teacher: Teacher, query: str, passages: Sequence[str]) -> list[float]:
    scores = np.asarray(teacher(query, passages), np.float64)
    if scores.shape != (len(passages),) or not np.isfinite(scores).all():
        raise ValueError(
            f"a teacher answers one finite number a passage, {len(passages)} of them, got {scores.tolist()} for the "
            f"query {query!r}"
        )
    judged: list[float] = scores.tolist()
    return judged


def _batched(examples: Iterable[T], size: int) -> Iterator[list[T]]:
    if size < 1:
        raise ValueError(f"batch must be at least 1, got {size}")
    waiting = iter(examples)
    while together := list(islice(waiting, size)):
        yield together

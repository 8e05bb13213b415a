"""Which examples of one source share a batch: those of like length, and none that answers another's question."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from m3_integrations.nudging.splits import normalised
from m3_integrations.training.data import Example

Counts: TypeAlias = npt.NDArray[np.int64]
TokenCount: TypeAlias = Callable[[Sequence[str]], Sequence[int]]

_LIKE = 1.2  # lengths within this ratio are alike, so that a batch is padded by a fifth at most where there are enough
_LOOK_AHEAD = 1000  # examples that a batch passes over before it closes; bounds the work on a source with few answers
_LENDERS = 4  # batches that give of their examples to one with room left
_CHUNK = 10_000  # texts that are counted in one call


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a batch.

    tokens: of its queries and passages at most, each padded to the longest; a single longer example is a batch.
    rows: examples at most; None sets no bound.
    """

    tokens: int
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The examples of a source, by number: what they weigh, and what they say.

    queries, passages: (n,) tokens of the query, and of the longest passage. groups: (n,) passages that one brings.
    said: the texts of the query and the positives, as numbers that are equal where the normalised texts are.
    """

    queries: Counts
    passages: Counts
    groups: Counts
    said: Sequence[tuple[int, ...]]


def measure(
    examples: Sequence[Example],
    token_count: TokenCount,
    negatives: int,
    longest_query: int | None = None,
    longest_passage: int | None = None,
) -> Measured:
    """The lengths and texts of examples that bring up to `negatives` negatives each.

    token_count: the tokens of each text, such as `M3Encoder.token_count`.
    longest_query, longest_passage: tokens that are read of a text at most.
    """
    queries = _counted((each.query for each in examples), token_count, longest_query)
    passages = _counted((text for each in examples for text in _passages(each)), token_count, longest_passage)
    numbers: dict[str, int] = {}
    known: dict[str, int] = {}  # texts that were normalised before: passages answer many queries

    def number(text: str) -> int:
        if text not in known:
            known[text] = numbers.setdefault(normalised(text), len(numbers))
        return known[text]

    return Measured(
        np.array([queries[each.query] for each in examples], np.int64),
        np.array([max(passages[text] for text in _passages(each)) for each in examples], np.int64),
        np.array([1 + min(negatives, len(each.negatives)) for each in examples], np.int64),
        [tuple(number(text) for text in (each.query, *each.positives)) for each in examples],
    )


def grouped(measured: Measured, limits: Limits, rng: np.random.Generator) -> list[list[int]]:
    """One epoch: every example once, in batches of like length, no two of a batch with a query or a positive in common.

    The batches, their order and who meets whom are drawn anew by each call.
    """
    waiting = deque(_by_length(measured, rng))
    batches: list[_Batch] = []
    roomy: list[int] = []
    while waiting:
        batch = _Batch(measured, limits)
        if not _fill(batch, waiting):
            roomy.append(len(batches))
        batches.append(batch)
    _even_out(batches, roomy)
    return [batches[i].rows for i in rng.permutation(len(batches))]


class _Batch:
    """A batch that may take another example."""

    def __init__(self, measured: Measured, limits: Limits, rows: Iterable[int] = ()) -> None:
        self._measured = measured
        self._limits = limits
        self.rows: list[int] = []
        self._said: set[int] = set()
        self._query = self._passage = self._passages = 0
        for row in rows:
            self.take(row)

    def __len__(self) -> int:
        return len(self.rows)

    def clashes(self, row: int) -> bool:
        return not self._said.isdisjoint(self._measured.said[row])

    def has_room(self, row: int) -> bool:
        if not self.rows:
            return True
        query, passage, passages = self._with(row)
        tokens = (len(self.rows) + 1) * query + passages * passage
        return tokens <= self._limits.tokens and (self._limits.rows is None or len(self.rows) < self._limits.rows)

    def take(self, row: int) -> None:
        self._query, self._passage, self._passages = self._with(row)
        self._said.update(self._measured.said[row])
        self.rows.append(row)

    def without(self, rows: Collection[int]) -> _Batch:
        return _Batch(self._measured, self._limits, (each for each in self.rows if each not in rows))

    def _with(self, row: int) -> tuple[int, int, int]:
        of = self._measured
        query, passage = max(self._query, int(of.queries[row])), max(self._passage, int(of.passages[row]))
        return query, passage, self._passages + int(of.groups[row])


def _fill(batch: _Batch, waiting: deque[int]) -> bool:
    """Take what fits of those that wait, until one has no room; those that clash stay first in the queue."""
    passed_over: list[int] = []
    while waiting and len(passed_over) < _LOOK_AHEAD and batch.has_room(waiting[0]):
        row = waiting.popleft()
        if batch.clashes(row):
            passed_over.append(row)
        else:
            batch.take(row)
    full = bool(waiting) and len(passed_over) < _LOOK_AHEAD
    waiting.extendleft(reversed(passed_over))
    return full


def _even_out(batches: list[_Batch], roomy: Sequence[int]) -> None:
    """Let batches with room take from the largest ones, until both have alike.

    Questions that one passage answers are left over at the end of an epoch; alone they would have nothing to be told
    from.
    """
    largest = [(-len(batch), place) for place, batch in enumerate(batches)]
    heapify(largest)
    for place in roomy:
        lenders = [heappop(largest)[1] for _ in range(min(_LENDERS, len(largest)))]
        for lender in lenders:
            batches[lender] = _lent(batches[lender], batches[place])
        for changed in (*lenders, place):
            heappush(largest, (-len(batches[changed]), changed))


def _lent(lender: _Batch, batch: _Batch) -> _Batch:
    """The lender without what the other batch took of it."""
    taken: set[int] = set()
    for row in lender.rows:
        if len(lender) - len(taken) <= len(batch) + 1:
            break
        if not batch.clashes(row) and batch.has_room(row):
            batch.take(row)
            taken.add(row)
    return lender.without(taken) if taken else lender


def _by_length(measured: Measured, rng: np.random.Generator) -> list[int]:
    """Every example, from short to long; those of like length in random order."""
    tokens = measured.queries + measured.groups * measured.passages
    length = np.floor(np.log(np.maximum(tokens, 1)) / np.log(_LIKE))
    order: list[int] = np.lexsort((rng.random(len(length)), length)).tolist()
    return order


def _counted(texts: Iterable[str], token_count: TokenCount, longest: int | None) -> dict[str, int]:
    distinct = list(dict.fromkeys(texts))
    counts: dict[str, int] = {}
    for start in range(0, len(distinct), _CHUNK):
        chunk = distinct[start : start + _CHUNK]
        counts.update(zip(chunk, token_count(chunk), strict=True))
    return counts if longest is None else {text: min(count, longest) for text, count in counts.items()}


def _passages(example: Example) -> tuple[str, ...]:
    return (*example.positives, *example.negatives)

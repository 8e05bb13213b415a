"""Length bucketing: batches of examples of similar length, without conflicting answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from m3_integrations.data.splits import normalize_question
from m3_integrations.training.data.examples import Example

Counts: TypeAlias = npt.NDArray[np.int64]
TokenCount: TypeAlias = Callable[[Sequence[str]], Sequence[int]]

_LENGTH_RATIO = 1.2  # between the longest and the shortest of a bucket, so that padding adds a fifth at most
_LOOK_AHEAD = 1000  # conflicting examples skipped before a batch closes; bounds the work on sources with few answers
_DONORS = 4  # batches that give examples to one unfilled batch
_CHUNK = 10_000  # texts per call of the token counter


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Upper bounds on the size of a batch.

    Attributes:
        tokens: Maximum tokens of its queries and passages, each side padded to its longest text. A single longer
            example forms its own batch.
        rows: Maximum examples; None for no bound.
    """

    tokens: int
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class ExampleLengths:
    """Token lengths and text identities of the n examples of a source.

    Attributes:
        queries: Tokens of each query, shape (n,).
        passages: Tokens of each example's longest passage, shape (n,).
        groups: Passages per row, positive included, shape (n,).
        text_ids: For each example, one number per query and positive; equal for texts that are equal once normalized.
    """

    queries: Counts
    passages: Counts
    groups: Counts
    text_ids: Sequence[tuple[int, ...]]


def measure(
    examples: Sequence[Example],
    token_count: TokenCount,
    negatives: int,
    longest_query: int | None = None,
    longest_passage: int | None = None,
) -> ExampleLengths:
    """Count the tokens of examples and number their texts.

    Args:
        examples: Examples of one source.
        token_count: Tokens of each text, such as `M3Encoder.token_count`.
        negatives: Maximum negatives per row.
        longest_query: Maximum tokens read of a query; None for all.
        longest_passage: Maximum tokens read of a passage; None for all.

    Returns:
        Lengths of the examples, in their order.
    """
    queries = _count_tokens((each.query for each in examples), token_count, longest_query)
    passages = _count_tokens((text for each in examples for text in _passages(each)), token_count, longest_passage)
    numbers: dict[str, int] = {}
    cache: dict[str, int] = {}  # by unnormalized text: one passage answers many queries

    def number(text: str) -> int:
        if text not in cache:
            cache[text] = numbers.setdefault(normalize_question(text), len(numbers))
        return cache[text]

    return ExampleLengths(
        np.array([queries[each.query] for each in examples], np.int64),
        np.array([max(passages[text] for text in _passages(each)) for each in examples], np.int64),
        np.array([1 + min(negatives, len(each.negatives)) for each in examples], np.int64),
        [tuple(number(text) for text in (each.query, *each.positives)) for each in examples],
    )


def bucket(lengths: ExampleLengths, limits: BatchLimits, rng: np.random.Generator) -> list[list[int]]:
    """Group the examples of one epoch into batches of similar length.

    No two examples of a batch share a query or a positive.

    Args:
        lengths: Lengths of the examples.
        limits: Bounds on a batch.
        rng: Source of randomness, for the members and the order of the batches.

    Returns:
        Batches of example numbers; every example occurs once.
    """
    queue = deque(_order_by_length(lengths, rng))
    batches: list[_LengthBatch] = []
    unfilled: list[int] = []
    while queue:
        batch = _LengthBatch(lengths, limits)
        if not _fill(batch, queue):
            unfilled.append(len(batches))
        batches.append(batch)
    _balance(batches, unfilled)
    return [batches[i].rows for i in rng.permutation(len(batches))]


class _LengthBatch:
    """A growing batch and its padded size."""

    def __init__(self, lengths: ExampleLengths, limits: BatchLimits, rows: Iterable[int] = ()) -> None:
        self._lengths = lengths
        self._limits = limits
        self.rows: list[int] = []
        self._text_ids: set[int] = set()
        self._query = self._passage = self._passages = 0
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self.rows)

    def conflicts_with(self, row: int) -> bool:
        return not self._text_ids.isdisjoint(self._lengths.text_ids[row])

    def fits(self, row: int) -> bool:
        if not self.rows:
            return True
        query, passage, passages = self._size_with(row)
        tokens = (len(self.rows) + 1) * query + passages * passage
        return tokens <= self._limits.tokens and (self._limits.rows is None or len(self.rows) < self._limits.rows)

    def add(self, row: int) -> None:
        self._query, self._passage, self._passages = self._size_with(row)
        self._text_ids.update(self._lengths.text_ids[row])
        self.rows.append(row)

    def without(self, rows: Collection[int]) -> _LengthBatch:
        return _LengthBatch(self._lengths, self._limits, (each for each in self.rows if each not in rows))

    def _size_with(self, row: int) -> tuple[int, int, int]:
        lengths = self._lengths
        query, passage = max(self._query, int(lengths.queries[row])), max(self._passage, int(lengths.passages[row]))
        return query, passage, self._passages + int(lengths.groups[row])


def _fill(batch: _LengthBatch, queue: deque[int]) -> bool:
    """Add queued examples without conflicts until one does not fit; True if full."""
    conflicting: list[int] = []
    while queue and len(conflicting) < _LOOK_AHEAD and batch.fits(queue[0]):
        row = queue.popleft()
        if batch.conflicts_with(row):
            conflicting.append(row)
        else:
            batch.add(row)
    full = bool(queue) and len(conflicting) < _LOOK_AHEAD
    queue.extendleft(reversed(conflicting))
    return full


def _balance(batches: list[_LengthBatch], unfilled: Sequence[int]) -> None:
    """Move examples from the largest batches to unfilled ones, until their sizes are equal.

    Queries that share one passage are left over at the end of an epoch; alone in a batch they would have no in-batch
    negatives.
    """
    largest = [(-len(batch), i) for i, batch in enumerate(batches)]
    heapify(largest)
    for i in unfilled:
        donors = [heappop(largest)[1] for _ in range(min(_DONORS, len(largest)))]
        for donor in donors:
            batches[donor] = _move_rows(batches[donor], batches[i])
        for changed in (*donors, i):
            heappush(largest, (-len(batches[changed]), changed))


def _move_rows(donor: _LengthBatch, batch: _LengthBatch) -> _LengthBatch:
    """Add rows of the donor to the batch; return the donor without them."""
    moved: set[int] = set()
    for row in donor.rows:
        if len(donor) - len(moved) <= len(batch) + 1:
            break
        if not batch.conflicts_with(row) and batch.fits(row):
            batch.add(row)
            moved.add(row)
    return donor.without(moved) if moved else donor


def _order_by_length(lengths: ExampleLengths, rng: np.random.Generator) -> list[int]:
    """All examples from short to long; those of similar length in random order."""
    tokens = lengths.queries + lengths.groups * lengths.passages
    length = np.floor(np.log(np.maximum(tokens, 1)) / np.log(_LENGTH_RATIO))
    order: list[int] = np.lexsort((rng.random(len(length)), length)).tolist()
    return order


def _count_tokens(texts: Iterable[str], token_count: TokenCount, longest: int | None) -> dict[str, int]:
    distinct = list(dict.fromkeys(texts))
    counts: dict[str, int] = {}
    for start in range(0, len(distinct), _CHUNK):
        chunk = distinct[start : start + _CHUNK]
        counts.update(zip(chunk, token_count(chunk), strict=True))
    return counts if longest is None else {text: min(count, longest) for text, count in counts.items()}


def _passages(example: Example) -> tuple[str, ...]:
    return (*example.positives, *example.negatives)

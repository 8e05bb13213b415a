"""What one step learns from: rows of a query, a positive and negatives, and where these stand among flat texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from m3_integrations.nudging.splits import normalised
from m3_integrations.training.data import Example
from m3_integrations.training.segments import shuffled_segments


@dataclass(frozen=True, slots=True)
class Row:
    """A query with the one positive and the negatives that were drawn for it, and a teacher's scores of these."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    positive_score: float | None = None
    negative_scores: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step, all of one source, or a worker's share of them."""

    step: int
    source: str
    rows: tuple[Row, ...]

    def share(self, rank: int, workers: int) -> Batch:
        """The rows of one of several workers: every workers-th. Empty where there are fewer rows than workers."""
        if not 0 <= rank < workers:
            raise ValueError(f"ranks run from 0 to workers - 1 = {workers - 1}, got {rank}")
        return Batch(self.step, self.source, self.rows[rank::workers])

    @property
    def queries(self) -> list[str]:
        """One a row."""
        return [row.query for row in self.rows]

    @property
    def passages(self) -> list[str]:
        """The positives, one a row, and after them the negatives, row by row."""
        return [row.positive for row in self.rows] + [text for row in self.rows for text in row.negatives]

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """(rows, 1 + most negatives): where each row's positive and negatives stand in `passages`; -1 for none."""
        counts = np.array([len(row.negatives) for row in self.rows], np.int64)
        starts = len(self.rows) + np.cumsum(counts) - counts
        places = np.arange(counts.max(initial=0))
        negatives = np.where(places < counts[:, None], starts[:, None] + places, -1)
        return np.column_stack((np.arange(len(self.rows)), negatives))

    @property
    def teacher(self) -> npt.NDArray[np.float32] | None:
        """(rows, 1 + most negatives): the teacher's scores where `groups` has passages, else -inf.

        None unless a teacher scored every row.
        """
        if not self.rows or any(row.positive_score is None for row in self.rows):
            return None
        scores = np.full(self.groups.shape, -np.inf, np.float32)
        for row, told in zip(scores, self.rows, strict=True):
            given = (told.positive_score, *(told.negative_scores or ()))
            row[: len(given)] = given
        return scores


def draw_rows(examples: Sequence[Example], negatives: int, shuffle: float, rng: np.random.Generator) -> list[Row]:
    """A row for each example: a random positive, and up to `negatives` random negatives that answer none of them.

    shuffle: the share of passages whose segments are shuffled.
    """
    known = {normalised(text) for each in examples for text in (each.query, *each.positives)}
    return [_reordered(_row(each, negatives, known, rng), shuffle, rng) for each in examples]


def _row(example: Example, count: int, known: set[str], rng: np.random.Generator) -> Row:
    positive = int(rng.integers(len(example.positives)))
    order = rng.permutation(len(example.negatives))
    unknown = (int(i) for i in order if normalised(example.negatives[i]) not in known)
    negatives = list(islice(unknown, count))
    scores, others = example.positive_scores, example.negative_scores
    return Row(
        example.query,
        example.positives[positive],
        tuple(example.negatives[i] for i in negatives),
        None if scores is None else scores[positive],
        None if others is None else tuple(others[i] for i in negatives),
    )


def _reordered(row: Row, share: float, rng: np.random.Generator) -> Row:
    texts = (row.positive, *row.negatives)
    chosen = rng.random(len(texts)) < share
    positive, *negatives = (
        shuffled_segments(text, rng) if each else text for text, each in zip(texts, chosen, strict=True)
    )
    return Row(row.query, positive, tuple(negatives), row.positive_score, row.negative_scores)

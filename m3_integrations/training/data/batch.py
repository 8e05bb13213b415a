"""Training batches: rows of query, positive and negatives; sampling, segment shuffling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from m3_integrations.data.splits import normalize_question
from m3_integrations.training.data.examples import Example

_SEGMENTS = 3
_MAX_UNSHUFFLED = 100  # characters; FlagEmbedding's training leaves texts of up to this length unchanged too


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A query with a sampled positive, sampled negatives, and the teacher's scores of these."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    positive_score: float | None = None
    negative_scores: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step, all from one source, or one worker's shard of them."""

    step: int
    source: str
    rows: tuple[TrainingRow, ...]

    def shard(self, rank: int, workers: int) -> Batch:
        """Take every workers-th row, starting at `rank`.

        Args:
            rank: Number of the worker, from 0.
            workers: Number of workers.

        Returns:
            The worker's rows; none if there are fewer rows than workers and this rank is left over.

        Raises:
            ValueError: If rank is outside [0, workers).
        """
        if not 0 <= rank < workers:
            raise ValueError(f"rank must be from 0 to workers - 1 = {workers - 1}, got {rank}")
        return Batch(self.step, self.source, self.rows[rank::workers])

    @property
    def queries(self) -> list[str]:
        """One query per row."""
        return [row.query for row in self.rows]

    @property
    def passages(self) -> list[str]:
        """The positives, one per row, followed by the negatives, row by row."""
        return [row.positive for row in self.rows] + [text for row in self.rows for text in row.negatives]

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """Positions of each row's passages, shape (rows, 1 + most negatives), padded with -1."""
        counts = np.array([len(row.negatives) for row in self.rows], np.int64)
        starts = len(self.rows) + np.cumsum(counts) - counts
        nth = np.arange(counts.max(initial=0))
        negatives = np.where(nth < counts[:, None], starts[:, None] + nth, -1)
        return np.column_stack((np.arange(len(self.rows)), negatives))

    @property
    def teacher_scores(self) -> npt.NDArray[np.float32] | None:
        """The teacher's scores of the passages in `groups`, same shape; -inf pads.

        None unless a teacher scored every row.
        """
        if not self.rows or any(row.positive_score is None for row in self.rows):
            return None
        scores = np.full(self.groups.shape, -np.inf, np.float32)
        for target, row in zip(scores, self.rows, strict=True):
            row_scores = (row.positive_score, *(row.negative_scores or ()))
            target[: len(row_scores)] = row_scores
        return scores


def sample_rows(
    examples: Sequence[Example], negatives: int, shuffle: float, rng: np.random.Generator
) -> list[TrainingRow]:
    """Draw one row per example: a random positive and random negatives.

    A text that is the query or a positive of any of the examples is never a negative.

    Args:
        examples: Examples of one batch.
        negatives: Maximum negatives per row.
        shuffle: Share of passages with shuffled segments, from 0 to 1.
        rng: Source of randomness.

    Returns:
        One row per example, in their order.
    """
    known = {normalize_question(text) for each in examples for text in (each.query, *each.positives)}
    return [_shuffle_row(_sample_row(each, negatives, known, rng), shuffle, rng) for each in examples]


def _sample_row(example: Example, count: int, known: set[str], rng: np.random.Generator) -> TrainingRow:
    positive = int(rng.integers(len(example.positives)))
    order = rng.permutation(len(example.negatives))
    unknown = (int(i) for i in order if normalize_question(example.negatives[i]) not in known)
    negatives = list(islice(unknown, count))
    positive_scores, negative_scores = example.positive_scores, example.negative_scores
    return TrainingRow(
        example.query,
        example.positives[positive],
        tuple(example.negatives[i] for i in negatives),
        None if positive_scores is None else positive_scores[positive],
        None if negative_scores is None else tuple(negative_scores[i] for i in negatives),
    )


def _shuffle_row(row: TrainingRow, share: float, rng: np.random.Generator) -> TrainingRow:
    texts = (row.positive, *row.negatives)
    chosen = rng.random(len(texts)) < share
    positive, *negatives = (
        shuffle_segments(text, rng) if each else text for text, each in zip(texts, chosen, strict=True)
    )
    return TrainingRow(row.query, positive, tuple(negatives), row.positive_score, row.negative_scores)


def shuffle_segments(text: str, rng: np.random.Generator) -> str:
    """Reorder the thirds of a long text (M3, arXiv 2402.03216, section 3.3).

    Cuts fall between words if there is white space within 50 characters.

    Args:
        text: Any text; one of up to 100 characters is returned unchanged.
        rng: Source of randomness.

    Returns:
        The thirds in a different order, joined by spaces.
    """
    if len(text) <= _MAX_UNSHUFFLED:
        return text
    cuts = [_word_boundary(text, len(text) * i // _SEGMENTS) for i in range(1, _SEGMENTS)]
    segments = [text[start:end].strip() for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    order = rng.permutation(_SEGMENTS)
    while (order == np.arange(_SEGMENTS)).all():
        order = rng.permutation(_SEGMENTS)
    return " ".join(segments[i] for i in order if segments[i])


def _word_boundary(text: str, position: int) -> int:
    """Position of the next space within 50 characters, else the given one."""
    near = text[position : position + _MAX_UNSHUFFLED // 2]
    return position + next((i for i, letter in enumerate(near) if letter.isspace()), 0)

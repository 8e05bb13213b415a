"""Judged queries as arrays: which rows of the passages answer each query, how well, and how much the query counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Encoded
from m3_integrations.core.errors import MissingMode, NonFiniteVector, WrongDimension

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Judged:
    """n queries and their answers, ragged: query i is answered by `rows[offsets[i]:offsets[i + 1]]`, none twice.

    queries: (n, dim) float32 or float64; rows, grades: (pairs,), grades above 0; offsets: (n + 1,); weights: (n,) >= 0.
    encoded: the same queries in all their modes, where they were given so; dim is 0 where dense is none of these.
    Make one with `Judged.of`. A query without answers is kept: it pulls nothing and judges nothing.
    """

    queries: Floats
    offsets: Ints
    rows: Ints
    grades: Floats
    weights: Floats
    encoded: Encoded | None = None

    @classmethod
    def of(
        cls,
        queries: npt.ArrayLike | Encoded,
        answers: Sequence[Mapping[int, float]],
        weights: npt.ArrayLike | None = None,
    ) -> Judged:
        """From one mapping a query: row of a passage -> grade. A grade of 0 or less says "no answer" and is dropped.

        queries: (n, dim), or an Encoded of n; weights: (n,), 1 where not said. Raises WrongDimension, NonFiniteVector
        or ValueError, naming the first query that is at fault.
        """
        encoded = queries if isinstance(queries, Encoded) else None
        vectors = _checked_queries(_dense_of(queries) if isinstance(queries, Encoded) else queries)
        if len(answers) != len(vectors):
            raise WrongDimension(f"one mapping of answers a query: got {len(vectors)} queries, {len(answers)} answers")
        kept = [_kept(i, each) for i, each in enumerate(answers)]
        offsets = np.cumsum([0, *(len(each) for each in kept)], dtype=np.int64)
        rows = np.array([row for each in kept for row in each], np.int64)
        grades = np.array([grade for each in kept for grade in each.values()], np.float64)
        return cls(vectors, offsets, rows, grades, _checked_weights(weights, len(vectors)), encoded)

    @property
    def in_modes(self) -> Encoded:
        """The queries in all their modes. Raises MissingMode where they were given as plain vectors."""
        if self.encoded is None:
            raise MissingMode("these queries are plain dense vectors; give Judged.of an Encoded of them, in all modes")
        return self.encoded

    @property
    def counts(self) -> Ints:
        """(n,) how many passages answer each query."""
        return np.diff(self.offsets)

    @property
    def askers(self) -> Ints:
        """(pairs,) the query of each pair."""
        return np.repeat(np.arange(len(self)), self.counts)

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, queries: npt.ArrayLike) -> Judged:
        """These queries, in this order."""
        chosen = np.asarray(queries, dtype=np.int64)
        counts = self.counts[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        pairs = np.repeat(self.offsets[:-1][chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        encoded = None if self.encoded is None else self.encoded.take(chosen)
        return Judged(
            self.queries[chosen], offsets, self.rows[pairs], self.grades[pairs], self.weights[chosen], encoded
        )

    def answered(self) -> Judged:
        """The queries that have an answer and a weight above 0."""
        return self.take(np.flatnonzero((self.counts > 0) & (self.weights > 0)))

    def require_rows(self, n: int) -> None:
        """Raise WrongDimension unless every answer is a row of n passages."""
        if len(self.rows) and int(self.rows.max()) >= n:
            pair = int(np.argmax(self.rows >= n))
            raise WrongDimension(
                f"query {self.askers[pair]} is answered by row {self.rows[pair]}, but there are {n} passages; "
                "rows of `background` answer nothing: move that passage among the passages"
            )

    def capped(self, *, per_query: float | None = None, per_passage: int | None = None) -> Judged:
        """For skewed logs: the same queries with less said by those that say most.

        per_query: no query pulls with more than this in all; one click on everything then says as little as it knows.
        per_passage: only the strongest so many queries pull a passage, the earlier ones where strengths are equal.
        Raises ValueError for a cap that is not above 0.
        """
        capped = self
        if per_query is not None:
            capped = replace(capped, weights=capped._weights_up_to(per_query))
        return capped if per_passage is None else capped._strongest(per_passage)

    @property
    def strengths(self) -> Floats:
        """(pairs,) how hard each query pulls each of its answers: weight x grade."""
        strengths: Floats = self.weights[self.askers] * self.grades
        return strengths

    def _weights_up_to(self, per_query: float) -> Floats:
        if not per_query > 0:
            raise ValueError(f"per_query must be above 0, got {per_query}; leave it out for no cap")
        totals = np.bincount(self.askers, self.grades, minlength=len(self))
        return np.minimum(self.weights, per_query / np.where(totals > 0, totals, 1))

    def _strongest(self, per_passage: int) -> Judged:
        if per_passage < 1:
            raise ValueError(f"per_passage must be at least 1, got {per_passage}; leave it out for no cap")
        order = np.lexsort((-self.strengths, self.rows))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order)) - np.searchsorted(self.rows[order], self.rows[order])
        kept = np.flatnonzero(place < per_passage)
        offsets = np.searchsorted(kept, self.offsets).astype(np.int64)
        return replace(self, offsets=offsets, rows=self.rows[kept], grades=self.grades[kept])


def _dense_of(encoded: Encoded) -> Floats:
    return encoded.dense if "dense" in encoded.modes else np.zeros((len(encoded), 0), np.float32)


def _checked_queries(queries: npt.ArrayLike) -> Floats:
    vectors = np.asarray(queries)
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float32)
    if vectors.ndim != 2:
        raise WrongDimension(f"queries are (n, dim), got shape {vectors.shape}; write queries[None] for one query")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise NonFiniteVector(f"query {int(np.argmin(finite))} holds NaN or infinity; remove or re-encode it")
    return vectors


def _checked_weights(weights: npt.ArrayLike | None, n: int) -> Floats:
    if weights is None:
        return np.ones(n)
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (n,):
        raise WrongDimension(f"one weight a query: got {n} queries, weights of shape {array.shape}")
    if not np.all(np.isfinite(array) & (array >= 0)):
        raise ValueError("weights are finite and never negative; clip them with numpy.maximum(weights, 0)")
    return array


def _kept(i: int, answers: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(answers, Mapping):
        raise ValueError(f"the answers of query {i} are {answers!r}; write {{row: grade}}, such as {{3: 1.0}}")
    for row, grade in answers.items():
        if not isinstance(row, (int, np.integer)) or row < 0:
            raise ValueError(f"query {i} is answered by {row!r}; answers are rows of the passages, from 0")
        if not np.isfinite(grade):
            raise ValueError(f"query {i} grades row {row} with {grade}; a grade is a finite number")
    return {int(row): float(grade) for row, grade in answers.items() if grade > 0}

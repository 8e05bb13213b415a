"""Judged queries as arrays: the passages that answer each query, their grades, and the weight of the query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.encoded import Encoded
from m3_integrations.core.errors import MissingMode, NonFiniteVector, WrongDimension

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Judged(FieldsDisplay):
    """n queries and their answers, ragged: query i is answered by rows[offsets[i]:offsets[i + 1]].

    Build one with `Judged.of`. A query without answers is kept: it pulls nothing and evaluates nothing.

    Attributes:
        queries: Dense vectors, shape (n, dim), float32 or float64; dim is 0 if the queries have no dense mode.
        offsets: Start of each query's answers, shape (n + 1,).
        rows: Rows of the passages that answer, shape (pairs,), none twice per query.
        grades: Grades above 0, shape (pairs,).
        weights: Weights of the queries, shape (n,), at least 0.
        encoded: The queries in all modes, if they were given so.
        keys: Hash of each query's text, shape (n,); None if the texts are unknown.
    """

    queries: Floats
    offsets: Ints
    rows: Ints
    grades: Floats
    weights: Floats
    encoded: Encoded | None = None
    keys: Ints | None = None

    @classmethod
    def of(
        cls,
        queries: npt.ArrayLike | Encoded,
        answers: Sequence[Mapping[int, float]],
        weights: npt.ArrayLike | None = None,
        texts: Sequence[str] | None = None,
    ) -> Judged:
        """Build judged queries.

        Args:
            queries: Vectors of shape (n, dim), or an Encoded of n queries.
            answers: For each query a mapping from passage row to grade; grades of 0 or less are dropped.
            weights: Weights of the queries, shape (n,); 1 by default.
            texts: Texts of the queries; a nudge counts equal ones as copies of one query. None: queries with equal
                vectors are copies.

        Returns:
            The queries with their answers.

        Raises:
            WrongDimension: If shapes do not match.
            NonFiniteVector: If a query holds NaN or infinity.
            ValueError: If a row or a grade is invalid; the message names the query.
        """
        encoded = queries if isinstance(queries, Encoded) else None
        vectors = _checked_queries(_dense_of(queries) if isinstance(queries, Encoded) else queries)
        if len(answers) != len(vectors):
            raise WrongDimension(f"one mapping of answers a query: got {len(vectors)} queries, {len(answers)} answers")
        positive = [_positive_grades(i, each) for i, each in enumerate(answers)]
        offsets = np.cumsum([0, *(len(each) for each in positive)], dtype=np.int64)
        rows = np.array([row for each in positive for row in each], np.int64)
        grades = np.array([grade for each in positive for grade in each.values()], np.float64)
        keys = None if texts is None else np.array([_hashed(text.encode()) for text in texts], np.int64)
        return cls(vectors, offsets, rows, grades, _checked_weights(weights, len(vectors)), encoded, keys)

    @property
    def in_modes(self) -> Encoded:
        """The queries in all modes.

        Raises:
            MissingMode: If they were given as plain vectors.
        """
        if self.encoded is None:
            raise MissingMode("these queries are plain dense vectors; give Judged.of an Encoded of them, in all modes")
        return self.encoded

    @property
    def counts(self) -> Ints:
        """Number of answers of each query, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def query_ids(self) -> Ints:
        """The query of each pair, shape (pairs,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, queries: npt.ArrayLike) -> Judged:
        """Return these queries, in this order.

        Args:
            queries: Positions of the queries.
        """
        chosen = np.asarray(queries, dtype=np.int64)
        counts = self.counts[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        pairs = np.repeat(self.offsets[:-1][chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        encoded = None if self.encoded is None else self.encoded.take(chosen)
        keys = None if self.keys is None else self.keys[chosen]
        return Judged(
            self.queries[chosen], offsets, self.rows[pairs], self.grades[pairs], self.weights[chosen], encoded, keys
        )

    def answered(self) -> Judged:
        """Return the queries with an answer and a weight above 0."""
        return self.take(np.flatnonzero((self.counts > 0) & (self.weights > 0)))

    @cached_property
    def identities(self) -> Ints:
        """Hash of each query, equal for copies, shape (n,)."""
        return self.content_hashes if self.keys is None else self.keys

    @cached_property
    def content_hashes(self) -> Ints:
        """Hash of the vectors of each query, shape (n,)."""
        if self.encoded is not None and not self.queries.shape[1]:
            return np.array([_hashed(_bytes_of(self.encoded.take([i]))) for i in range(len(self))], np.int64)
        return np.array([_hashed(row.tobytes()) for row in self.queries], np.int64)

    def merge_copies(self) -> Judged:
        """Return each query once, with the answers of all its copies, in an order that its content decides.

        Answers keep the total strength of their pulls: the weight of a query is the sum over its copies, a grade the
        weighted mean. A question asked twice with two answers thus becomes one question with both.
        """
        order = np.lexsort((self.content_hashes, self.identities))
        keys, first = np.unique(self.identities[order], return_index=True)
        group = np.searchsorted(keys, self.identities)
        _, _, weights = _sums(group, np.zeros_like(group), self.weights)
        groups, rows, strengths = _sums(group[self.query_ids], self.rows, self.pair_weights)
        grades = strengths / np.where(weights > 0, weights, 1)[groups]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=len(keys)))]).astype(np.int64)
        chosen = order[first]
        encoded = None if self.encoded is None else self.encoded.take(chosen)
        return Judged(self.queries[chosen], offsets, rows, grades, weights, encoded, keys)

    def require_rows(self, n: int) -> None:
        """Check that every answer is a row of n passages.

        Args:
            n: Number of passages.

        Raises:
            WrongDimension: If one is not.
        """
        if len(self.rows) and int(self.rows.max()) >= n:
            pair = int(np.argmax(self.rows >= n))
            raise WrongDimension(
                f"query {self.query_ids[pair]} is answered by row {self.rows[pair]}, but there are {n} passages; "
                "rows of `background` answer nothing: move that passage among the passages"
            )

    def capped(self, *, per_query: float | None = None, per_passage: int | None = None) -> Judged:
        """Cap the influence of frequent clicks in skewed logs.

        Args:
            per_query: Maximum total pull of a query.
            per_passage: Maximum number of queries that pull a passage, the strongest and of equals the earlier ones.

        Returns:
            The same queries with lower weights or fewer answers.

        Raises:
            ValueError: If a cap is not above 0.
        """
        capped = self
        if per_query is not None:
            capped = replace(capped, weights=capped._weights_up_to(per_query))
        return capped if per_passage is None else capped._strongest(per_passage)

    @property
    def pair_weights(self) -> Floats:
        """Strength of each query's pull on its answers, weight x grade, shape (pairs,)."""
        strengths: Floats = self.weights[self.query_ids] * self.grades
        return strengths

    def _weights_up_to(self, per_query: float) -> Floats:
        if not per_query > 0:
            raise ValueError(f"per_query must be above 0, got {per_query}; leave it out for no cap")
        totals = np.bincount(self.query_ids, self.grades, minlength=len(self))
        return np.minimum(self.weights, per_query / np.where(totals > 0, totals, 1))

    def _strongest(self, per_passage: int) -> Judged:
        if per_passage < 1:
            raise ValueError(f"per_passage must be at least 1, got {per_passage}; leave it out for no cap")
        order = np.lexsort((-self.pair_weights, self.rows))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order)) - np.searchsorted(self.rows[order], self.rows[order])
        return self.with_answers(place < per_passage)

    def with_answers(self, kept: npt.NDArray[np.bool_]) -> Judged:
        """Return the same queries with some of their answers.

        Args:
            kept: Whether each pair stays, shape (pairs,).
        """
        pairs = np.flatnonzero(kept)
        offsets = np.searchsorted(pairs, self.offsets).astype(np.int64)
        return replace(self, offsets=offsets, rows=self.rows[pairs], grades=self.grades[pairs])


def _sums(first: Ints, second: Ints, values: Floats) -> tuple[Ints, Ints, Floats]:
    """Sum values by a pair of numbers, in an order that the values decide; return pairs, ascending, and sums."""
    order = np.lexsort((values, second, first))
    first, second = first[order], second[order]
    starts = np.flatnonzero((np.diff(first, prepend=-1) != 0) | (np.diff(second, prepend=-1) != 0))
    sums = np.add.reduceat(values[order], starts) if len(starts) else values[:0]
    return first[starts], second[starts], sums


def _hashed(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little", signed=True)


def _bytes_of(encoded: Encoded) -> bytes:
    """Return the vectors of a text without a dense mode."""
    parts = []
    if "sparse" in encoded.modes:
        parts += [encoded.sparse.indices.astype(np.int64).tobytes(), encoded.sparse.data.tobytes()]
    if "multi_vector" in encoded.modes:
        parts.append(np.ascontiguousarray(encoded.multi_vector.values).tobytes())
    return b"".join(parts)


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


def _positive_grades(i: int, answers: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(answers, Mapping):
        raise ValueError(f"the answers of query {i} are {answers!r}; write {{row: grade}}, such as {{3: 1.0}}")
    for row, grade in answers.items():
        if not isinstance(row, (int, np.integer)) or row < 0:
            raise ValueError(f"query {i} is answered by {row!r}; answers are rows of the passages, from 0")
        if not np.isfinite(grade):
            raise ValueError(f"query {i} grades row {row} with {grade}; a grade is a finite number")
    return {int(row): float(grade) for row, grade in answers.items() if grade > 0}

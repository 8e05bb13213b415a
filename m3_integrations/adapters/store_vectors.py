"""Vectors of a framework's own store, and their nudge by queries that name relevant ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from m3_integrations.core.encoded import Array
from m3_integrations.core.errors import UnknownId, WrongDimension
from m3_integrations.core.types import Query
from m3_integrations.data.splits import normalize_question, split_by_text
from m3_integrations.nudging.judged import Floats, Judged
from m3_integrations.nudging.method.closed_form import unit
from m3_integrations.nudging.method.variants import Method
from m3_integrations.nudging.optimize.dense import Nudged, NudgeOptions as NudgeOptions, nudge_dense

Similarity: TypeAlias = Literal["cosine", "dot"]
HELD_OUT = 0.2  # share of the queries held out for validation if no validation queries are given


class QueryVectors(NamedTuple):
    """Judged queries and their vectors, shape (queries, dim)."""

    queries: Sequence[Query]
    vectors: Array


@dataclass(frozen=True, eq=False)
class StoreVectors:
    """Passages of a store.

    Args:
        ids: Ids of the passages.
        vectors: Their vectors, shape (n, dim).
        similarity: How the store compares them with a query; None if unknown, and then vectors keep length 1, which
            ranks alike by both.
    """

    ids: Sequence[str]
    vectors: Array
    similarity: Similarity | None = None

    def nudge(
        self, train: QueryVectors, validation: QueryVectors, options: NudgeOptions, background: Floats | None = None
    ) -> Nudged:
        """Nudge the passages.

        Unless the store compares by dot product, vectors are normalized and "auto" does not try "nudge-m".

        Args:
            train: Queries to learn from.
            validation: Queries to choose gamma by.
            options: Options of `nudge`.
            background: Vectors of passages that compete but do not move, shape (m, dim).

        Raises:
            ValueError: If there is no passage, or "nudge-m" is asked for and the store compares by cosine.
            UnknownId: If a query names a relevant id that is not in the store.
        """
        if not len(self.ids):
            raise ValueError("there is no passage to move; add some first")
        _refuse_nudge_m(options.method, self.similarity)
        if self.similarity == "dot" or options.method == "nudge-m":
            both: tuple[Method, ...] = ("nudge-n", "nudge-m")
            return nudge_dense(
                self.vectors, self.to_judged(train), self.to_judged(validation), options, background, both
            )
        unit_train, unit_validation = (
            self.to_judged(QueryVectors(each.queries, unit(each.vectors))) for each in (train, validation)
        )
        passages = unit(np.asarray(self.vectors, np.float32))
        unit_background = None if background is None else unit(background)
        return nudge_dense(passages, unit_train, unit_validation, options, unit_background, ("nudge-n",))

    def to_judged(self, queries: QueryVectors) -> Judged:
        """Convert relevant ids to rows.

        Raises:
            UnknownId: If a relevant id is not in the store.
        """
        row = {id: i for i, id in enumerate(self.ids)}
        for query in queries.queries:
            if unknown := [id for id in query.relevant if id not in row]:
                raise UnknownId(
                    f"query {query.id!r} is answered by {unknown[0]!r}, which is none of the {len(row)} passages; "
                    "add that passage, or take it out of the query's relevant"
                )
        if not len(queries.queries):
            return Judged.of(np.zeros((0, np.shape(self.vectors)[-1]), np.float32), [])
        answers = [{row[id]: grade for id, grade in query.relevant.items()} for query in queries.queries]
        texts = [normalize_question(query.text) for query in queries.queries]
        return Judged.of(queries.vectors, answers, texts=texts)


def check_options(options: NudgeOptions, similarity: Similarity | None) -> None:
    """Check options before anything is embedded.

    Raises:
        ValueError: If `similarity` is unknown, or "nudge-m" is asked for and the store compares by cosine.
    """
    if similarity not in ("cosine", "dot", None):
        raise ValueError(f"similarity must be 'cosine', 'dot' or None (unknown), got {similarity!r}")
    _refuse_nudge_m(options.method, similarity)


def check_similarity(method: str, similarity: Similarity | None, store: str) -> None:
    """Check that vectors moved by this method can go into a store.

    Raises:
        ValueError: If the method is "nudge-m" and the store does not compare by dot product, or may not.
    """
    _refuse_nudge_m(method, similarity, store)
    if method == "nudge-m" and similarity is None:
        raise ValueError(
            "method 'nudge-m' makes vectors longer than 1, which only a store that compares by dot product ranks "
            f"correctly, and it is not known how {store} compares; pass similarity='dot' if it does, or use "
            "method='nudge-n'"
        )


def hold_out(queries: Sequence[Query], seed: int) -> tuple[list[Query], list[Query]]:
    """Split queries into training and validation ones, with no text in both, whatever their order.

    Raises:
        ValueError: If there are too few queries to split.
    """
    ordered = sorted(queries, key=lambda query: (query.text, query.id))
    train, validation = split_by_text(ordered, (1 - HELD_OUT, HELD_OUT), np.random.default_rng(seed))
    if not train or not validation:
        raise ValueError(
            f"{len(queries)} queries are too few to hold some out for choosing gamma; give validation queries, or gamma"
        )
    return train, validation


def to_matrix(vectors: Sequence[Sequence[float]] | Array) -> Array:
    """Convert vectors to an array of shape (n, dim).

    Raises:
        WrongDimension: If vectors differ in dimension.
    """
    try:
        return np.asarray(vectors, np.float32).reshape(len(vectors), -1 if len(vectors) else 0)
    except ValueError as ragged:
        dims = sorted({len(each) for each in vectors})
        raise WrongDimension(f"vectors of different dimensions: {dims}; encode all with one model") from ragged


def _refuse_nudge_m(method: str, similarity: Similarity | None, store: str = "this store") -> None:
    if method == "nudge-m" and similarity == "cosine":
        raise ValueError(
            f"method 'nudge-m' makes vectors longer than 1 and {store} compares by cosine, which ignores length, "
            "so the ranking would not be the one that was tuned; use method='nudge-n', which keeps lengths"
        )

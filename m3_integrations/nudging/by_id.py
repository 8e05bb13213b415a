"""Passages by id: nudging what a framework's store keeps, by queries that name their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from m3_integrations.core.encoded import Array
from m3_integrations.core.errors import UnknownId, WrongDimension
from m3_integrations.core.texts import Query
from m3_integrations.nudging.dense import Nudged, nudge_dense
from m3_integrations.nudging.judged import Floats, Judged
from m3_integrations.nudging.plans import Method
from m3_integrations.nudging.solve import unit
from m3_integrations.nudging.splits import split

Comparison: TypeAlias = Literal["cosine", "dot"]
HELD_OUT = 0.2  # of the queries, to choose by, where none are given for it


class NudgeOptions(NamedTuple):
    """What `nudge` is asked for; each as there."""

    method: Literal["auto", "n", "m"] = "auto"
    metric: str = "ndcg@10"
    spread: Literal["auto", "neighbours"] | None = "auto"
    centre: float | None = None
    gamma: float | None = None


class Asked(NamedTuple):
    """Judged queries and their vectors (queries, dim)."""

    queries: Sequence[Query]
    vectors: Array


@dataclass(frozen=True, eq=False)
class Stored:
    """Passages as a store keeps them: ids and vectors (n, dim), row by row, and how it compares them with a query.

    compares_by: None where that cannot be known; then lengths stay 1, which is right for both.
    """

    ids: Sequence[str]
    vectors: Array
    compares_by: Comparison | None = None

    def nudged(
        self, train: Asked, validation: Asked, options: NudgeOptions, background: Floats | None = None
    ) -> Nudged:
        """The passages after a nudge; see `nudge`.

        Where it does not compare by dot product, vectors are brought to length 1 and "auto" does not take "m".
        Raises ValueError for method "m" where it compares by cosine and where there is no passage, UnknownId for an
        answer that is none.
        """
        if not len(self.ids):
            raise ValueError("there is no passage to move; add some first")
        _refuse_pushing(options.method, self.compares_by)
        if self.compares_by == "dot" or options.method == "m":
            return _nudged(self.vectors, self.judged(train), self.judged(validation), options, background, ("n", "m"))
        passages = unit(np.asarray(self.vectors, np.float32))
        by, judges = (self.judged(Asked(each.queries, unit(each.vectors))) for each in (train, validation))
        behind = None if background is None else unit(background)
        return _nudged(passages, by, judges, options, behind, ("n",))

    def judged(self, asked: Asked) -> Judged:
        """The queries with rows for answers. Raises UnknownId for an answer that is none of the passages."""
        row = {id: i for i, id in enumerate(self.ids)}
        for query in asked.queries:
            if strangers := [id for id in query.relevant if id not in row]:
                raise UnknownId(
                    f"query {query.id!r} is answered by {strangers[0]!r}, which is none of the {len(row)} passages; "
                    "add that passage, or take it out of the query's relevant"
                )
        if not len(asked.queries):
            return Judged.of(np.zeros((0, np.shape(self.vectors)[-1]), np.float32), [])
        answers = [{row[id]: grade for id, grade in query.relevant.items()} for query in asked.queries]
        return Judged.of(asked.vectors, answers)


def require_options(options: NudgeOptions, compares_by: Comparison | None) -> None:
    """Raise ValueError for options that say what is not to be had, before anything is embedded."""
    if compares_by not in ("cosine", "dot", None):
        raise ValueError(f"compares_by is 'cosine', 'dot' or None where nobody knows, got {compares_by!r}")
    _refuse_pushing(options.method, compares_by)


def require_known(method: str, compares_by: Comparison | None, store: str) -> None:
    """Raise ValueError where vectors moved by this method cannot go into this store, or nobody knows."""
    _refuse_pushing(method, compares_by, store)
    if method == "m" and compares_by is None:
        raise ValueError(
            f"method 'm' makes vectors longer than 1, which only a store that compares by dot product ranks right, and "
            f"how {store} compares cannot be seen from here; say compares_by='dot' if it does, or use method='n'"
        )


def held_out(queries: Sequence[Query], seed: int) -> tuple[list[Query], list[Query]]:
    """Training and validation queries, no text on both sides. Raises ValueError where there are too few to split."""
    train, validation = split(queries, (1 - HELD_OUT, HELD_OUT), np.random.default_rng(seed))
    if not train or not validation:
        raise ValueError(
            f"{len(queries)} queries are too few to hold some out for choosing gamma; give validation queries, or gamma"
        )
    return train, validation


def rows_of(vectors: Sequence[Sequence[float]] | Array) -> Array:
    """Vectors as an array (n, dim). Raises WrongDimension where they differ in width."""
    try:
        return np.asarray(vectors, np.float32).reshape(len(vectors), -1 if len(vectors) else 0)
    except ValueError as ragged:
        widths = sorted({len(each) for each in vectors})
        raise WrongDimension(f"vectors of different widths: {widths}; encode all with one model") from ragged


def _refuse_pushing(method: str, compares_by: Comparison | None, store: str = "this store") -> None:
    if method == "m" and compares_by == "cosine":
        raise ValueError(
            f"method 'm' makes vectors longer than 1 and {store} compares by cosine, which takes no account of length, "
            "so the ranking would not be the one that was tuned; use method='n', which keeps lengths"
        )


def _nudged(
    vectors: Floats,
    train: Judged,
    validation: Judged,
    options: NudgeOptions,
    background: Floats | None,
    methods: Sequence[Method],
) -> Nudged:
    return nudge_dense(
        vectors,
        train,
        validation,
        method=options.method,
        metric=options.metric,
        spread=options.spread,
        centre=options.centre,
        gamma=options.gamma,
        background=background,
        methods=methods,
    )

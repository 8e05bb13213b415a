"""Cross-fitting folds: which queries evaluate a nudge while whose pulls are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.encoded import Encoded
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.selection.cross_validation import FOLDS, SEED, split

SIMILAR_QUERIES = 20  # training queries whose answers are candidates, as a nudge may bring them up
FEW_QUERIES = 1000  # validation queries up to which training queries evaluate too


@dataclass(frozen=True, eq=False, repr=False)
class CrossFitFolds(FieldsDisplay):
    """Evaluation queries in folds, and for each fold the training queries whose pulls are held out.

    Attributes:
        train: Training queries.
        eval_queries: Evaluation queries, each with an answer.
        fold_of: The fold of each evaluation query.
        held_out: For each fold, the rows of train without pulls, ascending.
    """

    train: Judged
    eval_queries: Judged
    fold_of: Ints
    held_out: Sequence[Ints]

    @classmethod
    def k_fold(cls, train: Judged, validation: Judged, few: int = FEW_QUERIES) -> CrossFitFolds:
        """Build a fold of the validation queries; if they are few, also folds of the training queries.

        Args:
            train: Training queries, each with an answer.
            validation: Validation queries, each with an answer.
            few: Number of evaluation queries up to which training queries are added.
        """
        folds = cls(train, validation, np.zeros(len(validation), np.int64), [np.empty(0, np.int64)])
        if len(validation) >= few or len(train) < FOLDS:
            return folds
        rng = np.random.default_rng(SEED)
        for held_out, _ in split(len(train)):
            evaluated_rows = np.sort(rng.permutation(held_out)[: -(-(few - len(validation)) // FOLDS)])
            folds = folds.with_fold(train.take(evaluated_rows), held_out)
        return folds

    @classmethod
    def by_group(cls, train: Judged, groups: Ints, few: int = FEW_QUERIES) -> tuple[CrossFitFolds, Ints]:
        """Evaluate each group of training queries without its own pulls.

        Args:
            train: Training queries.
            groups: Group of each query, from 0, shape (train,).
            few: Maximum number of evaluation queries.

        Returns:
            The folds, and the row of train of each evaluation query.
        """
        folds, evaluated_rows = cls(train, train.take([]), np.empty(0, np.int64), []), []
        chosen = np.random.default_rng(SEED).permutation(len(train))[:few]
        for group in range(int(groups.max(initial=-1)) + 1):
            held_out = np.flatnonzero(groups == group)
            evaluated_rows.append(np.intersect1d(held_out, chosen))
            folds = folds.with_fold(train.take(evaluated_rows[-1]), held_out)
        return folds, np.concatenate([np.empty(0, np.int64), *evaluated_rows])

    def with_fold(self, eval_queries: Judged, held_out: Ints) -> CrossFitFolds:
        fold_of = np.append(self.fold_of, np.full(len(eval_queries), len(self.held_out)))
        return replace(
            self,
            eval_queries=_join(self.eval_queries, eval_queries),
            fold_of=fold_of,
            held_out=[*self.held_out, held_out],
        )

    def train_queries_for(self, fold: int) -> Judged:
        """Return the training queries that pull while a fold is evaluated."""
        return self.train.take(np.setdiff1d(np.arange(len(self.train)), self.held_out[fold]))

    def eval_in(self, fold: int) -> Ints:
        """Return the evaluation queries of a fold."""
        return np.flatnonzero(self.fold_of == fold)


def _join(a: Judged, b: Judged) -> Judged:
    encoded: Encoded | None = None
    if a.encoded is not None and b.encoded is not None:
        encoded = a.encoded.join(b.encoded)
    return Judged(
        np.concatenate([a.queries, b.queries]),
        np.concatenate([a.offsets, a.offsets[-1] + b.offsets[1:]]),
        np.concatenate([a.rows, b.rows]),
        np.concatenate([a.grades, b.grades]),
        np.concatenate([a.weights, b.weights]),
        encoded,
    )


def answers_of_similar_queries(folds: CrossFitFolds, fold: int, n: int) -> Ints:
    """Return query * n + row for answers of the training queries most similar to each query of a fold."""
    evaluated, train = folds.eval_in(fold), folds.train_queries_for(fold)
    if not len(evaluated) or not len(train):
        return np.empty(0, np.int64)
    count, found = min(SIMILAR_QUERIES, len(train)), []
    for part in np.array_split(evaluated, -(-len(evaluated) // 64)):
        similarity = _similarity(folds.eval_queries.take(part), train)
        best = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        for eval_query, near in zip(part.tolist(), best, strict=True):
            found.append(eval_query * n + train.rows[np.isin(train.query_ids, near)])
    return np.concatenate(found)


def _similarity(eval_queries: Judged, train: Judged) -> Floats:
    if eval_queries.queries.shape[1]:
        return np.asarray(eval_queries.queries @ train.queries.T)
    if "sparse" in eval_queries.in_modes.modes:
        return np.asarray((eval_queries.in_modes.sparse @ train.in_modes.sparse.T).toarray())
    return np.asarray(means_of(eval_queries) @ means_of(train).T)


def means_of(judged: Judged) -> Floats:
    """Return the mean of each query's multi-vectors, shape (queries, dim)."""
    return np.array([vectors.sum(axis=0) / max(len(vectors), 1) for vectors in judged.in_modes.multi_vector])

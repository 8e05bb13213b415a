"""Cross-fitting folds: which queries evaluate a nudge while whose pulls are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from m3_integrations.core.display import FieldsDisplay
from m3_integrations.core.encoded import Encoded
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.selection.cross_validation import FOLDS, SEED, split
from m3_integrations.nudging.selection.popularity import indiscriminate_passages

SIMILAR_QUERIES = 20  # training queries whose answers are candidates, as a nudge may bring them up
SKETCH = 64  # dimensions of a random projection that keeps how alike sparse queries are
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
        held_out = [held_out for held_out, _ in split(len(train))]
        rows = [np.sort(rng.permutation(each)[: -(-(few - len(validation)) // FOLDS)]) for each in held_out]
        fold_of = np.repeat(np.arange(1 + len(rows)), [len(validation), *map(len, rows)])
        eval_queries = _join(validation, train.take(np.concatenate(rows)))
        return cls(train, eval_queries, fold_of, [*folds.held_out, *held_out])

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

    def of_queries(self, rows: Ints) -> CrossFitFolds:
        """Return the folds of these evaluation queries alone."""
        return replace(self, eval_queries=self.eval_queries.take(rows), fold_of=self.fold_of[rows])

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
        np.concatenate([a.identities, b.identities]),
    )


def distinct_queries(train: Judged, validation: Judged, *, cross_fitted: bool) -> tuple[Judged, Judged]:
    """Return the answered queries, each once, in an order that does not depend on the log.

    A validation query that trains too says nothing about new queries: it is left out if others remain, or if folds of
    the training queries evaluate anyway. Answers that the log names with no regard to the query are dropped, unless
    nothing else would train.
    """
    train, validation = train.answered().merge_copies(), validation.answered().merge_copies()
    dropped = indiscriminate_answers(train, validation)
    kept = [each.with_answers(~np.isin(each.rows, dropped)).answered() for each in (train, validation)]
    if len(dropped) and len(kept[0]) and (len(kept[1]) or not len(validation)):
        train, validation = kept
    fresh = np.flatnonzero(~np.isin(validation.identities, train.identities))
    drops = len(fresh) or (cross_fitted and len(train) >= FOLDS)
    return train, validation.take(fresh) if drops else validation


def indiscriminate_answers(train: Judged, validation: Judged) -> Ints:
    """Return the passages that the queries of a log, each different, name with no regard to what they ask."""
    judged = _join(train, validation)
    return indiscriminate_passages(_vectors(judged), judged)


def _vectors(judged: Judged) -> Floats:
    """Return one vector of each query, of the first mode that has any, shape (queries, any)."""
    if judged.queries.shape[1]:
        return judged.queries
    if "sparse" not in judged.in_modes.modes:
        return means_of(judged)
    sparse = judged.in_modes.sparse
    signs = np.random.default_rng(SEED).choice(np.array([-1, 1], np.float32), (sparse.shape[1], SKETCH))
    return np.asarray(sparse @ signs)


def control_answers(folds: CrossFitFolds) -> Judged:
    """Return the evaluation queries with each other's answers, exchanged among answers that are about as popular.

    What a nudge gains on these, it gains by popularity or chance and not by what the queries ask: if the log's answers
    had nothing to do with its queries, both would gain alike. Popularity is the number of training queries of the fold
    that name a passage, by powers of two.
    """
    eval_queries, rng = folds.eval_queries, np.random.default_rng(SEED)
    chance, popularity = rng.permutation(len(eval_queries)), _popularity(folds)
    source = np.arange(len(eval_queries))
    for fold in range(len(folds.held_out)):
        mine = folds.eval_in(fold)
        mine = mine[np.lexsort((chance[mine], popularity[mine]))]
        for group in _groups(popularity[mine]):
            source[mine[group]] = mine[np.roll(group, 1)]
    others = eval_queries.take(source)
    return replace(
        eval_queries, offsets=others.offsets, rows=others.rows, grades=others.grades, weights=eval_queries.weights
    )


def _popularity(folds: CrossFitFolds) -> Ints:
    """Return the popularity class of each evaluation query's most popular answer."""
    eval_queries, popularity = folds.eval_queries, np.zeros(len(folds.eval_queries), np.int64)
    n = 1 + max(int(eval_queries.rows.max(initial=0)), int(folds.train.rows.max(initial=0)))
    for fold in range(len(folds.held_out)):
        named = np.bincount(folds.train_queries_for(fold).rows, minlength=n)
        classes = np.ceil(np.log2(1 + named)).astype(np.int64)
        mine = folds.fold_of[eval_queries.query_ids] == fold
        np.maximum.at(popularity, eval_queries.query_ids[mine], classes[eval_queries.rows[mine]])
    return popularity


def _groups(classes: Ints) -> list[Ints]:
    """Split the positions of ascending classes into groups of one class; one alone joins its neighbor."""
    groups: list[Ints] = []
    for group in np.split(np.arange(len(classes)), np.flatnonzero(np.diff(classes)) + 1):
        if groups and (len(group) == 1 or len(groups[-1]) == 1):
            groups[-1] = np.concatenate([groups[-1], group])
        else:
            groups.append(group)
    return groups


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

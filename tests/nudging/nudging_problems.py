"""Small problems of unit vectors, and every metric computed the slow way: rank all, then count."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import Encoded, MultiVectors
from m3_integrations.nudging.judged import Judged


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def random_problem(seed, *, passages=30, train=20, validation=8, background=10, dim=6, noise=0.7, dtype=np.float64):
    """Queries near the sum of up to three passages that answer them, with grades; some passages come twice."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((passages, dim))).astype(dtype)
    vectors[1] = vectors[0]

    def judged(n):
        answers = [
            {int(row): float(rng.integers(1, 4)) for row in rng.integers(0, passages, rng.integers(1, 4))}
            for _ in range(n)
        ]
        meant = np.array([vectors[list(each)].sum(axis=0) for each in answers])
        return Judged.of(unit(meant + noise * rng.standard_normal((n, dim))).astype(dtype), answers)

    rest = unit(rng.standard_normal((background, dim))).astype(dtype)
    return vectors, judged(train), judged(validation), rest


def metric_by_hand(metric, judged, passages):
    """The mean of a metric over judged queries, by its definition; ties by row."""
    name, k = metric.split("@")
    values = []
    for i, query in enumerate(judged.queries.astype(np.float64)):
        answers = slice(judged.offsets[i], judged.offsets[i + 1])
        grades = dict(zip(judged.rows[answers].tolist(), judged.grades[answers].tolist(), strict=True))
        scores = np.round(passages.astype(np.float64) @ query, 11)  # what differs less is a tie
        ranked = sorted(range(len(passages)), key=lambda row: (-scores[row], row))[: int(k)]
        values.append(BY_HAND[name]([grades.get(row, 0.0) for row in ranked], list(grades.values()), int(k)))
    return float(np.average(values, weights=judged.weights))


def _ndcg(found, grades, k):
    def dcg(gains):
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))

    return dcg(found) / dcg(sorted(grades, reverse=True)[:k])


BY_HAND = {
    "ndcg": _ndcg,
    "recall": lambda found, grades, k: sum(gain > 0 for gain in found) / len(grades),
    "precision": lambda found, grades, k: sum(gain > 0 for gain in found) / k,
    "mrr": lambda found, grades, k: max((1 / rank for rank, gain in enumerate(found, 1) if gain > 0), default=0.0),
    "accuracy": lambda found, grades, k: float(any(gain > 0 for gain in found)),
}


def encoded_problem(seed, *, passages=12, train=14, validation=6, dim=6, vocab=30, width=5):
    """Texts in all three modes; a query is near the vectors of what answers it. One query and one passage are empty."""
    rng = np.random.default_rng(seed)

    def encoded(dense, tokens, late):
        sparse = scipy.sparse.csr_array(tokens.astype(np.float32))
        return Encoded(dense=unit(dense).astype(np.float32), sparse=sparse, multi_vector=MultiVectors.of(late, width))

    dense = rng.standard_normal((passages, dim))
    tokens = rng.random((passages, vocab)) * (rng.random((passages, vocab)) < 0.2)
    late = [unit(rng.standard_normal((int(n), width))) for n in rng.integers(2, 9, passages)]
    late[-1], tokens[-1] = np.zeros((0, width)), 0

    def judged(n):
        answers = rng.integers(0, passages, n)
        said = [
            late[row][rng.integers(0, len(late[row]), 3)] if len(late[row]) else np.ones((1, width)) for row in answers
        ]
        heard = [unit(each + 0.4 * rng.standard_normal(each.shape)) for each in said]
        heard[0] = np.zeros((0, width))
        terms = tokens[answers] * (rng.random((n, vocab)) < 0.7) + rng.random((n, vocab)) * (
            rng.random((n, vocab)) < 0.1
        )
        vectors = dense[answers] + 0.8 * rng.standard_normal((n, dim))
        grades = [{int(row): float(rng.integers(1, 4))} for row in answers]
        return Judged.of(encoded(vectors, terms, heard), grades)

    return encoded(dense, tokens, late), judged(train), judged(validation)

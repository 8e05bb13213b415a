"""Ranking metrics, equal to those of ir-measures, named like "ndcg@10"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from m3_integrations.core.types import Query

Gains = NDArray[np.float64]


class GradedRanking(NamedTuple):
    """One ranking as its grades."""

    gains: Gains  # grade at each rank, 0 if not relevant, shape (at most k,)
    ideal: Gains  # grades of the relevant passages, highest first
    k: int


Formula = Callable[[GradedRanking], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """A ranking metric at rank k, from 0 to 1.

    Args:
        name: ndcg, recall, mrr, precision, accuracy or ap (nDCG, R, RR, P, Success and AP in ir-measures).
        k: Rank, at least 1.

    Raises:
        ValueError: If the name is unknown or k is below 1.
    """

    name: str
    k: int

    def __post_init__(self) -> None:
        if self.name not in FORMULAS:
            raise ValueError(f"{self.name!r} is not a metric; use one of {_names()}, such as 'ndcg@10'")
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}; write '{self.name}@10'")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a name such as "ndcg@10".

        Args:
            text: The name.

        Returns:
            The metric.

        Raises:
            ValueError: If it names no metric.
        """
        name_and_k = re.fullmatch(r"([a-z]+)@([0-9]+)", text)
        if name_and_k is None:
            raise ValueError(f"{text!r} is not a metric; use one of {_names()} with a rank, such as 'ndcg@10'")
        return cls(name_and_k[1], int(name_and_k[2]))

    def __str__(self) -> str:
        return f"{self.name}@{self.k}"

    def __call__(self, ranked_ids: Sequence[str], relevant: Mapping[str, float]) -> float:
        """Return the metric of one ranking; 0 if nothing is relevant.

        Args:
            ranked_ids: Passage ids, best first; a repeated id counts at its first rank.
            relevant: Grades by passage id; 0 or less means not relevant.
        """
        ideal = np.sort([grade for grade in relevant.values() if grade > 0])[::-1].astype(np.float64)
        if not len(ideal):
            return 0.0
        top = list(dict.fromkeys(ranked_ids))[: self.k]
        gains = np.array([max(relevant.get(id, 0.0), 0.0) for id in top], dtype=np.float64)
        return float(FORMULAS[self.name](GradedRanking(gains, ideal, self.k)))


def evaluate(
    run: Mapping[str, Sequence[str]], queries: Sequence[Query], metrics: Sequence[str] = ("ndcg@10",)
) -> dict[str, float]:
    """Return the mean of each metric over the queries with a relevant passage.

    Args:
        run: Passage ids by query id, best first; a missing query scores 0, an unknown one is ignored.
        queries: Judged queries.
        metrics: Names of metrics.

    Raises:
        ValueError: If no query has a relevant passage, or a metric is unknown.
    """
    return {name: float(np.mean(values_by_query(run, queries, name))) for name in metrics}


def values_by_query(run: Mapping[str, Sequence[str]], queries: Sequence[Query], metric: str) -> Gains:
    """Return a metric of each query with a relevant passage, in order; see `evaluate`.

    Args:
        run: Ids of the ranked passages, by id of the query.
        queries: Queries with relevant passages.
        metric: Name of the metric.

    Raises:
        ValueError: If no query has a relevant passage, or the metric is unknown.
    """
    parsed = Metric.parse(metric)
    judged = [query for query in queries if any(grade > 0 for grade in query.relevant.values())]
    if not judged:
        raise ValueError(
            f"none of {len(queries)} queries has a relevant passage; give Query(..., relevant={{passage_id: grade}})"
        )
    return np.array([parsed(run.get(query.id, ()), query.relevant) for query in judged])


def _ndcg(ranking: GradedRanking) -> float:
    # The gain is the grade itself, as in trec_eval, and not 2 ** grade - 1.
    return _discounted(ranking.gains) / _discounted(ranking.ideal[: ranking.k])


def _discounted(gains: Gains) -> float:
    return float(gains @ (1 / np.log2(np.arange(len(gains)) + 2)))


def _recall(ranking: GradedRanking) -> float:
    return np.count_nonzero(ranking.gains) / len(ranking.ideal)


def _mrr(ranking: GradedRanking) -> float:
    return 1 / (np.argmax(ranking.gains > 0) + 1) if ranking.gains.any() else 0.0


def _precision(ranking: GradedRanking) -> float:
    return np.count_nonzero(ranking.gains) / ranking.k


def _accuracy(ranking: GradedRanking) -> float:
    return float(ranking.gains.any())


def _ap(ranking: GradedRanking) -> float:
    ranks = np.flatnonzero(ranking.gains) + 1
    return float(np.sum(np.arange(1, len(ranks) + 1) / ranks)) / len(ranking.ideal)


def _names() -> str:
    return ", ".join(FORMULAS)


FORMULAS: Mapping[str, Formula] = MappingProxyType(
    {"ndcg": _ndcg, "recall": _recall, "mrr": _mrr, "precision": _precision, "accuracy": _accuracy, "ap": _ap}
)

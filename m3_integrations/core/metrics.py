"""How good a ranking is: metrics over ranked ids, equal to ir-measures', each addressed by a name such as "ndcg@10"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from m3_integrations.core.texts import Query

Gains = NDArray[np.float64]


class Graded(NamedTuple):
    """One ranking as its grades."""

    gains: Gains  # (at most k,), the grade at each rank, 0 where irrelevant
    ideal: Gains  # (relevant passages,), their grades, highest first
    k: int


Formula = Callable[[Graded], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """A ranking metric cut at rank k: 0 at worst, 1 at best.

    name: ndcg, recall, mrr, precision, accuracy or ap; in ir-measures' words nDCG, R, RR, P, Success and AP.
    Raises ValueError for another name, or for k < 1.
    """

    name: str
    k: int

    def __post_init__(self) -> None:
        if self.name not in FORMULAS:
            raise ValueError(f"no metric is called {self.name!r}; there are {_names()}, e.g. 'ndcg@10'")
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}; write '{self.name}@10'")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The metric that a name such as "ndcg@10" stands for. Raises ValueError for a text that names none."""
        name_and_k = re.fullmatch(r"([a-z]+)@([0-9]+)", text)
        if name_and_k is None:
            raise ValueError(f"{text!r} names no metric; write one of {_names()} and a rank, e.g. 'ndcg@10'")
        return cls(name_and_k[1], int(name_and_k[2]))

    def __str__(self) -> str:
        return f"{self.name}@{self.k}"

    def __call__(self, ranked_ids: Sequence[str], relevant: Mapping[str, float]) -> float:
        """The metric of one ranking, best passage first, against the grades of the passages that answer the query.

        A passage without a grade, or with one of 0 or less, is not relevant. An id that comes twice counts at its
        first rank. Where nothing is relevant the answer is 0.
        """
        ideal = np.sort([grade for grade in relevant.values() if grade > 0])[::-1].astype(np.float64)
        if not len(ideal):
            return 0.0
        top = list(dict.fromkeys(ranked_ids))[: self.k]
        gains = np.array([max(relevant.get(id, 0.0), 0.0) for id in top], dtype=np.float64)
        return float(FORMULAS[self.name](Graded(gains, ideal, self.k)))


def evaluate(
    run: Mapping[str, Sequence[str]], queries: Sequence[Query], metrics: Sequence[str] = ("ndcg@10",)
) -> dict[str, float]:
    """Each metric's mean over the queries that have a relevant passage, keyed by its name as given.

    run: query id -> passage ids, best first; a query that it lacks scores 0, and one that is not asked is passed over.
    Raises ValueError where no query has a relevant passage, or for a name that is no metric.
    """
    judged = [query for query in queries if any(grade > 0 for grade in query.relevant.values())]
    if not judged:
        raise ValueError(
            f"none of {len(queries)} queries has a relevant passage; give Query(..., relevant={{passage_id: grade}})"
        )
    return {name: _mean(Metric.parse(name), run, judged) for name in metrics}


def _mean(metric: Metric, run: Mapping[str, Sequence[str]], judged: Sequence[Query]) -> float:
    return float(np.mean([metric(run.get(query.id, ()), query.relevant) for query in judged]))


def _ndcg(ranking: Graded) -> float:
    # The gain is the grade itself, as in trec_eval, and not 2 ** grade - 1.
    return _discounted(ranking.gains) / _discounted(ranking.ideal[: ranking.k])


def _discounted(gains: Gains) -> float:
    return float(gains @ (1 / np.log2(np.arange(len(gains)) + 2)))


def _recall(ranking: Graded) -> float:
    return np.count_nonzero(ranking.gains) / len(ranking.ideal)


def _mrr(ranking: Graded) -> float:
    return 1 / (np.argmax(ranking.gains > 0) + 1) if ranking.gains.any() else 0.0


def _precision(ranking: Graded) -> float:
    return np.count_nonzero(ranking.gains) / ranking.k


def _accuracy(ranking: Graded) -> float:
    return float(ranking.gains.any())


def _ap(ranking: Graded) -> float:
    ranks = np.flatnonzero(ranking.gains) + 1
    return float(np.sum(np.arange(1, len(ranks) + 1) / ranks)) / len(ranking.ideal)


def _names() -> str:
    return ", ".join(FORMULAS)


FORMULAS: Mapping[str, Formula] = MappingProxyType(
    {"ndcg": _ndcg, "recall": _recall, "mrr": _mrr, "precision": _precision, "accuracy": _accuracy, "ap": _ap}
)

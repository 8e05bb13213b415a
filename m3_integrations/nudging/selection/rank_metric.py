"""Ranking metrics as the gain of each relevant passage at its rank, the form that sweeps need."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from m3_integrations.nudging.judged import Floats, Judged


@dataclass(frozen=True)
class RankMetric:
    """A ranking metric at a cutoff: ndcg, recall and precision add up gains; mrr and accuracy take the best one.

    They equal nDCG@k, R@k, P@k, RR@k and Success@k of ir-measures.
    """

    name: str
    k: int

    @classmethod
    def of(cls, metric: str) -> RankMetric:
        """Parse a name such as "ndcg@10".

        Raises:
            ValueError: If the name is unknown.
        """
        found = re.fullmatch(r"(ndcg|recall|mrr|precision|accuracy)@([1-9]\d*)", metric)
        if not found:
            raise ValueError(
                f"{metric!r} is not a known metric; use ndcg@10, recall@10, mrr@10, precision@10 or accuracy@1"
            )
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.name}@{self.k}"

    @property
    def is_additive(self) -> bool:
        return self.name not in ("mrr", "accuracy")

    def gains_by_rank(self, judged: Judged) -> Floats:
        """Return the gain of each relevant passage at each rank, shape (pairs, k + 2); 0 at ranks 0 and k + 1."""
        ranks = np.arange(1, self.k + 1)
        at_rank = np.zeros(self.k + 2)
        at_rank[1:-1] = {"ndcg": 1 / np.log2(ranks + 1), "mrr": 1 / ranks}.get(self.name, np.ones(self.k))
        table: Floats = self._worth(judged)[:, None] * at_rank
        return table

    def _worth(self, judged: Judged) -> Floats:
        if self.name == "ndcg":
            return judged.grades / self._ideal(judged)[judged.query_ids]
        if self.name == "recall":
            return 1 / judged.counts[judged.query_ids]
        return np.full(len(judged.rows), 1 / self.k if self.name == "precision" else 1.0)

    def _ideal(self, judged: Judged) -> Floats:
        order = np.lexsort((-judged.grades, judged.query_ids))
        place = np.arange(len(order)) - judged.offsets[judged.query_ids]
        gains = np.where(place < self.k, judged.grades[order] / np.log2(place + 2), 0)
        ideal: Floats = np.bincount(judged.query_ids, gains, minlength=len(judged)).astype(np.float64)
        return ideal

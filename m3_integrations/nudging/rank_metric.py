"""Ranking metrics as what each relevant passage offers at its rank: the form in which gamma can be swept."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from m3_integrations.nudging.judged import Floats, Judged


@dataclass(frozen=True)
class RankMetric:
    """ndcg@k, recall@k, precision@k: the sum of what the relevant passages offer. mrr@k, accuracy@k: the most.

    Each equals ir-measures' nDCG@k, R@k, P@k, RR@k, Success@k.
    """

    name: str
    k: int

    @classmethod
    def of(cls, metric: str) -> RankMetric:
        """From a name such as "ndcg@10". Raises ValueError for a name that is none."""
        found = re.fullmatch(r"(ndcg|recall|mrr|precision|accuracy)@([1-9]\d*)", metric)
        if not found:
            raise ValueError(
                f"{metric!r} is no metric here; write ndcg@10, recall@10, mrr@10, precision@10 or accuracy@1"
            )
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.name}@{self.k}"

    @property
    def adds_up(self) -> bool:
        return self.name not in ("mrr", "accuracy")

    def offers(self, judged: Judged) -> Floats:
        """(pairs, k + 2): what each relevant passage offers at each rank; ranks 0 and k + 1 offer nothing."""
        ranks = np.arange(1, self.k + 1)
        at_rank = np.zeros(self.k + 2)
        at_rank[1:-1] = {"ndcg": 1 / np.log2(ranks + 1), "mrr": 1 / ranks}.get(self.name, np.ones(self.k))
        table: Floats = self._worth(judged)[:, None] * at_rank
        return table

    def _worth(self, judged: Judged) -> Floats:
        if self.name == "ndcg":
            return judged.grades / self._ideal(judged)[judged.askers]
        if self.name == "recall":
            return 1 / judged.counts[judged.askers]
        return np.full(len(judged.rows), 1 / self.k if self.name == "precision" else 1.0)

    def _ideal(self, judged: Judged) -> Floats:
        order = np.lexsort((-judged.grades, judged.askers))
        place = np.arange(len(order)) - judged.offsets[judged.askers]
        gains = np.where(place < self.k, judged.grades[order] / np.log2(place + 2), 0)
        ideal: Floats = np.bincount(judged.askers, gains, minlength=len(judged)).astype(np.float64)
        return ideal

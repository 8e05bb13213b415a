"""The field in which passages are pulled: those that queries are answered by, and the neighbours that follow them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from m3_integrations.nudging.gamma import KnownPulls, Pulls
from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.plans import Plan
from m3_integrations.nudging.solve import pulls_of_rows, shares_of_rows
from m3_integrations.nudging.spread import Neighbours, Spread, SpreadPulls


@dataclass(frozen=True, eq=False)
class Field:
    """Passages, all there are or a part, and those of all that queries pull; neighbours are looked up once.

    passages: (n, dim); rows: (m,) of the pulled, ascending, counted from the first of `passages`: in a part, some lie
    before it or beyond; pulled: (m, dim) themselves; total: how many passages there are in all.
    """

    passages: Floats
    rows: Ints
    pulled: Floats
    total: int

    @classmethod
    def of(cls, passages: Floats, pullers: Judged, total: int | None = None) -> Field:
        """Of passages all pulled ones of which are there."""
        rows, _ = shares_of_rows(pullers)
        return cls(passages, rows, passages[rows], total or len(passages))

    def by(self, pullers: Judged, plan: Plan) -> Pulls:
        """What these pullers, whose field it is, make by this plan."""
        _, vectors = pulls_of_rows(pullers, plan.centre)
        return self.pulls(vectors, plan.spread)

    def pulls(self, vectors: Floats, spread: Spread | None) -> Pulls:
        """What pulls each of the passages. vectors: (m, dim) what pulls those that queries pull."""
        if spread is not None and len(self.rows):
            return SpreadPulls.of(self.rows, vectors, self._neighbours, spread)
        here = slice(*np.searchsorted(self.rows, [0, len(self.passages)]))
        return KnownPulls(self.rows[here], vectors[here])

    @cached_property
    def _neighbours(self) -> Neighbours:
        return Neighbours.of(self.passages, self.pulled, self.total)

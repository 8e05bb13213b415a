"""Pull vectors of passages, computed block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from m3_integrations.nudging.judged import Floats, Ints, Judged
from m3_integrations.nudging.method.closed_form import pulls_of_rows, shares_of_rows
from m3_integrations.nudging.method.propagation import NearestPulled, PropagatedPulls, Propagation, propagated_shares
from m3_integrations.nudging.method.variants import Variant


@dataclass(frozen=True, eq=False)
class PullField:
    """Passages, all or a part, with the pulled passages of all; neighbors are searched once.

    Attributes:
        passages: Passages, shape (n, dim).
        rows: Rows of the pulled passages, ascending, shape (m,), relative to `passages`; in a part, some are outside.
        pulled: The pulled passages, shape (m, dim).
        total: Number of passages in all.
    """

    passages: Floats
    rows: Ints
    pulled: Floats
    total: int

    @classmethod
    def of(cls, passages: Floats, train: Judged, total: int | None = None) -> PullField:
        """Build the field of passages that include all pulled ones."""
        rows, _ = shares_of_rows(train)
        return cls(passages, rows, passages[rows], total or len(passages))

    def by(self, train: Judged, variant: Variant) -> Pulls:
        """Return the pulls of the training queries by a variant."""
        return self.by_variant(train, [variant])[0]

    def by_variant(self, train: Judged, variants: Sequence[Variant]) -> list[Pulls]:
        """Return the pulls of the training queries by each variant; variants share what they can."""
        vectors = {center: pulls_of_rows(train, center)[1] for center in {each.center for each in variants}}
        propagations = {each.propagation for each in variants if each.propagation} if len(self.rows) else set()
        shares = {each: propagated_shares(self.rows, self._neighbors, each) for each in propagations}
        return [
            PropagatedPulls.from_shares(vectors[each.center], shares[each.propagation])
            if each.propagation in shares
            else self._known(vectors[each.center])
            for each in variants
        ]

    def pulls(self, vectors: Floats, propagation: Propagation | None) -> Pulls:
        """Return the pulls of the passages, given those of the pulled ones, shape (m, dim)."""
        if propagation is not None and len(self.rows):
            return PropagatedPulls.of(self.rows, vectors, self._neighbors, propagation)
        return self._known(vectors)

    def _known(self, vectors: Floats) -> KnownPulls:
        here = slice(*np.searchsorted(self.rows, [0, len(self.passages)]))
        return KnownPulls(self.rows[here], vectors[here])

    @cached_property
    def _neighbors(self) -> NearestPulled:
        return NearestPulled.of(self.passages, self.pulled, self.total)


class Pulls(Protocol):
    """Passages that move and their pulls, computed part by part."""

    @property
    def rows(self) -> Ints:
        """Rows of the passages that move, ascending, shape (m,)."""
        ...

    def take(self, which: Ints) -> Floats:
        """Return the pulls of `rows[which]`, shape (len(which), dim)."""
        ...


@dataclass(frozen=True, eq=False)
class KnownPulls:
    """Pulls in memory: rows (m,), ascending, and vectors (m, dim)."""

    rows: Ints
    vectors: Floats

    def take(self, which: Ints) -> Floats:
        return self.vectors[which]

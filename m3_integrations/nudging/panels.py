"""Who judges a nudge, and who pulls meanwhile: nobody judges what was moved towards their own question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from m3_integrations.core.encoded import Encoded
from m3_integrations.nudging.choose import FOLDS, SEED, split
from m3_integrations.nudging.judged import Floats, Ints, Judged

ALIKE = 20  # training queries whose answers a judge is shown, should they come to be found
FEW = 1000  # validation queries; where there are fewer, training queries judge too


@dataclass(frozen=True, eq=False)
class Panels:
    """Judges in panels, and for each panel the training queries that do not pull while it judges.

    judges: answered queries; seats: (judges,) the panel of each; silent: by panel, rows of train, ascending.
    """

    train: Judged
    judges: Judged
    seats: Ints
    silent: Sequence[Ints]

    @classmethod
    def crossed(cls, train: Judged, validation: Judged, few: int = FEW) -> Panels:
        """The validation queries; where they are few, also folds of the training queries, up to `few` in all.

        train, validation: every query with an answer.
        """
        panels = cls(train, validation, np.zeros(len(validation), np.int64), [np.empty(0, np.int64)])
        if len(validation) >= few or len(train) < FOLDS:
            return panels
        rng = np.random.default_rng(SEED)
        for held, _ in split(len(train)):
            seated = np.sort(rng.permutation(held)[: -(-(few - len(validation)) // FOLDS)])
            panels = panels.with_panel(train.take(seated), held)
        return panels

    @classmethod
    def apart(cls, train: Judged, groups: Ints, few: int = FEW) -> tuple[Panels, Ints]:
        """Each group of training queries judges what all the others make of the passages, up to `few` in all.

        groups: (train,) from 0. Returns the panels, and the training query that each judge is.
        """
        panels, seated = cls(train, train.take([]), np.empty(0, np.int64), []), []
        chosen = np.random.default_rng(SEED).permutation(len(train))[:few]
        for group in range(int(groups.max(initial=-1)) + 1):
            held = np.flatnonzero(groups == group)
            seated.append(np.intersect1d(held, chosen))
            panels = panels.with_panel(train.take(seated[-1]), held)
        return panels, np.concatenate([np.empty(0, np.int64), *seated])

    def with_panel(self, judges: Judged, silent: Ints) -> Panels:
        seats = np.append(self.seats, np.full(len(judges), len(self.silent)))
        return replace(self, judges=_join(self.judges, judges), seats=seats, silent=[*self.silent, silent])

    def pullers(self, panel: int) -> Judged:
        """Who pulls while this panel judges."""
        return self.train.take(np.setdiff1d(np.arange(len(self.train)), self.silent[panel]))

    def seated(self, panel: int) -> Ints:
        """The judges of a panel."""
        return np.flatnonzero(self.seats == panel)


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


def answers_of_alike(panels: Panels, panel: int, n: int) -> Ints:
    """judge * n + row: the answers of the training queries that a judge of this panel is most like."""
    seats, pullers = panels.seated(panel), panels.pullers(panel)
    if not len(seats) or not len(pullers):
        return np.empty(0, np.int64)
    count, found = min(ALIKE, len(pullers)), []
    for part in np.array_split(seats, -(-len(seats) // 64)):
        alike = _alike(panels.judges.take(part), pullers)
        best = np.argpartition(-alike, count - 1, axis=1)[:, :count]
        for judge, near in zip(part.tolist(), best, strict=True):
            found.append(judge * n + pullers.rows[np.isin(pullers.askers, near)])
    return np.concatenate(found)


def _alike(judges: Judged, pullers: Judged) -> Floats:
    if judges.queries.shape[1]:
        return np.asarray(judges.queries @ pullers.queries.T)
    if "sparse" in judges.in_modes.modes:
        return np.asarray((judges.in_modes.sparse @ pullers.in_modes.sparse.T).toarray())
    return np.asarray(means_of(judges) @ means_of(pullers).T)


def means_of(judged: Judged) -> Floats:
    """(queries, width): the mean of each query's late-interaction vectors."""
    return np.array([vectors.sum(axis=0) / max(len(vectors), 1) for vectors in judged.in_modes.multi_vector])

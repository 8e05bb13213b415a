"""Nudger: an index that learns from its judged questions, and can always go back."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from m3_integrations.core.encoded import DENSE, MODES, Encoded, Mode, check_modes
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.errors import MissingMode, UnknownId
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.texts import Query
from m3_integrations.index.base import Index
from m3_integrations.nudging.accounts import (
    Judging,
    coverage_of,
    measured,
    no_answers,
    other_curves,
    outcome_of,
    shifted_outcome,
)
from m3_integrations.nudging.corpus import IndexCorpus
from m3_integrations.nudging.dense import Curve, nudge_dense
from m3_integrations.nudging.hybrid import Moved, Race, dense_move, late_move, nudge_modes, sparse_move
from m3_integrations.nudging.judged import Judged
from m3_integrations.nudging.ledger import FILE_NAME, Asked, Ledger, Original, Pending, Role, Shape, Version, now
from m3_integrations.nudging.originals import changes as changes_of
from m3_integrations.nudging.originals import digest, packed, unpacked
from m3_integrations.nudging.plans import Plan
from m3_integrations.nudging.report import NudgeReport
from m3_integrations.nudging.spread import Spread

_IN_MEMORY: WeakKeyDictionary[Any, Ledger] = WeakKeyDictionary()
ROLES: tuple[Role, ...] = ("train", "validation")


class Nudger:
    """Moves the vectors of an index towards the judged questions that its passages answer, and remembers how.

    The ledger lies beside a LocalIndex, in its folder, and in memory beside any other index: there it lives as long as
    the index does, unless `ledger` names a file. plan: the search to be judged by; None: the nudged mode alone, or of
    several modes their sum, with weights that are chosen along. Its own weights, where it states them, are kept.
    """

    def __init__(
        self, encoder: Encoder, index: Index, plan: SearchPlan | None = None, *, ledger: str | Path | None = None
    ) -> None:
        self.encoder, self.index, self._plan = encoder, index, plan
        self._ledger = _ledger_of(index, encoder, ledger)
        self._recover()

    def fit(
        self,
        train: Sequence[Query],
        validation: Sequence[Query] | None = None,
        *,
        test: Sequence[Query] | None = None,
        modes: Collection[Mode] = DENSE,
        metric: str = "ndcg@10",
        method: Literal["auto", "n", "m"] = "auto",
        spread: Literal["auto", "neighbours"] | None = "auto",
    ) -> NudgeReport:
        """Move the passages, from where they were encoded, by these questions; earlier ones no longer count.

        validation: chooses how far; None, or a few: folds of the training questions choose too. test: questions that
        have no part in it, for the report. modes: what is moved; method and spread are those of `nudge` and concern the
        dense vectors; with "auto" nothing moves where no gain stands out from chance.
        Raises ValueError where no training question has an answer in the index, MissingMode for a mode that the index
        or the encoder lacks. The index holds the old vectors or all of the new ones, whenever the process dies.
        """
        asked = Asked(self._checked_modes(modes), metric, method, spread)
        sides = _Sides(self._encoded(train, asked), self._encoded(validation or (), asked))
        return self._fit(asked, sides, test, replace=True)

    def refit(self, *, test: Sequence[Query] | None = None) -> NudgeReport:
        """Fit anew with the options of the last fit, by the questions that now count and the passages now there.

        Equal to a fit from nothing with these questions. Raises ValueError before the first fit.
        """
        versions = self._ledger.versions()
        if not versions:
            raise ValueError("there is nothing to refit; call fit(train, validation) first")
        asked = versions[-1].asked
        return self._fit(asked, self._sides(asked), test, replace=False)

    def add_queries(self, queries: Sequence[Query], role: Role = "train") -> None:
        """Let these count from the next `refit` on; one whose id is known is replaced. They are encoded here."""
        if role not in ROLES:
            raise ValueError(f"role is 'train' or 'validation', got {role!r}")
        self._ledger.add_queries(role, queries, self._encoded(queries, None).encoded)

    def remove_queries(self, ids: Collection[str]) -> None:
        """Let these no longer count from the next `refit` on. Raises UnknownId, and removes none, for a stranger."""
        wanted = [ids] if isinstance(ids, str) else list(ids)
        known = {query.id for role in ROLES for query in self._ledger.queries(role)}
        for id in wanted:
            if id not in known:
                raise UnknownId(f"the ledger holds no query {id!r}; it holds {len(known)}, see nudger.queries()")
        self._ledger.remove_queries(wanted)

    def queries(self, role: Role = "train") -> list[Query]:
        """The questions that count in the next `refit`."""
        return self._ledger.queries(role)

    def versions(self) -> list[Version]:
        """Every fit so far, oldest first."""
        return self._ledger.versions()

    @property
    def version(self) -> int:
        """The version that the index holds; 0 where nothing is moved."""
        return self._ledger.current

    @property
    def plan(self) -> SearchPlan | None:
        """The plan to search with: the one given, or that of the version that the index holds; None before a fit."""
        if self._plan is not None and self._plan.weights is not None:
            return self._plan
        version = self._version(self.version) if self.version else None
        return self._plan if version is None else self._planned(version.asked, version.weights)

    def revert(self, version: int | None = None) -> None:
        """Put every vector back as it was encoded, to the bit; or go back (or on) to a version.

        A version is made again out of its questions, for the passages now there. Raises ValueError for one that is not
        in `versions()`.
        """
        self._recover()
        if not version:
            self._write(0, {}, self._corpus())
            return
        known, corpus = self._version(version), self._corpus()
        sides = self._sides(known.asked, version)
        train = self._judged(sides.train, corpus).judged.answered()
        moved = {mode: _move(corpus, train, mode, move) for mode, move in known.moves.items()}
        self._write(version, moved, corpus)

    def close(self) -> None:
        """Let go of the ledger's file; the index stays open."""
        if self._ledger.path is not None:
            self._ledger.close()

    def _fit(self, asked: Asked, sides: _Sides, test: Sequence[Query] | None, *, replace: bool) -> NudgeReport:
        began = time.perf_counter()
        self._recover()
        corpus = self._corpus()
        train, validation = (self._judged(side, corpus) for side in sides)
        if not len(train.judged.answered()):
            raise ValueError(no_answers(train, corpus))
        race = self._race(asked)
        result = _nudge(corpus, train.judged, validation.judged, asked, race)
        plan = self._planned(asked, result.weights)
        version = Version(
            number=self._ledger.next_version,
            made=now(),
            asked=asked,
            moves={mode: _said(moved) for mode, moved in result.moved.items()},
            weights=dict(result.weights),
            before=result.before,
            after=result.after,
            moved=len(np.unique(np.concatenate([[], *(each.rows for each in result.moved.values())]))),
        )
        tested = self._judged(self._encoded(test, asked), corpus) if test else None
        # The corpus reads from the index as it is asked: all accounts come before the write.
        report = NudgeReport(
            version=version.number,
            metric=asked.metric,
            plan=plan,
            moves={mode: measured(corpus, mode, moved) for mode, moved in result.moved.items()},
            before=result.before,
            after=result.after,
            gain=result.gain,
            error=result.error,
            curves=result.curves,
            validation=outcome_of(corpus, train, validation, race, result.moved, result.weights),
            test=outcome_of(corpus, train, tested, race, result.moved, result.weights) if tested else None,
            shifted=shifted_outcome(corpus, train, race, result.moved, result.weights),
            coverage=coverage_of(corpus, train, [validation, *([tested] if tested else [])]),
            other_curves=other_curves(
                corpus, train.judged, validation.judged, race, result.moved, result.weights, result.curves
            ),
            seconds=time.perf_counter() - began,
        )
        self._write(version.number, result.moved, corpus, version, sides if replace else None)
        return report

    def _checked_modes(self, modes: Collection[Mode]) -> tuple[Mode, ...]:
        if not modes:
            raise MissingMode("modes names no mode; write modes=('dense',) or more")
        chosen = check_modes(modes, self.encoder.modes & self.index.modes)
        return tuple(mode for mode in MODES if mode in chosen)

    def _race(self, asked: Asked) -> Race:
        weights, free = self._start_weights(asked)
        plan = self._plan or SearchPlan(propose=self._proposing(asked))
        return Race(
            modes=asked.modes,
            weights=weights,
            weigh=free,
            propose=plan.propose,
            candidates=plan.candidates,
            metric=asked.metric,
            method=asked.method,
            spread=asked.spread,
        )

    def _start_weights(self, asked: Asked) -> tuple[Mapping[Mode, float], bool]:
        if self._plan is not None and self._plan.weights is not None:
            return {mode: weight for mode, weight in self._plan.weights.items() if weight}, False
        if self._plan is None and len(asked.modes) == 1:
            return {asked.modes[0]: 1.0}, False
        there = asked.modes if self._plan is None else tuple(self.encoder.modes & self.index.modes)
        return {mode: self.encoder.weights.get(mode) or 1.0 for mode in MODES if mode in there}, True

    def _proposing(self, asked: Asked) -> tuple[Mode, ...]:
        """By what a plan of ours proposes: a mode alone by itself, but for late interaction, which ranks anew."""
        if len(asked.modes) == 1 and asked.modes[0] != "multi_vector":
            return asked.modes
        cheap = tuple(mode for mode in SearchPlan().propose if mode in self.index.modes & self.encoder.modes)
        return cheap or ("multi_vector",)

    def _planned(self, asked: Asked, weights: Mapping[Mode, float]) -> SearchPlan:
        if self._plan is not None:
            return SearchPlan(self._plan.propose, self._plan.candidates, self._plan.weights or weights)
        return SearchPlan(propose=self._proposing(asked), weights=weights)

    def _encoded(self, queries: Sequence[Query], asked: Asked | None) -> _Side:
        modes = self._modes_of_queries(asked)
        return _Side(list(queries), self.encoder.encode_queries([query.text for query in queries], modes=modes))

    def _modes_of_queries(self, asked: Asked | None) -> tuple[Mode, ...]:
        """What a fit needs of a question: what moves, what is weighed, what proposes, and dense to find its like by."""
        if asked is None:
            known = self._ledger.versions()
            asked = known[-1].asked if known else Asked(tuple(self.encoder.modes & self.index.modes), "", "auto", None)
        race = self._race(asked)
        wanted = {*asked.modes, *race.weights, *race.propose, *DENSE}
        return tuple(mode for mode in MODES if mode in wanted & self.encoder.modes)

    def _sides(self, asked: Asked, version: int | None = None) -> _Sides:
        shape = Shape(self.encoder.dim, self.encoder.vocab_size, self.encoder.width)
        modes = self._modes_of_queries(asked)
        return _Sides(
            *(
                _Side(self._ledger.queries(role, version), self._ledger.encoded(role, modes, shape, version))
                for role in ROLES
            )
        )

    def _judged(self, side: _Side, corpus: IndexCorpus) -> Judging:
        rows = {id: row for row, id in enumerate(corpus.ids)}
        known = [{rows[id]: g for id, g in query.relevant.items() if id in rows} for query in side.queries]
        unknown = sum(len(query.relevant) for query in side.queries) - sum(map(len, known))
        return Judging(side.queries, Judged.of(side.encoded, known), unknown)

    def _corpus(self) -> IndexCorpus:
        """The passages as they were encoded."""
        ids = self.index.ids()
        rows = {id: row for row, id in enumerate(ids)}
        hashes = self.index.content_hashes()
        originals = {}
        for mode in self.index.modes:
            kept = self._ledger.originals(mode)
            # A passage that was written anew since is what it is now.
            alive = sorted((rows[id], each) for id, each in kept.items() if hashes.get(id) == each.content)
            if alive:
                originals[mode] = unpacked(mode, alive, self._widths(mode))
        return IndexCorpus(self.index, ids, originals)

    def _widths(self, mode: Mode) -> int:
        return {"dense": self.encoder.dim, "sparse": self.encoder.vocab_size}.get(mode, self.encoder.width)

    def _version(self, number: int) -> Version:
        for version in self._ledger.versions():
            if version.number == number:
                return version
        there = [version.number for version in self._ledger.versions()]
        raise ValueError(f"there is no version {number}; there are {there}, and revert() goes back to none")

    def _write(
        self,
        number: int,
        moved: Mapping[Mode, Moved],
        corpus: IndexCorpus,
        version: Version | None = None,
        sides: _Sides | None = None,
    ) -> None:
        """Originals first, then the index in one commit, then the ledger's word that it happened."""
        changed = changes_of(corpus, moved)
        touched = {mode: ids for mode, (ids, _) in changed.items()}
        with self._ledger.transaction():
            if sides is not None:
                for role, side in zip(ROLES, sides, strict=True):
                    self._ledger.replace_queries(role, side.queries, side.encoded)
            if version is not None:
                self._ledger.keep_version(version)
            pending = Pending(number, touched, digest(self.index, touched), fresh=sides is not None)
            self._ledger.begin(pending, self._first_originals(corpus, moved))
        if changed:
            self.index.set_many(list(changed.values()))
        self._ledger.end(number)

    def _first_originals(self, corpus: IndexCorpus, moved: Mapping[Mode, Moved]) -> dict[Mode, dict[str, Original]]:
        """The originals of what moves, as the ledger keeps them."""
        ids = {corpus.ids[row] for each in moved.values() for row in each.rows.tolist()}
        hashes = self.index.content_hashes(ids)
        return {mode: packed(corpus, mode, each, hashes) for mode, each in moved.items()}

    def _recover(self) -> None:
        """After a death between the ledger's first word and its last: what the index holds says which it is."""
        pending = self._ledger.pending
        if pending is None:
            return
        there = set(self.index.ids())
        touched = {mode: [id for id in ids if id in there] for mode, ids in pending.passages.items()}
        happened = touched != pending.passages or digest(self.index, touched) != pending.digest
        if happened or not any(touched.values()):
            self._ledger.end(pending.version)
        else:
            self._ledger.drop(pending)


class _Side(NamedTuple):
    """Questions of one role, and their vectors."""

    queries: Sequence[Query]
    encoded: Encoded


class _Sides(NamedTuple):
    train: _Side
    validation: _Side


class _Result(NamedTuple):
    """What was chosen, by whichever way."""

    moved: Mapping[Mode, Moved]
    weights: Mapping[Mode, float]
    before: float
    after: float
    gain: float
    error: float
    curves: Mapping[Mode, Curve]


def _ledger_of(index: Index, encoder: Encoder, named: str | Path | None) -> Ledger:
    folder: Path | None = getattr(index, "folder", None)
    if named is not None or folder is not None:
        return Ledger(Path(named or (folder or Path()) / FILE_NAME), encoder.fingerprint)
    if index not in _IN_MEMORY:
        _IN_MEMORY[index] = Ledger(None, encoder.fingerprint)
    return _IN_MEMORY[index]


def _nudge(corpus: IndexCorpus, train: Judged, validation: Judged, asked: Asked, race: Race) -> _Result:
    """Dense alone is swept exactly; more than that goes by the fused ranking."""
    if asked.modes == ("dense",) and set(race.weights) == {"dense"} and len(validation.answered()):
        nudged = nudge_dense(
            corpus.dense, train, validation, method=asked.method, metric=asked.metric, spread=asked.spread
        )
        moved: dict[Mode, Moved] = {}
        if nudged.moved:
            vectors = np.asarray(nudged.vectors, np.float32)
            moved["dense"] = Moved(nudged.rows, vectors, nudged.method, nudged.gamma, nudged.spread, nudged.centre)
        gain, error = (nudged.choice.gain, nudged.choice.error) if nudged.choice else (0.0, 0.0)
        return _Result(moved, race.weights, nudged.before, nudged.after, gain, error, {"dense": nudged.curve})
    found = nudge_modes(corpus, train, validation, race)
    return _Result(
        found.moved, found.weights, found.before, found.after, found.choice.gain, found.choice.error, found.curves
    )


def _said(moved: Moved) -> dict[str, Any]:
    return {
        "method": moved.method,
        "gamma": moved.gamma,
        "spread": list(moved.spread) if moved.spread else None,
        "centre": moved.centre,
    }


def _move(corpus: IndexCorpus, train: Judged, mode: Mode, said: Mapping[str, Any]) -> Moved:
    """The move that a version remembers, made again."""
    spread = Spread(*said["spread"]) if said["spread"] else None
    if mode == "dense":
        return dense_move(corpus, train, Plan(said["method"], spread, said["centre"]), said["gamma"])
    if mode == "sparse":
        return sparse_move(corpus, train, said["gamma"], said["centre"])
    return late_move(corpus, train, said["gamma"], said["centre"])

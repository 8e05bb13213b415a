"""Nudger: fit nudges of a live index from judged questions, keep their versions, revert."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from m3_integrations.core.encoded import DENSE, MODES, Encoded, Mode, Modes, SparseScore, check_modes
from m3_integrations.core.errors import MissingMode, PassagesChanged, StaleReport, UnknownId
from m3_integrations.core.types import Query, SearchPlan
from m3_integrations.data.splits import normalize_question
from m3_integrations.encoders.base import Encoder, sparse_score_of
from m3_integrations.index.base import Fingerprinted, Index
from m3_integrations.index.local.ledger_file import ledger_file
from m3_integrations.index.validation import check_ids
from m3_integrations.nudging.corpus import IndexCorpus
from m3_integrations.nudging.judged import Judged
from m3_integrations.nudging.ledger import (
    FitOptions,
    Ledger,
    PendingWrite,
    Role,
    Version,
    from_stored,
    now,
    to_stored,
    to_stored_time,
)
from m3_integrations.nudging.ledger_vectors import (
    Dimensions,
    OriginalVector,
    digest,
    pack,
    unpack,
    vector_updates,
)
from m3_integrations.nudging.method.propagation import Propagation
from m3_integrations.nudging.method.variants import MethodChoice, Propagate, Variant
from m3_integrations.nudging.optimize.dense import Curve, NudgeOptions, nudge_dense
from m3_integrations.nudging.optimize.hybrid import (
    ModeUpdate,
    NudgeConfig,
    dense_move,
    multi_vector_move,
    nudge_modes,
    sparse_move,
)
from m3_integrations.nudging.progress import OnProgress
from m3_integrations.nudging.report.outcomes import (
    EvaluatedQueries,
    FittedNudge,
    coverage_of,
    displacement,
    evaluate,
    no_answers_message,
)
from m3_integrations.nudging.report.report import NudgeReport
from m3_integrations.nudging.report.values import Evaluation
from m3_integrations.nudging.selection.cross_validation import Evidence
from m3_integrations.nudging.selection.folds import distinct_queries

_IN_MEMORY: WeakKeyDictionary[Any, Ledger] = WeakKeyDictionary()
ROLES: tuple[Role, ...] = ("train", "validation")


class Nudger:
    """Moves the vectors of an index towards the judged questions that its passages answer (NUDGE, arXiv 2409.02343).

    A ledger records the questions, the original vectors and the versions: in the folder of a LocalIndex, in memory for
    any other index (as long as the index object lives), or in the file given.

    Args:
        encoder: The encoder that filled the index.
        index: The index to nudge.
        plan: Search plan to evaluate with. None: the nudged mode alone, or the weighted sum of several modes. Weights
            that the plan states are kept; otherwise they are chosen together with the step sizes.
        ledger: File of the ledger.

    Raises:
        WrongEncoder: If the ledger was written with another encoder.
        DamagedFolder: If the ledger cannot be read.
        ValueError: If the plan fuses ranks.
    """

    def __init__(
        self, encoder: Encoder, index: Index, plan: SearchPlan | None = None, *, ledger: str | Path | None = None
    ) -> None:
        if plan is not None and plan.fusion != "sum":
            raise ValueError(f"a nudge improves a weighted sum of scores, got fusion={plan.fusion!r}; leave fusion out")
        self.encoder, self.index, self._plan = encoder, index, plan
        self._ledger = open_ledger(index, encoder, ledger)
        self._recover()

    def fit(
        self,
        train: Sequence[Query],
        validation: Sequence[Query] | None = None,
        *,
        test: Sequence[Query] | None = None,
        modes: Modes = DENSE,
        metric: str = "ndcg@10",
        method: MethodChoice = "auto",
        propagate: Propagate = "auto",
        on_progress: OnProgress | None = None,
    ) -> NudgeReport:
        """Move the original vectors towards these questions; questions of earlier fits no longer count.

        If the process dies, the index holds either the old vectors or all of the new ones.

        Args:
            train: Questions that pull the passages answering them.
            validation: Questions that choose variants and step sizes. With none, or few, cross-fitted folds of the
                training questions take part in the choice.
            test: Questions for the report alone.
            modes: Modes to nudge.
            metric: Ranking metric to maximize, such as "ndcg@10".
            method: Method for dense vectors, as in `nudge`; with "auto" nothing moves without a significant gain.
            propagate: Propagation of the pulls of dense vectors, as in `nudge`.
            on_progress: Called with a `Progress` from time to time. An exception that it raises cancels the fit, which
                then changes nothing.

        Returns:
            The report; its outcomes are computed when they are first read.

        Raises:
            PassagesChanged: If another process changed passages in the meantime; call it again.
            ValueError: If no training question has an answer in the index, or an option is unknown.
            MissingMode: If the index or the encoder lacks a mode.
        """
        options = FitOptions(self._checked_modes(modes), metric, method, propagate)
        query_sets = _QuerySets(self._encode(train, options), self._encode(validation or (), options))
        return self._fit(options, query_sets, test, fresh=True, on_progress=on_progress)

    def refit(self, *, test: Sequence[Query] | None = None, on_progress: OnProgress | None = None) -> NudgeReport:
        """Fit again with the last options, for the questions that count now and the passages there are now.

        Equal to a first fit with the same questions.

        Args:
            test: Questions for the report alone.
            on_progress: As in `fit`.

        Returns:
            The report.

        Raises:
            ValueError: If there was no fit before.
        """
        versions = self._ledger.versions()
        if not versions:
            raise ValueError("there is nothing to refit; call fit(train, validation) first")
        options = versions[-1].options
        return self._fit(options, self._query_sets(options), test, fresh=False, on_progress=on_progress)

    def add_queries(self, queries: Sequence[Query], role: Role = "train") -> None:
        """Add questions that count from the next `refit` on; a known id is replaced.

        Args:
            queries: Questions with their answers; they are encoded now.
            role: "train" or "validation".

        Raises:
            ValueError: If the role is unknown.
        """
        if role not in ROLES:
            raise ValueError(f"role is 'train' or 'validation', got {role!r}")
        self._ledger.add_queries(role, queries, self._encode(queries, None).encoded)

    def remove_queries(self, ids: Collection[str]) -> None:
        """Remove questions from the next `refit` on.

        Args:
            ids: Ids of the questions, or one id.

        Raises:
            UnknownId: If an id is unknown; then none is removed.
        """
        wanted = [ids] if isinstance(ids, str) else list(ids)
        known = {query.id for role in ROLES for query in self._ledger.queries(role)}
        for id in wanted:
            if id not in known:
                raise UnknownId(f"the ledger holds no query {id!r}; it holds {len(known)}, see nudger.queries()")
        self._ledger.remove_queries(wanted)

    def forget_queries(self, before: date) -> int:
        """Delete the questions and judgements that were recorded before a time, in every version.

        When it returns, their texts and embeddings are in no file of the ledger. The vectors of the index stay as they
        are; `revert` refuses versions of which questions are gone, except for the original vectors.

        Args:
            before: A date or datetime, in UTC unless it states a time zone.

        Returns:
            The number of questions and judgements deleted.

        Raises:
            WriterBusy: If another process uses the ledger for longer than a write waits.
        """
        moment = before if isinstance(before, datetime) else datetime.combine(before, datetime.min.time())
        return self._ledger.forget_before(to_stored_time(moment))

    def forget_passages(self, ids: Collection[str]) -> None:
        """Delete the original vectors of passages and every question that one of them answers, in every version.

        `LocalIndex.delete(ids, purge=True)` does this for the ledger in its folder; it is for one elsewhere.

        Args:
            ids: Ids of the passages; unknown ids are ignored.
        """
        self._ledger.forget_passages(check_ids(ids, "forget_passages"))

    def queries(self, role: Role = "train") -> list[Query]:
        """Return the questions that count in the next `refit`.

        Args:
            role: "train" or "validation".
        """
        return self._ledger.queries(role)

    def versions(self) -> list[Version]:
        """Return every fit so far, oldest first."""
        return self._ledger.versions()

    @property
    def version(self) -> int:
        """Version that the index holds; 0 for the original vectors."""
        return self._ledger.current

    @property
    def plan(self) -> SearchPlan | None:
        """Plan to search with: the one given, or that of the current version; None if there is neither."""
        if self._plan is not None and self._plan.weights is not None:
            return self._plan
        version = self._version(self.version) if self.version else None
        return self._plan if version is None else self._plan_of(version)

    @property
    def stated_plan(self) -> SearchPlan | None:
        """The plan of the index if it states weights that no nudge chose: tuned, or set by hand; otherwise None."""
        plan = self.index.plan
        if plan is not None and self.version:
            nudged = self._stored_plan(self._version(self.version))
            if nudged is not None and replace(plan, calibration=None) == replace(nudged, calibration=None):
                plan = self._ledger.first_plan
        return None if plan is None or plan.weights is None or plan.fusion != "sum" else plan

    @property
    def stores_plans(self) -> bool:
        """Whether nudges were stored with their plans in the index, as they are since `Index.plan` exists."""
        return self._ledger.stores_plans

    def revert(self, version: int | None = None) -> None:
        """Restore every original vector bit for bit, or switch to a version.

        A version is computed again from its questions, for the passages there are now.

        Args:
            version: Number of the version; None or 0 for the original vectors.

        Raises:
            ValueError: If there is no such version, or questions of it were forgotten.
        """
        self._recover()
        with _unchanged_passages():
            self._switch_to(version or 0)

    def _switch_to(self, version: int) -> None:
        if not version:
            self._write(0, {}, self._corpus(), self._ledger.first_plan)
            return
        known, corpus = self._version(version), self._corpus()
        if not self._ledger.is_complete(version):
            raise ValueError(
                f"version {version} cannot be computed again: some of its questions were forgotten; "
                "nudge again with those that count now, or go back to version 0, the original vectors"
            )
        query_sets = self._query_sets(known.options, version)
        judged = (self._judged(each, corpus).judged for each in query_sets)
        train, _ = distinct_queries(*judged, cross_fitted=True)
        moved = {mode: _restore_move(corpus, train, mode, move) for mode, move in known.moves.items()}
        self._write(version, moved, corpus, self._stored_plan(known))

    def close(self) -> None:
        """Close the file of the ledger; the index stays open."""
        if self._ledger.path is not None:
            self._ledger.close()

    def _fit(
        self,
        options: FitOptions,
        query_sets: _QuerySets,
        test: Sequence[Query] | None,
        *,
        fresh: bool,
        on_progress: OnProgress | None,
    ) -> NudgeReport:
        start = time.perf_counter()
        self._recover()
        with _unchanged_passages():
            return self._fit_corpus(options, query_sets, test, fresh=fresh, start=start, on_progress=on_progress)

    def _fit_corpus(
        self,
        options: FitOptions,
        query_sets: _QuerySets,
        test: Sequence[Query] | None,
        *,
        fresh: bool,
        start: float,
        on_progress: OnProgress | None,
    ) -> NudgeReport:
        corpus = self._corpus()
        train, validation = (self._judged(each, corpus) for each in query_sets)
        if not len(train.judged.answered()):
            raise ValueError(no_answers_message(train, corpus))
        config = self._config(options)._replace(on_progress=on_progress)
        result = _nudge(corpus, train.judged, validation.judged, options, config)
        version = self._new_version(options, result)
        test_set = self._judged(self._encode(test, options), corpus) if test else None
        queries = train, validation, test_set
        fitted = FittedNudge(*queries, result.pulling, config, result.moved, result.weights, result.curves)
        # The corpus reads from the index on demand: these come before the write.
        moves = {mode: displacement(corpus, mode, moved) for mode, moved in result.moved.items()}
        coverage = coverage_of(corpus, train, result.pulling, [validation, *([test_set] if test_set else [])])
        stored = self._stored_plan(version)
        self._write(version.number, result.moved, corpus, stored, version, query_sets if fresh else None)
        return NudgeReport(
            version=version.number,
            metric=options.metric,
            plan=self._plan_of(version),
            moves=moves,
            before=result.before,
            after=result.after,
            gain=result.evidence.gain,
            error=result.evidence.error,
            curves=result.curves,
            coverage=coverage,
            seconds=time.perf_counter() - start,
            evaluate=partial(self._evaluate, fitted, self._contents()),
            summary=result.summary,
            evidence=result.evidence,
        )

    def _new_version(self, options: FitOptions, result: _Result) -> Version:
        rows = [np.empty(0, np.int64), *(each.rows for each in result.moved.values())]
        return Version(
            number=self._ledger.next_version,
            made=now(),
            options=options,
            moves={mode: _to_json(moved) for mode, moved in result.moved.items()},
            weights=dict(result.weights),
            before=result.before,
            after=result.after,
            moved=len(np.unique(np.concatenate(rows))),
            sparse_score=self._sparse_score,
            plan=None if self._plan is None else self._plan.to_json(),
        )

    def _contents(self) -> int:
        """Return a hash of the passages in the index, to notice changes."""
        return hash(frozenset(self.index.content_hashes().items()))

    def _evaluate(self, fitted: FittedNudge, contents: int) -> Evaluation:
        """Evaluate a nudge on the passages it was fitted for, whichever version the index holds now."""
        if self._contents() != contents:
            raise StaleReport(
                "passages of the index changed since this nudge, so its outcomes can no longer be computed; print or "
                "render the report before you change passages, or call refit()"
            )
        reader = Nudger(self.encoder, self.index, ledger=self._ledger.path)  # this one may be closed
        with closing(reader):
            return evaluate(reader._corpus(), fitted)

    def _checked_modes(self, modes: Modes) -> tuple[Mode, ...]:
        if not modes:
            raise MissingMode("modes is empty; write modes=('dense',) or more")
        chosen = check_modes(modes, self.encoder.modes & self.index.modes)
        return tuple(mode for mode in MODES if mode in chosen)

    def _config(self, options: FitOptions) -> NudgeConfig:
        weights, free = self._start_weights(options)
        plan = self._plan or SearchPlan(propose=self._candidate_modes(options))
        return NudgeConfig(
            modes=options.modes,
            weights=weights,
            tune_weights=free,
            propose=plan.propose,
            candidates=plan.candidates,
            metric=options.metric,
            method=options.method,
            propagate=options.propagate,
        )

    def _start_weights(self, options: FitOptions) -> tuple[Mapping[Mode, float], bool]:
        """Return the weights to start with, and whether they are to be chosen."""
        if self._plan is not None and self._plan.weights is not None:
            return {mode: weight for mode, weight in self._plan.weights.items() if weight}, False
        if self._plan is None and len(options.modes) == 1:
            return {options.modes[0]: 1.0}, False
        available = options.modes if self._plan is None else self._summed_modes(self._plan)
        recommended = self.encoder.weights_for(available)
        return {mode: recommended.get(mode) or 1.0 for mode in MODES if mode in available}, True

    def _summed_modes(self, plan: SearchPlan) -> frozenset[Mode]:
        available = self.encoder.modes & self.index.modes
        return available if plan.modes is None else available & frozenset(plan.modes)

    def _candidate_modes(self, options: FitOptions) -> tuple[Mode, ...]:
        """Return the modes of our own plans: a single mode itself, except late interaction, which rescores."""
        if len(options.modes) == 1 and options.modes[0] != "multi_vector":
            return options.modes
        cheap = tuple(mode for mode in SearchPlan().propose if mode in self.index.modes & self.encoder.modes)
        return cheap or ("multi_vector",)

    @property
    def _sparse_score(self) -> SparseScore:
        """The sparse score of the plan, otherwise that of the encoder."""
        stated = self._plan.sparse_score if self._plan is not None else None
        return stated or sparse_score_of(self.encoder)

    def _plan_of(self, version: Version) -> SearchPlan:
        """Return the plan of a version; the weights of a given plan are kept with their sparse score."""
        given = self._given_plan(version)
        if given is not None and given.weights is not None:
            return replace(given, modes=None, calibration=None)  # the scores change
        sparse_score = None if version.sparse_score == sparse_score_of(self.encoder) else version.sparse_score
        plan = given or SearchPlan(propose=self._candidate_modes(version.options))
        return replace(plan, weights=version.weights, modes=None, sparse_score=sparse_score, calibration=None)

    def _given_plan(self, version: Version) -> SearchPlan | None:
        """Return the plan of this nudger, otherwise the one that a version was fitted with."""
        return self._plan if version.plan is None or self._plan is not None else SearchPlan.from_json(version.plan)

    def _stored_plan(self, version: Version) -> SearchPlan | None:
        """Return the plan to store with the index: its earlier one if a nudge of some modes would leave out others."""
        plan = self._plan_of(version)
        is_given = self._given_plan(version) is not None
        if is_given or set(plan.summed or ()) >= self.encoder.modes & self.index.modes:
            return plan
        return self._ledger.first_plan if self.version else self.index.plan

    def _encode(self, queries: Sequence[Query], options: FitOptions | None) -> _QuerySet:
        modes = self._query_modes(options)
        # Each text once and in order: batches, and so the last bits of vectors, do not depend on the order of the log.
        texts = sorted({query.text for query in queries})
        place = {text: i for i, text in enumerate(texts)}
        encoded = self.encoder.encode_queries(texts, modes=modes).take([place[query.text] for query in queries])
        return _QuerySet(list(queries), encoded.with_sparse_score(self._sparse_score))

    def _query_modes(self, options: FitOptions | None) -> tuple[Mode, ...]:
        """Return the modes in which a fit needs questions: moved, weighted, of candidates, and dense for clustering."""
        if options is None:
            versions = self._ledger.versions()
            every = FitOptions(tuple(self.encoder.modes & self.index.modes), "", "auto", None)
            options = versions[-1].options if versions else every
        config = self._config(options)
        needed = {*options.modes, *config.weights, *config.propose, *DENSE}
        return tuple(mode for mode in MODES if mode in needed & self.encoder.modes)

    def _query_sets(self, options: FitOptions, version: int | None = None) -> _QuerySets:
        dimensions = Dimensions(self.encoder.dense_dim, self.encoder.vocab_size, self.encoder.multi_vector_dim)
        modes = self._query_modes(options)
        encoded = (self._ledger.encoded(role, modes, dimensions, version) for role in ROLES)
        return _QuerySets(
            *(
                _QuerySet(self._ledger.queries(role, version), each.with_sparse_score(self._sparse_score))
                for role, each in zip(ROLES, encoded, strict=True)
            )
        )

    def _judged(self, queries: _QuerySet, corpus: IndexCorpus) -> EvaluatedQueries:
        rows = {id: row for row, id in enumerate(corpus.ids)}
        answers = [{rows[id]: g for id, g in query.relevant.items() if id in rows} for query in queries.queries]
        encoded = queries.encoded.with_idf(corpus.idf)
        unknown = sum(len(query.relevant) for query in queries.queries) - sum(map(len, answers))
        texts = [normalize_question(query.text) for query in queries.queries]
        return EvaluatedQueries(queries.queries, Judged.of(encoded, answers, texts=texts), unknown)

    def _corpus(self) -> IndexCorpus:
        """Return the passages with their original vectors."""
        hashes = self.index.content_hashes()
        ids = sorted(hashes)
        rows = {id: row for row, id in enumerate(ids)}
        originals = {}
        for mode in self.index.modes:
            recorded = self._ledger.originals(mode, self._dimension(mode))
            # A passage that was replaced since holds its original vectors already.
            valid = sorted((rows[id], each) for id, each in recorded.items() if hashes.get(id) == each.content)
            if valid:
                originals[mode] = unpack(mode, valid, self._dimension(mode))
        return IndexCorpus(self.index, ids, originals, hashes)

    def _dimension(self, mode: Mode) -> int:
        dimensions = {"dense": self.encoder.dense_dim, "sparse": self.encoder.vocab_size}
        return dimensions.get(mode, self.encoder.multi_vector_dim)

    def _version(self, number: int) -> Version:
        for version in self._ledger.versions():
            if version.number == number:
                return version
        known = [version.number for version in self._ledger.versions()]
        raise ValueError(f"there is no version {number}; there are {known}, and 0, the original vectors")

    def _write(
        self,
        number: int,
        moved: Mapping[Mode, ModeUpdate],
        corpus: IndexCorpus,
        plan: SearchPlan | None,
        version: Version | None = None,
        query_sets: _QuerySets | None = None,
    ) -> None:
        """Record the originals, write vectors and search plan in one commit, then record its success."""
        changed = vector_updates(corpus, moved)
        touched = {mode: ids for mode, (ids, _) in changed.items()}
        with self._ledger.transaction():
            if query_sets is not None:
                for role, queries in zip(ROLES, query_sets, strict=True):
                    self._ledger.replace_queries(role, queries.queries, queries.encoded)
            if version is not None:
                self._ledger.record_version(version)
            if not self.version and number:
                self._ledger.first_plan = self.index.plan
            stored = (plan or SearchPlan()).to_json()
            pending = PendingWrite(number, touched, digest(self.index, touched), query_sets is not None, stored)
            self._ledger.begin(pending, self._first_originals(corpus, moved))
        unchanged = {id: corpus.hashes[id] for ids in touched.values() for id in ids}
        try:
            self.index.set_vectors_many(list(changed.values()), plan or SearchPlan(), unchanged=unchanged)
        except PassagesChanged:
            self._ledger.drop(pending)
            raise
        self._ledger.end(number)

    def _first_originals(
        self, corpus: IndexCorpus, moved: Mapping[Mode, ModeUpdate]
    ) -> dict[Mode, dict[str, OriginalVector]]:
        """Return the original vectors of passages that move."""
        return {mode: pack(corpus, mode, each, corpus.hashes) for mode, each in moved.items()}

    def _recover(self) -> None:
        """Complete or forget a write that was interrupted, depending on what the index holds."""
        pending = self._ledger.pending
        if pending is None:
            return
        known = set(self.index.ids())
        touched = {mode: [id for id in ids if id in known] for mode, ids in pending.passages.items()}
        written = touched != pending.passages or digest(self.index, touched) != pending.digest
        if written or not any(touched.values()):
            if pending.plan is not None:
                self.index.plan = SearchPlan.from_json(pending.plan)
            self._ledger.end(pending.version)
        else:
            self._ledger.drop(pending)


@contextmanager
def _unchanged_passages() -> Iterator[None]:
    """Raise UnknownId of the block as PassagesChanged: another process deleted a passage in the meantime."""
    try:
        yield
    except UnknownId as error:
        raise PassagesChanged(
            f"passages were deleted in the meantime ({error}); nothing was written: repeat"
        ) from error


class _QuerySet(NamedTuple):
    """Questions of one role and their embeddings."""

    queries: Sequence[Query]
    encoded: Encoded


class _QuerySets(NamedTuple):
    """The questions of both roles."""

    train: _QuerySet
    validation: _QuerySet


class _Result(NamedTuple):
    """The chosen moves and weights."""

    moved: Mapping[Mode, ModeUpdate]
    weights: Mapping[Mode, float]
    before: float
    after: float
    curves: Mapping[Mode, Curve]
    summary: str
    evidence: Evidence
    pulling: Judged


def open_ledger(index: Index, encoder: Fingerprinted, path: str | Path | None) -> Ledger:
    """Open the ledger of an index: the file given, that of its folder, or one in memory."""
    folder: Path | None = getattr(index, "folder", None)
    if path is not None or folder is not None:
        file = Path(path or ledger_file(folder or Path(), encoder.fingerprint))
        return Ledger(file, encoder.fingerprint, getattr(index, "write_timeout", 60.0))
    if index not in _IN_MEMORY:
        _IN_MEMORY[index] = Ledger(None, encoder.fingerprint)
    return _IN_MEMORY[index]


def _nudge(corpus: IndexCorpus, train: Judged, validation: Judged, options: FitOptions, config: NudgeConfig) -> _Result:
    """Nudge dense vectors alone by an exact sweep, anything else by the fused ranking."""
    if options.modes == ("dense",) and set(config.weights) == {"dense"} and len(validation.answered()):
        dense_options = NudgeOptions(options.method, options.metric, options.propagate)
        nudged = nudge_dense(corpus.dense, train, validation, dense_options)
        moved: dict[Mode, ModeUpdate] = {}
        if nudged.moved:
            vectors = np.asarray(nudged.vectors, np.float32)
            moved["dense"] = ModeUpdate(
                nudged.rows, vectors, nudged.method, nudged.gamma, nudged.propagation, nudged.center
            )
        evidence = nudged.choice.evidence if nudged.choice else Evidence(0.0, 0.0)
        levels = nudged.before, nudged.after
        curves: dict[Mode, Curve] = {"dense": nudged.curve}
        return _Result(moved, config.weights, *levels, curves, nudged.summary, evidence, nudged.pulling)
    fused = nudge_modes(corpus, train, validation, config)
    levels, pulling = (fused.before, fused.after), fused.folds.train
    return _Result(fused.moved, fused.weights, *levels, fused.curves, fused.summary, fused.choice.evidence, pulling)


def _to_json(moved: ModeUpdate) -> dict[str, Any]:
    return {
        "method": to_stored(moved.method),
        "gamma": moved.gamma,
        "spread": list(moved.propagation) if moved.propagation else None,
        "centre": moved.center,
    }


def _restore_move(corpus: IndexCorpus, train: Judged, mode: Mode, move: Mapping[str, Any]) -> ModeUpdate:
    """Compute the move of a recorded version again."""
    propagation = Propagation(*move["spread"]) if move["spread"] else None
    gamma, center = move["gamma"], move["centre"]
    if mode == "dense":
        return dense_move(corpus, train, Variant(from_stored(move["method"]), propagation, center), gamma)
    compute = sparse_move if mode == "sparse" else multi_vector_move
    return compute(corpus, train, gamma, center)

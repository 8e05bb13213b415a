"""An index in a folder: a SQLite catalogue, and memory-mapped segments of vectors. One machine, no server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np

from m3_integrations.core.encoded import Array, Encoded, Mode, check_modes
from m3_integrations.core.errors import IndexFolderError, WrongEncoder
from m3_integrations.core.texts import Passage
from m3_integrations.index.arrays import checksum, damaged, sync_folder
from m3_integrations.index.base import Found, Hit, Hybrid
from m3_integrations.index.catalogue import FILE_NAME, Busy, Catalogue, Transaction
from m3_integrations.index.checks import (
    check_changes,
    check_count,
    check_score,
    check_search,
    check_widths,
    latest_of,
    list_of_ids,
    newest,
    unknown,
    widths,
)
from m3_integrations.index.codes import DEFAULT, Precision, checked
from m3_integrations.index.neighbours import Neighbours
from m3_integrations.index.searching import (
    Scored,
    best_found,
    choose,
    decide,
    exact_scores_of_each,
    one_of,
    propose,
    scan_lists,
    scored,
    scores_beside,
    united,
    with_late_interaction,
)
from m3_integrations.index.segments import Longs, map_segment
from m3_integrations.index.snapshot import Snapshot
from m3_integrations.index.where import Where
from m3_integrations.index.writing import Writing, due, missing, sweep

_TRIES = 5
T = TypeVar("T")


class _Fills(Protocol):
    """What an index remembers of an encoder."""

    @property
    def fingerprint(self) -> str: ...


class LocalIndex:
    """A folder that survives crashes, with one writer at a time and any number of readers, threads or processes.

    Open it with `LocalIndex.open`. Every call sees the newest committed state. Searches answer what `MemoryIndex`
    answers, to the bit; dense ones of more passages than `exact_below` may miss some, and score what they find exactly.
    """

    def __init__(self, folder: Path, catalogue: Catalogue, exact_below: int) -> None:
        self.folder = folder
        self._catalogue = catalogue
        self._exact_below = exact_below
        self._neighbours = Neighbours(folder)
        self._lock = threading.Lock()
        self._newest = Snapshot(folder)

    @classmethod
    def open(
        cls,
        folder: str | PathLike[str],
        encoder: _Fills | None = None,
        *,
        precision: Mapping[Mode, Precision] | None = None,
        exact_below: int = 200_000,
        patience: float = 60.0,
    ) -> LocalIndex:
        """The index in a folder, which is made where there is none.

        encoder: whose vectors it holds; a new folder remembers the first that it is told. None: not checked.
        precision: {"multi_vector": "float32", "int8" or "int4"}, how a new folder keeps them for ever; None: as the
        folder does, a new one float32. What is kept coded is what `vectors` answers and `score` scores.
        exact_below: up to this many passages, after the filter, a dense search scans all and is exact. Beyond, a graph
        proposes; the first search builds it, which takes minutes for a million passages, and keeps it in the folder.
        patience: how many seconds a write waits for another process's.
        Raises WrongEncoder where the folder was filled with another, IndexFolderError where it holds something else or
        keeps its vectors in another precision, DamagedFolder; ValueError for a precision that there is not.
        """
        asked = checked(precision)
        path = Path(folder).absolute()
        _require_ours(path)
        path.mkdir(parents=True, exist_ok=True)
        index = cls(path, Catalogue(path, patience), exact_below)
        try:
            index._prepare(encoder, asked)
        except BaseException:
            index.close()
            raise
        return index

    @property
    def modes(self) -> frozenset[Mode]:
        fixed = self._newest.widths  # by the first passages, for ever
        return frozenset(fixed or self._read(lambda _, snapshot: snapshot.widths))

    @property
    def encoder(self) -> tuple[str | None, str | None]:
        """The fingerprint of the encoder that filled it, and what it called itself; None where it was never told."""
        return self._read(lambda transaction, _: transaction.encoder())

    def add(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        check_count("passages", len(passages), encoded)
        if not passages:
            return
        latest, vectors = latest_of(passages, encoded)
        with self._write() as write:
            kept = write.snapshot.widths or widths(encoded)
            check_widths(kept, encoded)
            if not write.snapshot.widths:
                write.fix_modes(vectors)
            write.bury(write.transaction.slots_of([entry.id for entry in latest]).values())
            slots = write.keep(latest)
            for mode in kept:
                write.segment(slots, vectors.only((mode,)))

    def delete(self, ids: Collection[str]) -> None:
        wanted = list_of_ids(ids, "delete")
        if not wanted:
            return
        with self._write() as write:
            write.bury(write.transaction.slots_of(wanted).values())

    def set_vectors(self, ids: Sequence[str], encoded: Encoded) -> None:
        self.set_many([(ids, encoded)])

    def set_many(self, changes: Sequence[tuple[Sequence[str], Encoded]]) -> None:
        named = check_changes(changes)
        with self._write() as write:
            for change in named:
                _slots(write.transaction, change.ids)
            for ids, encoded in newest(write.snapshot.widths, named):
                slots = np.array(_slots(write.transaction, ids), np.int64)
                for mode in encoded.modes:
                    write.outdate(mode, slots)
                    write.segment(slots, encoded.only((mode,)))

    def search(self, mode: Mode, queries: Encoded, k: int, where: Where | None = None) -> list[list[Hit]]:
        def hits(transaction: Transaction, snapshot: Snapshot) -> list[list[Hit]]:
            asked = check_search(snapshot.widths, mode, queries, k)
            if not snapshot.living:
                return [[] for _ in range(len(asked))]
            candidates = self._candidates(snapshot, mode, asked, k, snapshot.allowed(transaction, where))
            return decide(transaction, snapshot, k, candidates)

        return self._read(hits)

    def is_hybrid(self, queries: Encoded, asked: Hybrid) -> bool:
        return True

    def find(self, queries: Encoded, asked: Hybrid, k: int, where: Where | None = None) -> list[list[Found]]:
        """What `search` and `score` answer together, to the bit, from one state of the folder."""

        def found(transaction: Transaction, snapshot: Snapshot) -> list[list[Found]]:
            modes = (*asked.propose, *asked.weights)
            alone = {mode: check_search(snapshot.widths, mode, queries, k) for mode in modes}
            if not snapshot.living:
                return [[] for _ in range(len(queries))]
            allowed, chosen = snapshot.allowed(transaction, where), {}
            for mode, count in asked.propose.items():
                candidates = self._candidates(snapshot, mode, alone[mode], count, allowed)
                chosen[mode] = choose(transaction, snapshot, count, candidates)
            rows = united(chosen.values())
            late = {"multi_vector"} & (asked.weights.keys() - chosen.keys())
            scores = {
                mode: scores_beside(snapshot, mode, alone[mode], rows, chosen.get(mode))
                for mode in asked.weights.keys() - late
            }
            best = []
            for i, proposed in enumerate(rows):
                mine, likely = {mode: scores[mode][i] for mode in scores}, proposed
                if late:
                    query = one_of(alone["multi_vector"], i)
                    mine, likely = with_late_interaction(snapshot, query, mine, asked.weights, k, proposed)
                best.append(best_found(transaction, snapshot, mine, asked.weights, k, likely))
            return best

        return self._read(found)

    def score(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        def scores(transaction: Transaction, snapshot: Snapshot) -> list[Array]:
            asked, wanted = check_score(snapshot.widths, mode, queries, ids)
            rows = [snapshot.rows_named(transaction, each) for each in wanted]
            return exact_scores_of_each(snapshot, mode, asked, rows)

        return self._read(scores)

    def passages(self, ids: Sequence[str] | None = None) -> list[Passage]:
        wanted = None if ids is None else list_of_ids(ids, "passages")

        def kept(transaction: Transaction, _: Snapshot) -> list[Passage]:
            if wanted is None:
                return transaction.all_passages()
            return transaction.passages(_slots(transaction, wanted))

        return self._read(kept)

    def vectors(self, ids: Sequence[str], modes: Collection[Mode] | None = None) -> Encoded:
        wanted = list_of_ids(ids, "vectors")

        def kept(transaction: Transaction, snapshot: Snapshot) -> Encoded:
            rows = snapshot.rows_named(transaction, wanted)
            asked = check_modes(snapshot.widths if modes is None else modes, snapshot.widths)
            return snapshot.all_vectors(rows, asked)

        return self._read(kept)

    def content_hashes(self, ids: Collection[str] | None = None) -> dict[str, str]:
        wanted = None if ids is None else list_of_ids(ids, "content_hashes")
        return self._read(lambda transaction, _: transaction.hashes(wanted))

    def ids(self, where: Where | None = None) -> list[str]:
        def kept(transaction: Transaction, snapshot: Snapshot) -> list[str]:
            if where is None or not snapshot.living:
                return transaction.ids()
            return sorted(transaction.ids_of(snapshot.slots[snapshot.allowed(transaction, where)].tolist()))

        return self._read(kept)

    def __len__(self) -> int:
        return self._read(lambda _, snapshot: snapshot.living)

    def verify(self) -> None:
        """Read every file and compare it with what was written. Raises DamagedFolder for the first that differs."""

        def check(transaction: Transaction, snapshot: Snapshot) -> None:
            transaction.check_integrity()
            for row in transaction.segments():
                path = self.folder / row.file
                if checksum(path) != row.checksum:
                    raise damaged(path, "differs from what was written")
                segment = map_segment(path, row.mode, snapshot.widths[row.mode], row.length, snapshot.codings[row.mode])
                segment.take(np.arange(len(segment)))

        self._read(check)

    def close(self) -> None:
        self._catalogue.close()
        self._newest = Snapshot(self.folder)
        self._neighbours.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalIndex.open({str(self.folder)!r})"

    def _candidates(self, snapshot: Snapshot, mode: Mode, queries: Encoded, k: int, allowed: Longs) -> Iterator[Scored]:
        """For each query some of the allowed rows, the best k among them."""
        if mode == "sparse":
            return scan_lists(snapshot, queries, k, allowed)
        if mode == "dense" and len(allowed) > self._exact_below:
            return scored(snapshot, mode, queries, self._neighbours.propose(snapshot, queries, k, allowed))
        return scored(snapshot, mode, queries, propose(snapshot, mode, queries, k, allowed))

    def _prepare(self, encoder: _Fills | None, precision: Precision | None) -> None:
        with self._catalogue.reading() as transaction:
            new = transaction.is_new()
        try:
            # Whoever writes has files that no commit names yet, so that only the writer may sweep.
            with self._catalogue.writing(patience=None if new else 0) as transaction:
                if transaction.is_new():
                    transaction.create(precision or DEFAULT)
                    sync_folder(self.folder.parent)
                sweep(self.folder, transaction)
        except Busy:
            if new:
                raise
        if precision is not None:
            self._require_precision(precision)
        if encoder is not None:
            self._meet(encoder)
        len(self)

    def _require_precision(self, precision: Precision) -> None:
        with self._catalogue.reading() as transaction:
            kept = transaction.precision()
        if precision != kept:
            raise IndexFolderError(
                f"{self.folder} keeps multi-vectors as {kept}, and precision={{'multi_vector': {precision!r}}} was "
                "asked for; open it without precision=, or ingest the passages into a new folder"
            )

    def _meet(self, encoder: _Fills) -> None:
        with self._catalogue.reading() as transaction:
            fingerprint, label = transaction.encoder()
        if fingerprint is None:
            with self._catalogue.writing() as transaction:
                fingerprint, label = transaction.encoder()
                if fingerprint is None:
                    transaction.remember_encoder(encoder.fingerprint, repr(encoder))
                    return
        if fingerprint != encoder.fingerprint:
            raise WrongEncoder(
                f"{self.folder} was filled by {label} (fingerprint {fingerprint[:12]}), and this encoder is "
                f"{encoder!r} (fingerprint {encoder.fingerprint[:12]}); open it with the encoder that filled it, or "
                "ingest the passages into a new folder"
            )

    def _read(self, answer: Callable[[Transaction, Snapshot], T]) -> T:
        """What the newest committed state answers."""
        for _ in range(_TRIES):
            try:
                with self._catalogue.reading() as transaction, self._snapshot(transaction) as snapshot:
                    return answer(transaction, snapshot)
            except FileNotFoundError as error:
                lost = error  # a merge took the file away after this transaction began; a newer one knows better
        raise missing(lost) from lost

    @contextmanager
    def _write(self) -> Iterator[Writing]:
        """One commit, or nothing; after the merging that is due."""
        self._merge()
        with self._commit() as writing:
            yield writing

    @contextmanager
    def _commit(self) -> Iterator[Writing]:
        with (
            self._catalogue.writing() as transaction,
            self._snapshot(transaction) as snapshot,
            Writing(self.folder, transaction, snapshot) as writing,
        ):
            yield writing

    def _merge(self) -> None:
        """Join the segments whose time has come, before the write that adds to them: a failure here loses nothing."""
        with self._catalogue.reading() as transaction:
            if not due(transaction.segments()):
                return
        with self._commit() as writing:
            merged = [writing.merge(group) for group in due(writing.transaction.segments())]
        for file in (file for group in merged for file in group):
            (self.folder / file).unlink(missing_ok=True)

    @contextmanager
    def _snapshot(self, transaction: Transaction) -> Iterator[Snapshot]:
        """The state that the transaction sees, which nobody changes meanwhile."""
        with self._lock:
            # The first read fixes what a transaction sees. Being here, it is never older than the newest snapshot.
            snapshot = self._advanced(transaction)
            snapshot.readers += 1
        try:
            yield snapshot
        finally:
            with self._lock:
                snapshot.readers -= 1

    def _advanced(self, transaction: Transaction) -> Snapshot:
        state, snapshot = transaction.state(), self._newest
        if state.generation == snapshot.generation:
            return snapshot
        self._newest = Snapshot(self.folder)  # one that fails half-way is not gone on with
        if snapshot.generation < state.forgotten or snapshot.wasteful():
            snapshot = Snapshot(self.folder)
        elif snapshot.readers:
            snapshot = snapshot.copy()
        snapshot.advance(transaction)
        self._newest = snapshot
        return snapshot


def _slots(transaction: Transaction, ids: Collection[str]) -> list[int]:
    """The slot of each id. Raises UnknownId."""
    found = transaction.slots_of(ids)
    for id in ids:
        if id not in found:
            raise unknown(id)
    return [found[id] for id in ids]


def _require_ours(folder: Path) -> None:
    """Raises IndexFolderError for what is no folder, or one that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise IndexFolderError(f"{folder} is a file; name a folder, which is made where there is none")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if names and FILE_NAME not in names:
        raise IndexFolderError(
            f"{folder} holds {names[:3]} and no {FILE_NAME}, so that it is no index; choose an empty or a new folder"
        )

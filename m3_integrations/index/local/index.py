"""LocalIndex: an embedded index on disk, one writer, many readers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from m3_integrations.core.encoded import MODES, Array, Encoded, Ints, Mode, Modes, check_modes
from m3_integrations.core.errors import DamagedFolder, IndexFolderError, UnknownSegments, WriterBusy, WrongEncoder
from m3_integrations.core.files import checksum, make_folder, sync_folder, translate_write_errors
from m3_integrations.core.forking import ForkSafeLock
from m3_integrations.core.types import Passage, SearchPlan, positive_integer
from m3_integrations.index import validation
from m3_integrations.index.base import ClosableIndex, Fingerprinted, Hit, HybridHit, HybridRequest, describe_plan
from m3_integrations.index.filters import Where
from m3_integrations.index.local import search
from m3_integrations.index.local.array_file import damaged_file_error
from m3_integrations.index.local.candidates.hnsw import HnswSearcher
from m3_integrations.index.local.candidates.late_interaction import LateInteractionSearcher
from m3_integrations.index.local.catalog import FILE_NAME, SEGMENT_NAME, Catalog, Transaction
from m3_integrations.index.local.commit import (
    WriteTransaction,
    missing_segment_error,
    remove_segments,
    segments_to_merge,
    settle_all_files,
    settle_files,
)
from m3_integrations.index.local.ledger_file import forget_passages, ledgers
from m3_integrations.index.local.search import ScoredRows
from m3_integrations.index.local.segments import Longs, find_segment, map_segment
from m3_integrations.index.local.snapshot import Snapshot
from m3_integrations.index.quantization.codecs import DEFAULT_PRECISION, Precision, check_precision

_MAX_READ_ATTEMPTS = 5
_REPLACED_AT_ONCE = 512
_EXACT_BELOW: Mapping[Mode, int] = {"dense": 200_000, "multi_vector": 10_000}
T = TypeVar("T")


class LocalIndex(ClosableIndex):
    """A crash-safe index in a folder: a SQLite catalog and memory-mapped segments.

    Open it with `LocalIndex.open`; its methods are documented in `Index` and `HybridIndex`. It has one writer at a time
    and any number of readers, in threads or processes; every call sees the newest committed state. Searches return
    exactly what `MemoryIndex` returns, bit for bit; a dense or late-interaction search of more than `exact_below`
    passages may miss some hits, and scores those that it finds exactly.
    """

    def __init__(self, folder: Path, catalog: Catalog, exact_below: Mapping[Mode, int]) -> None:
        self.folder = folder
        self._catalog = catalog
        self._exact_below = exact_below
        self._hnsw = HnswSearcher(folder)
        self._late_interaction = LateInteractionSearcher(folder)
        self._lock = ForkSafeLock()
        self._latest = Snapshot(folder)
        self._fingerprint: str | None = None  # of the encoder, once it is known

    @classmethod
    def open(
        cls,
        folder: str | PathLike[str],
        encoder: Fingerprinted | None = None,
        *,
        precision: Mapping[Mode, Precision] | None = None,
        exact_below: int | Mapping[Mode, int] | None = None,
        write_timeout: float = 60.0,
    ) -> LocalIndex:
        """Open the index in a folder, and create it if there is none.

        Args:
            folder: The folder of the index.
            encoder: The encoder of its embeddings. The index records the first one, and refuses others. None does not
                check.
            precision: {"multi_vector": "float32", "int8" or "int4"}: how a new index stores multi-vectors. None accepts
                the precision of the index; that of a new one is float32. `vectors` returns, and `score` scores, the
                stored values.
            exact_below: Largest number of passages, after filtering, of which a search is exact: one number, or one for
                "dense" and for "multi_vector"; the defaults are 200,000 and 10,000. Above it, candidates are generated
                by an HNSW graph, and by centroid lists. The first such search builds them, a graph in minutes for a
                million passages, and saves them in the folder. Sparse search is always exact.
            write_timeout: Seconds that a write waits for the write of another process.

        Returns:
            The index; close it, or use it in a `with` block.

        Raises:
            WrongEncoder: If the index was filled by another encoder.
            IndexFolderError: If the folder contains something else, or has another precision.
            DamagedFolder: If the index is damaged.
            ValueError, MissingMode: If the precision is invalid.
        """
        wanted, below = check_precision(precision), _check_exact_below(exact_below)
        path = Path(folder).absolute()
        with translate_write_errors(path):
            _check_folder(path)
            make_folder(path)
        index = cls(path, Catalog(path, write_timeout), below)
        try:
            index._prepare(encoder, wanted)
        except BaseException:
            index.close()
            raise
        return index

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickles and copies open the folder again, with connections of their own."""
        return _reopen, (str(self.folder), dict(self._exact_below), self._catalog.timeout)

    @property
    def modes(self) -> frozenset[Mode]:
        fixed = self._latest.widths  # set by the first passages, and never changed
        return frozenset(fixed or self._read(lambda _, snapshot: snapshot.widths))

    @property
    def write_timeout(self) -> float:
        """Seconds that a write waits for the write of another process."""
        return self._catalog.timeout

    @property
    def encoder(self) -> tuple[str | None, str | None]:
        """Fingerprint and repr of the encoder of the index; None if unknown."""
        return self._read(lambda transaction, _: transaction.encoder())

    @property
    def plan(self) -> SearchPlan | None:
        return self._read(lambda transaction, _: transaction.plan())

    @plan.setter
    def plan(self, plan: SearchPlan | None) -> None:
        with self._catalog.write() as transaction:
            transaction.set_plan(validation.check_plan(plan))

    def add(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        validation.check_count("passages", len(passages), encoded)
        if not passages:
            return
        records, embeddings = validation.deduplicate(passages, encoded)
        with self._write() as write:
            stored = write.snapshot.widths or validation.widths(encoded)
            validation.check_widths(stored, encoded)
            if not write.snapshot.widths:
                write.set_modes(embeddings)
            write.delete(write.transaction.slots_of([record.id for record in records]).values())
            slots = write.insert(records)
            for mode in stored:
                write.add_segment(slots, embeddings.only((mode,)))

    def delete(self, ids: Collection[str], *, purge: bool = False) -> None:
        ids = validation.check_ids(ids, "delete")
        if not ids and not purge:
            return
        with self._write() as write:
            if purge:
                settle_all_files(self.folder, write.transaction)
            write.delete(write.transaction.slots_of(ids).values())
        if purge:
            self._purge(ids)

    def set_vectors(self, ids: Sequence[str], encoded: Encoded) -> None:
        self.set_vectors_many([(ids, encoded)])

    def set_vectors_many(
        self,
        updates: Sequence[tuple[Sequence[str], Encoded]],
        plan: SearchPlan | None = None,
        *,
        unchanged: Mapping[str, str] | None = None,
    ) -> None:
        checked = validation.check_updates(updates)
        with self._write() as write:
            if unchanged:
                validation.check_unchanged(unchanged, write.transaction.hashes(list(unchanged)))
            for update in checked:
                _slots(write.transaction, update.ids)
            for ids, encoded in validation.resolve_updates(write.snapshot.widths, checked):
                slots = np.array(_slots(write.transaction, ids), np.int64)
                for mode in encoded.modes:
                    write.supersede(mode, slots)
                    write.add_segment(slots, encoded.only((mode,)))
            if plan is not None:
                write.transaction.set_plan(validation.check_plan(plan))

    def replace_embeddings(self, source: LocalIndex) -> None:
        """Replace encoder, embeddings and search plan by those of another index of the same passages. All or nothing.

        This object and all others that have the index open raise WrongEncoder from then on; open it again.

        Args:
            source: Index of the same passages by another encoder.

        Raises:
            ValueError: If the passages differ.
        """
        with self._commit() as write:
            transaction = write.transaction
            if transaction.hashes(None) != source.content_hashes():
                raise ValueError(f"{self.folder} and {source.folder} hold different passages; copy the changes first")
            fingerprint, label = source.encoder
            write.clear_embeddings()
            slots = transaction.slots()
            for start in range(0, len(slots), _REPLACED_AT_ONCE):
                part = slots[start : start + _REPLACED_AT_ONCE]
                encoded = source.vectors(transaction.ids_of(part))
                if not start:
                    write.set_modes(encoded)
                for mode in encoded.modes:
                    write.add_segment(np.array(part, np.int64), encoded.only((mode,)))
            transaction.set_encoder(fingerprint or "", label or "")
            transaction.set_plan(source.plan)
            removed = transaction.removed_files()
        remove_segments(self.folder, removed)

    def search(self, mode: Mode, queries: Encoded, k: int, where: Where | None = None) -> list[list[Hit]]:
        count = positive_integer("k", k)

        def run(transaction: Transaction, snapshot: Snapshot) -> list[list[Hit]]:
            single = validation.check_search(snapshot.widths, mode, queries, count)
            if not snapshot.live_count:
                return [[] for _ in range(len(single))]
            single = single.with_idf(partial(search.idf, snapshot))
            scored = self._scored_candidates(snapshot, mode, single, count, snapshot.matching_rows(transaction, where))
            return search.to_hits(transaction, snapshot, count, scored)

        return self._read(run)

    def supports_hybrid(self, queries: Encoded, request: HybridRequest) -> bool:
        return True

    def search_hybrid(
        self, queries: Encoded, request: HybridRequest, k: int, where: Where | None = None
    ) -> list[list[HybridHit]]:
        k = positive_integer("k", k)
        counts = {mode: positive_integer("candidates", count) for mode, count in request.candidate_counts.items()}

        def run(transaction: Transaction, snapshot: Snapshot) -> list[list[HybridHit]]:
            modes = (*request.candidate_counts, *request.weights)
            by_mode = {mode: validation.check_search(snapshot.widths, mode, queries, k) for mode in modes}
            if not snapshot.live_count:
                return [[] for _ in range(len(queries))]
            by_mode = {mode: each.with_idf(partial(search.idf, snapshot)) for mode, each in by_mode.items()}
            allowed, selected = snapshot.matching_rows(transaction, where), {}
            for mode, count in counts.items():
                scored = self._scored_candidates(snapshot, mode, by_mode[mode], count, allowed)
                selected[mode] = search.select_top_k(transaction, snapshot, count, scored)
            rows = search.union_rows(selected.values())
            late = {"multi_vector"} & request.weights.keys()
            scores = {
                mode: search.fill_scores(snapshot, mode, by_mode[mode], rows, selected.get(mode))
                for mode in request.weights.keys() - late
            }
            hits = []
            for i, candidates in enumerate(rows):
                own, best = {mode: scores[mode][i] for mode in scores}, candidates
                if late:
                    query = search.single_query(by_mode["multi_vector"], i)
                    known = selected["multi_vector"][i] if "multi_vector" in selected else None
                    own, best = search.rescore_maxsim(snapshot, query, own, request.weights, k, candidates, known)
                hits.append(search.to_hybrid_hits(transaction, snapshot, own, request.weights, k, best))
            return hits

        return self._read(run)

    def score(self, mode: Mode, queries: Encoded, ids: Sequence[Sequence[str]]) -> list[Array]:
        def score(transaction: Transaction, snapshot: Snapshot) -> list[Array]:
            single, id_lists = validation.check_score(snapshot.widths, mode, queries, ids)
            rows = [snapshot.rows_of_ids(transaction, id_list) for id_list in id_lists]
            return search.exact_scores_per_query(snapshot, mode, single.with_idf(partial(search.idf, snapshot)), rows)

        return self._read(score)

    def idf(self, tokens: Ints) -> Array:
        """Return the inverse document frequency of tokens, see `LexicalIndex`."""

        def idf(_: Transaction, snapshot: Snapshot) -> Array:
            check_modes(("sparse",), snapshot.widths.keys() or MODES)
            return search.idf(snapshot, tokens)

        return self._read(idf)

    def passages(self, ids: Sequence[str] | None = None) -> list[Passage]:
        if ids is None:
            return self._read(lambda transaction, _: transaction.all_passages())
        checked = validation.check_ids(ids, "passages")
        return self._read(lambda transaction, _: transaction.passages(_slots(transaction, checked)))

    def vectors(self, ids: Sequence[str], modes: Modes | None = None) -> Encoded:
        checked = validation.check_ids(ids, "vectors")

        def vectors(transaction: Transaction, snapshot: Snapshot) -> Encoded:
            rows = snapshot.rows_of_ids(transaction, checked)
            wanted = check_modes(snapshot.widths if modes is None else modes, snapshot.widths)
            return snapshot.all_vectors(rows, wanted)

        return self._read(vectors)

    def content_hashes(self, ids: Collection[str] | None = None) -> dict[str, str]:
        checked = None if ids is None else validation.check_ids(ids, "content_hashes")
        return self._read(lambda transaction, _: transaction.hashes(checked))

    def ids(self, where: Where | None = None) -> list[str]:
        def ids(transaction: Transaction, snapshot: Snapshot) -> list[str]:
            if where is None or not snapshot.live_count:
                return transaction.ids()
            return sorted(transaction.ids_of(snapshot.slots[snapshot.matching_rows(transaction, where)].tolist()))

        return self._read(ids)

    def __len__(self) -> int:
        return self._read(lambda _, snapshot: snapshot.live_count)

    def verify(self) -> None:
        """Read all files and compare them with their checksums.

        Raises:
            DamagedFolder: If a file is damaged.
        """

        def verify(transaction: Transaction, snapshot: Snapshot) -> None:
            transaction.check_integrity()
            for row in transaction.segments():
                path = find_segment(self.folder, row.file)
                if checksum(path) != row.checksum:
                    raise damaged_file_error(path, "differs from what was written")
                segment = map_segment(path, row.mode, snapshot.widths[row.mode], row.length, snapshot.codecs[row.mode])
                segment.take(np.arange(len(segment)))

        self._read(verify)

    def close(self) -> None:
        self._catalog.close()
        self._latest = Snapshot(self.folder)
        self._hnsw.reset()
        self._late_interaction.reset()

    def __repr__(self) -> str:
        return f"LocalIndex.open({str(self.folder)!r}){self._describe_plan()}"

    def _describe_plan(self) -> str:
        try:
            return describe_plan(self.plan)
        except IndexFolderError:  # closed, damaged or locked: a repr does not fail
            return ""

    def _scored_candidates(
        self, snapshot: Snapshot, mode: Mode, queries: Encoded, k: int, allowed: Longs
    ) -> Iterator[ScoredRows]:
        """Return scored rows, a superset of the top k of the allowed rows, per query."""
        if mode == "sparse":
            return search.scan_inverted_lists(snapshot, queries, k, allowed)
        if len(allowed) > self._exact_below[mode]:
            searcher = self._hnsw if mode == "dense" else self._late_interaction
            candidates = searcher.generate_candidates(snapshot, queries, k, allowed)
        else:
            candidates = search.generate_candidates(snapshot, mode, queries, k, allowed)
        return search.score_candidates(snapshot, mode, queries, candidates)

    def _prepare(self, encoder: Fingerprinted | None, precision: Precision | None) -> None:
        with self._catalog.read() as transaction:
            is_new = transaction.is_new()
        if is_new:
            with translate_write_errors(self.folder):
                _check_no_segments(self.folder)
        if not self._catalog.is_read_only or is_new:
            self._settle(precision, is_new)
        if precision is not None:
            self._check_precision(precision)
        if encoder is not None:
            self._check_encoder(encoder)
            self._fingerprint = encoder.fingerprint
        len(self)

    def _settle(self, precision: Precision | None, is_new: bool) -> None:
        """Create the catalog if it is new, and finish what a killed writer left, unless there is a writer now."""
        unknown = []
        try:
            with self._catalog.write(timeout=None if is_new else 0) as transaction:
                if transaction.is_new():
                    transaction.create(precision or DEFAULT_PRECISION)
                    sync_folder(self.folder.parent)
                unknown = settle_files(self.folder, transaction)
        except WriterBusy:
            if is_new:
                raise
        if unknown:
            warnings.warn(_unknown_segments(self.folder, unknown), stacklevel=4)

    def _check_precision(self, precision: Precision) -> None:
        with self._catalog.read() as transaction:
            stored = transaction.precision()
        if precision != stored:
            raise IndexFolderError(
                f"{self.folder} stores multi-vectors as {stored}, not {precision}; open it without precision=, or "
                "ingest the passages into a new folder"
            )

    def _check_encoder(self, encoder: Fingerprinted) -> None:
        with self._catalog.read() as transaction:
            fingerprint, label = transaction.encoder()
        if fingerprint is None and not self._catalog.is_read_only:
            with self._catalog.write() as transaction:
                fingerprint, label = transaction.encoder()
                if fingerprint is None:
                    transaction.set_encoder(encoder.fingerprint, repr(encoder))
                    return
        validation.check_encoder(self.folder, fingerprint, label, encoder, "folder")

    def _check_still_same_encoder(self, transaction: Transaction) -> None:
        """Refuse embeddings of another encoder than those that were opened."""
        fingerprint, label = transaction.encoder()
        if fingerprint is not None and self._fingerprint not in (None, fingerprint):
            raise WrongEncoder(
                f"{self.folder} was re-encoded with {label} after it was opened; open it again, with that encoder"
            )
        self._fingerprint = fingerprint or self._fingerprint

    def _read(self, function: Callable[[Transaction, Snapshot], T]) -> T:
        """Call a function with the newest committed state."""
        for _ in range(_MAX_READ_ATTEMPTS):
            try:
                with self._catalog.read() as transaction, self._snapshot(transaction) as snapshot:
                    return function(transaction, snapshot)
            except FileNotFoundError as error:
                missing = error  # a merge removed the file after this transaction began; a newer state has another
        raise missing_segment_error(missing) from missing

    @contextmanager
    def _write(self) -> Iterator[WriteTransaction]:
        """Merge segments if necessary, then commit the caller's changes, all or nothing."""
        self._merge()
        with self._commit() as write:
            yield write

    @contextmanager
    def _commit(self) -> Iterator[WriteTransaction]:
        with (
            self._catalog.write() as transaction,
            self._snapshot(transaction) as snapshot,
            WriteTransaction(self.folder, transaction, snapshot) as write,
        ):
            yield write
        write.publish()

    def _merge(self) -> None:
        """Merge segments in a separate commit; a failure loses nothing."""
        with self._catalog.read() as transaction:
            if not segments_to_merge(transaction.segments()):
                return
        with self._commit() as write:
            groups = segments_to_merge(write.transaction.segments())
            left = remove_segments(self.folder, write.transaction.removed_files())  # a killed merge left some
            merged = [file for group in groups for file in write.merge(group)]
            write.set_removed_files([*left, *merged])
        remove_segments(self.folder, merged)

    def _purge(self, ids: Collection[str]) -> None:
        """Remove all that is deleted from the files of the folder, and these passages from its ledger."""
        with self._commit() as write:
            replaced = [*write.transaction.removed_files(), *write.merge_dead()]
            write.set_removed_files(replaced)
        left = remove_segments(self.folder, replaced)
        if left:
            raise IndexFolderError(
                f"{self.folder / left[0]} cannot be removed and still holds purged passages; check its permissions "
                "and the disk, then repeat"
            )
        self._catalog.rewrite()
        # Rewriting waited for all readers of earlier states, so none can save another graph or other lists of them.
        self._read(lambda _, snapshot: self._hnsw.remove_outdated(snapshot))
        former = self.folder.with_name(f"{self.folder.name}.previous")  # kept by a re-encoding
        with translate_write_errors(self.folder):
            self._late_interaction.remove_saved()
            for ledger in ledgers(self.folder):
                forget_passages(ledger, ids, self.write_timeout)
            has_former = (former / FILE_NAME).is_file()
        if has_former:
            with LocalIndex.open(former, write_timeout=self.write_timeout) as kept:
                kept.delete(ids, purge=True)

    @contextmanager
    def _snapshot(self, transaction: Transaction) -> Iterator[Snapshot]:
        """Return the state of the transaction; it is not changed while in use."""
        with self._lock:
            # The first read fixes the state of a transaction. Under this lock, it is never older than the latest
            # snapshot.
            snapshot = self._refresh_snapshot(transaction)
            snapshot.readers += 1
        try:
            yield snapshot
        finally:
            with self._lock:
                snapshot.readers -= 1

    def _refresh_snapshot(self, transaction: Transaction) -> Snapshot:
        state, snapshot = transaction.state(), self._latest
        if state.generation == snapshot.generation:
            return snapshot
        self._check_still_same_encoder(transaction)
        self._latest = Snapshot(self.folder)  # a snapshot that fails halfway is not used again
        if snapshot.generation < state.forgotten or snapshot.is_fragmented():
            snapshot = Snapshot(self.folder)
        elif snapshot.readers:
            snapshot = snapshot.copy()
        snapshot.advance(transaction)
        self._latest = snapshot
        return snapshot


def _slots(transaction: Transaction, ids: Collection[str]) -> list[int]:
    """Return the slot of each id, or raise UnknownId."""
    found = transaction.slots_of(ids)
    for id in ids:
        if id not in found:
            raise validation.unknown_id_error(id)
    return [found[id] for id in ids]


def _check_exact_below(exact_below: int | Mapping[Mode, int] | None) -> dict[Mode, int]:
    """Return the limit of each mode with approximate search, or raise ValueError."""
    if exact_below is None:
        return dict(_EXACT_BELOW)
    given = exact_below if isinstance(exact_below, Mapping) else dict.fromkeys(_EXACT_BELOW, exact_below)
    if not given.keys() <= _EXACT_BELOW.keys() or any(limit < 0 for limit in given.values()):
        raise ValueError(
            f"exact_below={exact_below!r} is not a number of passages, nor one for each of {list(_EXACT_BELOW)}"
        )
    return {**_EXACT_BELOW, **given}


def _check_folder(folder: Path) -> None:
    """Raise IndexFolderError for a file, or a folder with other content."""
    if folder.exists() and not folder.is_dir():
        raise IndexFolderError(f"{folder} is a file; pass a folder, which is created if there is none")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if FILE_NAME not in names:
        _check_no_segments(folder)
    # A power cut while an index is created can leave these alone, and nothing of a catalog.
    others = [name for name in names if name not in (f"{FILE_NAME}-journal", f"{FILE_NAME}-shm")]
    if others and FILE_NAME not in names:
        raise IndexFolderError(
            f"{folder} contains {names[:3]} and no {FILE_NAME}, so it is not an index; choose an empty or a new folder"
        )


def _check_no_segments(folder: Path) -> None:
    """Raise DamagedFolder if a folder without a catalog, or with an empty one, has segments."""
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    segments = [name for name in names if SEGMENT_NAME.match(name)]
    if segments:
        raise DamagedFolder(
            f"{folder / FILE_NAME} is missing or empty, but {len(segments)} files with vectors are there, such as "
            f"{segments[0]}; put back the catalog and {FILE_NAME}-wal, or a copy of the whole folder"
        )


def _unknown_segments(folder: Path, names: Sequence[str]) -> UnknownSegments:
    return UnknownSegments(
        f"{folder} has {len(names)} files with vectors that its catalog does not name, such as {names[0]}; they are "
        f"kept. The catalog may be older than they are: if {FILE_NAME}-wal or a newer {FILE_NAME} exists, put it back "
        "before you write to the index"
    )


def _reopen(folder: str, exact_below: Mapping[Mode, int], write_timeout: float) -> LocalIndex:
    if not Path(folder).is_dir():
        raise IndexFolderError(f"the folder {folder} of a copied LocalIndex is missing; open the index where it is now")
    return LocalIndex.open(folder, exact_below=exact_below, write_timeout=write_timeout)

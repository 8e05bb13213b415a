"""SQLite catalog of a local index: the single commit point.

The index is what the catalog says; files without a row in it are not part of the index. Ids, texts and metadata are
stored as UTF-8 bytes, since SQLite's own texts cannot contain a lone surrogate, and since bytes sort like code points.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.core.errors import IndexFolderError
from m3_integrations.core.files import FileChecksum
from m3_integrations.core.forking import ForkSafeLock, delay_forks
from m3_integrations.core.sqlite.connection import Connection, connect, is_read_only, read_only_error, translate_errors
from m3_integrations.core.sqlite.rewriting import rewrite
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.index.local.tables.checks import (
    CatalogChecks,
    all_metadata_fit,
    hash_rows,
    is_id,
    pack_row,
    sum_ids,
    sum_slots,
)
from m3_integrations.index.local.tables.layout import (
    APPLICATION,
    BEFORE_CUBIC_LEVELS,
    BEFORE_PRECISION,
    CREATE,
    FORMAT,
    PLAN_TABLE,
    READABLE,
    REMOVED_TABLE,
    SMALL_TABLES,
    STATE_COLUMNS,
    TABLES,
)
from m3_integrations.index.local.tables.rows import (
    FILE_NAME as FILE_NAME,
    SEGMENT_NAME as SEGMENT_NAME,
    ModeConfig as ModeConfig,
    SegmentRow as SegmentRow,
    State as State,
    checked_hash,
    checked_id,
    damaged_catalog_error as damaged_catalog_error,
    is_segment_name,
    newer_format_error,
    parse_all_metadata,
    parse_integer,
    parse_mode,
    parse_passage,
    parse_plan,
    parse_segment,
    parse_text,
    to_bytes,
    unpack_checks,
    updated_members,
    verify_row,
)
from m3_integrations.index.quantization.codecs import PRECISIONS, Precision
from m3_integrations.index.records import PassageRecord, to_json

_BATCH_METADATA = 4096
_BATCH_SLOTS = 512
_INHERITED: list[Connection] = []


class Transaction:
    """A transaction on one connection: a consistent view of the index."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._row_of_state: list[Any] | None = None
        self._changes_before = connection.total_changes
        self._added: list[tuple[int, bytes]] = []
        self._removed: list[tuple[int, bytes]] = []
        self._changed_tables: set[str] = set()
        self._is_distrusted = False

    def state(self) -> State:
        """Return the row changed by every commit."""
        return State(*map(parse_integer, self._state_row()[:3]))

    def _state_row(self) -> list[Any]:
        """Return the row of `state`, compared with its checksums."""
        if self._row_of_state is None:
            self._row_of_state = list(self._require("SELECT * FROM state"))
            if self.checks is not None and not self.checks.is_of_state(self._row_of_state[:-1]):
                raise damaged_catalog_error("its state differs from what was written")
        return self._row_of_state

    @property
    def checks(self) -> CatalogChecks | None:
        """Checksums of the catalog; None before they were stored, and if this transaction changed something."""
        row = self._state_row()
        is_stored = len(row) == STATE_COLUMNS and row[-1] is not None and not self._is_distrusted
        return unpack_checks(row[-1]) if is_stored and self._connection.total_changes == self._changes_before else None

    @property
    def _checks_column(self) -> str:
        return "checks" if len(self._state_row()) == STATE_COLUMNS else "NULL"

    def verify_state(self) -> None:
        """Raise DamagedFolder if the row of `state` differs from its checksum."""
        if self._format() == FORMAT:
            self._state_row()

    def check_members(self, count: int, slot_sum: int) -> None:
        """Raise DamagedFolder unless these are the number of passages and the sum of their slots."""
        if self.checks is not None and (count, slot_sum) != self.checks[:2]:
            raise damaged_catalog_error(f"it has {count} passages, which are not those that were written")

    def distrust_state(self) -> None:
        """Read on although the row of `state` is damaged: without the checksums in it."""
        self._row_of_state = [*self._require("SELECT * FROM state")]
        self._is_distrusted = True

    def check_found(self, slots: npt.NDArray[np.int64]) -> None:
        """Raise DamagedFolder unless these are the slots of all passages."""
        self.check_members(len(slots), sum_slots(slots))

    def slots_and_ids(self) -> list[tuple[int, str]]:
        """Return slot and id of all passages, from SQLite's index of ids."""
        rows = self._scan("SELECT slot, id FROM passages ORDER BY id")
        self.check_ids(rows)
        return [(slot, parse_text(id)) for slot, id in rows]

    def verified_passages(self, slots: Iterable[int] | None) -> Iterator[tuple[int, tuple[str | None, str]]]:
        """Iterate over passages of a catalog that may be damaged.

        Args:
            slots: Slots to look up; those without a readable row are skipped. None reads the whole table.

        Yields:
            Slot, id (None if it cannot be read), and what is wrong with the passage, or an empty string.
        """
        if slots is None:
            rows: Iterable[Any] = self._connection.execute(f"SELECT {self._columns} FROM passages ORDER BY slot")
        else:
            rows = (self._row_if_readable(slot) for slot in slots)
        yield from ((row[0], verify_row(row)) for row in rows if row is not None)

    def _row_if_readable(self, slot: int) -> Any:
        try:
            return self._row(f"SELECT {self._columns} FROM passages WHERE slot = ?", slot)
        except (sqlite3.Error, UnicodeDecodeError):
            return None

    def check_ids(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Raise DamagedFolder unless these are the slots and ids of all passages."""
        if self.checks is not None and sum_ids(rows) != self.checks.id_sum:
            raise damaged_catalog_error("its ids are not those that were written")

    def seal(self) -> None:
        """Store the checksums of what was changed, at the end of a write."""
        if self._connection.total_changes == self._changes_before or self._format() != FORMAT:
            return
        row = list(self._require("SELECT * FROM state"))
        before = None if row[-1] is None else unpack_checks(row[-1])
        if before is None:
            ids = self._scan("SELECT slot, id FROM passages")
            members = [len(ids), sum_slots(np.array([slot for slot, _ in ids], np.int64)), sum_ids(ids)]
        else:
            members = updated_members(before, self._added, self._removed)
        # A table that was not changed keeps its hash, so that damage to it stays known.
        tables = [
            getattr(before, table) if before and table not in self._changed_tables else hash_rows(self._rows_of(table))
            for table in SMALL_TABLES
        ]
        self._execute("UPDATE state SET checks = ?", CatalogChecks.of(members, tables, row[:-1]).pack())

    def _rows_of(self, table: str) -> list[Any]:
        return self._scan(SMALL_TABLES[table]) if table != "plan" or self._has_table("plan") else []

    def _require_hash(self, table: str, rows: Sequence[Any]) -> None:
        if self.checks is not None and hash_rows(rows) != getattr(self.checks, table):
            raise damaged_catalog_error(f"its table {table!r} differs from what was written")

    def modes(self) -> dict[Mode, ModeConfig]:
        """Return how each mode is stored; empty before the first passages."""
        rows = self._rows_of("modes")
        self._require_hash("modes", rows)
        found = {row[0]: parse_mode(*row) for row in rows}
        return {mode: found[mode] for mode in MODES if mode in found}

    def precision(self) -> Precision:
        """Return the precision of multi-vectors, present or future."""
        if self._format() == BEFORE_PRECISION:
            return "float32"
        value = self._state_row()[5]
        for precision in PRECISIONS:
            if value == precision:
                return precision
        raise newer_format_error(f"multi-vectors stored as {value}")

    def segments(self) -> list[SegmentRow]:
        """Return all segments, ordered by number."""
        rows = self._rows_of("segments")
        self._require_hash("segments", rows)
        return [parse_segment(row) for row in rows]

    def encoder(self) -> tuple[str | None, str | None]:
        """Return the fingerprint and the repr of the encoder of the index; None if unknown."""
        fingerprint, label = self._state_row()[3:5]
        return fingerprint and str(fingerprint), label

    def plan(self) -> SearchPlan | None:
        """Return the search plan of the index; None if none was set."""
        rows = self._rows_of("plan")
        self._require_hash("plan", rows)
        return parse_plan(rows[0][0]) if rows else None

    def slots(self, first: int = 0) -> list[int]:
        """Return the slots of all passages from `first` on, ascending."""
        return [slot for (slot,) in self._scan("SELECT slot FROM passages WHERE slot >= ? ORDER BY slot", first)]

    def deleted_slots(self, since: int) -> list[int]:
        """Return the slots deleted after a generation."""
        return [slot for (slot,) in self._scan("SELECT slot FROM tombstones WHERE generation > ?", since)]

    def slots_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the slot of each known id."""
        query = f"SELECT slot, {self._checks_column} FROM passages WHERE id = ?"
        return {id: slot for id, (slot, _) in self._look_up(query, ids)}

    def _look_up(self, query: str, ids: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Iterate over known ids and their rows, which begin with the slot and end with the checksums."""
        for id in ids:
            data = to_bytes(id)
            row = self._row(query, data)
            if row is None:
                self._verify_ids()
            elif not is_id(row[0], data, row[-1]):
                raise damaged_catalog_error(f"the id of slot {row[0]} differs from what was written")
            else:
                yield id, row

    def _verify_ids(self) -> None:
        """Verify all ids once in a process, before it takes one for unknown."""
        if self.checks is not None and not self._connection.has_verified_ids:
            self.check_ids(self._scan("SELECT slot, id FROM passages ORDER BY id"))
            self._connection.has_verified_ids = True

    def ids_of(self, slots: Iterable[int]) -> list[str]:
        """Return the id of each slot; all slots must exist."""
        query = f"SELECT id, {self._checks_column} FROM passages WHERE slot = ?"
        return [checked_id(slot, *self._require(query, slot)) for slot in slots]

    def ids(self) -> list[str]:
        """Return all ids, ascending."""
        rows = self._scan("SELECT slot, id FROM passages ORDER BY id")
        self.check_ids(rows)
        return [parse_text(id) for _, id in rows]

    def passages(self, slots: Sequence[int]) -> list[Passage]:
        """Return the passage of each slot; all slots must exist."""
        found: dict[int, Passage] = {}
        for batch in (slots[start : start + _BATCH_SLOTS] for start in range(0, len(slots), _BATCH_SLOTS)):
            query = f"SELECT {self._columns} FROM passages WHERE slot IN ({', '.join('?' * len(batch))})"
            found.update((row[0], parse_passage(row)) for row in self._rows(query, *batch))
        if not found.keys() >= set(slots):
            raise damaged_catalog_error("a passage is missing")
        return [found[slot] for slot in slots]

    def all_passages(self) -> list[Passage]:
        """Return all passages, ordered by id."""
        rows = self._scan(f"SELECT {self._columns} FROM passages ORDER BY id")
        self.check_ids(row[:2] for row in rows)
        return [parse_passage(row) for row in rows]

    @property
    def _columns(self) -> str:
        return f"slot, id, text, metadata, hash, {self._checks_column}"

    def metadata(self, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Iterate over slot and metadata of all passages from slot `first` on, ascending."""
        query = f"SELECT slot, metadata, {self._checks_column} FROM passages WHERE slot >= ? ORDER BY slot"
        with self._connection.limited():
            rows = self._connection.execute(query, (first,))
            while batch := rows.fetchmany(_BATCH_METADATA):
                slots, metadata, checks = zip(*batch, strict=True)
                if not all_metadata_fit(slots, metadata, checks):
                    raise damaged_catalog_error("the metadata of a passage differs from what was written")
                yield from zip(slots, parse_all_metadata(metadata), strict=True)

    def hashes(self, ids: Sequence[str] | None) -> dict[str, str]:
        """Return the content hash of each known id; None returns all, ordered by id."""
        if ids is None:
            rows = self._scan(f"SELECT slot, id, hash, {self._checks_column} FROM passages ORDER BY id")
            self.check_ids(row[:2] for row in rows)
            return {parse_text(id): checked_hash(slot, hash, checks) for slot, id, hash, checks in rows}
        query = f"SELECT slot, hash, {self._checks_column} FROM passages WHERE id = ?"
        return {id: checked_hash(*row) for id, row in self._look_up(query, ids)}

    def create(self, precision: Precision) -> None:
        """Create the tables."""
        for statement in CREATE.split(";\n"):
            self._execute(statement, *[precision] * statement.count("?"))

    def is_new(self) -> bool:
        """Return whether the database is empty.

        Raises:
            IndexFolderError: If the database is another program's, or of an unsupported format.
            DamagedFolder: If it has tables, views or triggers that a catalog does not have.
        """
        application, version = (self._require(f"PRAGMA {name}")[0] for name in ("application_id", "user_version"))
        if application == version == self._require("SELECT count(*) FROM sqlite_master")[0] == 0:
            return True
        if (application ^ APPLICATION).bit_count() == 1:
            raise damaged_catalog_error("a bit of its application id differs from what was written")
        if application != APPLICATION:
            raise IndexFolderError(f"the {FILE_NAME} there was written by another program; choose another folder")
        if version not in READABLE:
            raise newer_format_error(f"format {version}")
        fault = TABLES.find_fault(self._connection)
        if version != FORMAT and len(self._rows("PRAGMA table_info(state)")) == STATE_COLUMNS:
            fault = f"it has the checksums of format {FORMAT} and states format {version}"
        if fault:
            raise damaged_catalog_error(fault)
        if version == BEFORE_CUBIC_LEVELS and self.precision() == "int4":
            raise IndexFolderError(
                "the folder has the int4 format of a version before the first release; "
                "ingest the passages into a new folder"
            )
        return False

    def set_encoder(self, fingerprint: str, label: str) -> None:
        """Set the encoder of the index."""
        self._execute("UPDATE state SET encoder = ?, encoder_label = ?", fingerprint, label)

    def set_plan(self, plan: SearchPlan | None) -> None:
        """Set the search plan of the index; None removes it."""
        self._changed_tables.add("plan")
        self._execute(PLAN_TABLE)  # earlier versions of this format have none, and ignore it
        self._execute("DELETE FROM plan")
        if plan is not None:
            self._execute("INSERT INTO plan VALUES (?)", json.dumps(plan.to_json()))

    def set_modes(self, modes: Mapping[Mode, ModeConfig]) -> None:
        """Set how each mode is stored, once."""
        self._changed_tables.add("modes")
        for mode, (width, codec) in modes.items():
            self._execute("INSERT INTO modes (mode, width, precision) VALUES (?, ?, 'float32')", mode, width)
            if codec is not None:
                values = codec.precision, codec.center.astype("<f4").tobytes(), mode
                self._execute("UPDATE modes SET precision = ?, centre = ? WHERE mode = ?", *values)

    def clear_modes(self) -> None:
        """Remove how each mode is stored, when all embeddings are replaced."""
        self._execute("DELETE FROM modes")

    def insert_passages(self, first_slot: int, records: Iterable[PassageRecord]) -> None:
        """Insert passages with consecutive slots."""
        self._upgrade()
        rows = []
        for slot, record in enumerate(records, first_slot):
            id, metadata = to_bytes(record.id), to_json(record.metadata)
            checks = pack_row(slot, id, metadata, record.hash)
            rows.append((slot, id, to_bytes(record.text), metadata, record.hash, checks))
            self._added.append((slot, id))
        self._connection.executemany("INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)", rows)

    def add_tombstones(self, slots: Iterable[int], generation: int) -> None:
        """Delete passages and record their slots as deleted in a generation."""
        rows = [(slot, generation) for slot in slots]
        self._removed += ((slot, self._require("SELECT id FROM passages WHERE slot = ?", slot)[0]) for slot, _ in rows)
        self._connection.executemany("DELETE FROM passages WHERE slot = ?", ((slot,) for slot, _ in rows))
        self._connection.executemany("INSERT INTO tombstones VALUES (?, ?)", rows)

    def purge_tombstones(self, generation: int) -> None:
        """Delete all tombstones, up to this generation."""
        self._execute("DELETE FROM tombstones")
        self._execute("UPDATE state SET forgotten = ?", generation)

    def tombstone_count(self) -> int:
        """Return the number of tombstones."""
        return int(self._require("SELECT count(*) FROM tombstones")[0])

    def next_segment_number(self) -> int:
        """Return the number of the next segment."""
        row = self._row("SELECT seq FROM sqlite_sequence WHERE name = 'segments'")
        return parse_integer(row[0]) + 1 if row else 1

    def add_segment(self, mode: Mode, file: str, checksum: FileChecksum, rows: int) -> None:
        """Add a segment; its file must be written and synced."""
        self._upgrade()
        self._changed_tables.add("segments")
        insert = "INSERT INTO segments (mode, file, length, checksum, rows, dead) VALUES (?, ?, ?, ?, ?, 0)"
        self._execute(insert, mode, file, checksum.length, checksum.checksum, rows)

    def drop_segments(self, numbers: Iterable[int]) -> None:
        """Remove segments; their files can be deleted after the commit."""
        self._changed_tables.add("segments")
        self._connection.executemany("DELETE FROM segments WHERE number = ?", ((number,) for number in numbers))

    def removed_files(self) -> list[str]:
        """Return the files that a merge replaced and that may still be there."""
        if not self._has_table("removed"):
            return []
        return [file for (file,) in self._scan("SELECT file FROM removed") if is_segment_name(file)]

    def set_removed_files(self, files: Iterable[str]) -> None:
        """Record the files to delete after the commit, in place of those recorded before."""
        self._execute(REMOVED_TABLE)
        self._execute("DELETE FROM removed")
        self._connection.executemany("INSERT OR IGNORE INTO removed VALUES (?)", ((file,) for file in files))

    def add_dead_rows(self, counts: Mapping[int, int]) -> None:
        """Increase the number of dead rows of segments, by number."""
        self._changed_tables.add("segments")
        rows = ((count, number) for number, count in counts.items())
        self._connection.executemany("UPDATE segments SET dead = dead + ? WHERE number = ?", rows)

    def next_generation(self, generation: int, next_slot: int) -> None:
        """Set the generation and the next slot, at the end of a commit."""
        self._execute("UPDATE state SET generation = ?, next_slot = ?", generation, next_slot)

    def check_integrity(self) -> None:
        """Raise DamagedFolder if SQLite finds the database damaged."""
        (result,) = self._require("PRAGMA integrity_check(1)")
        if result != "ok":
            raise damaged_catalog_error(f"SQLite reports: {result}")

    def _upgrade(self) -> None:
        """Upgrade an older catalog, before it names a segment of this format."""
        if self._format() == FORMAT:
            return
        if self._format() == BEFORE_PRECISION:
            self._execute("ALTER TABLE state ADD COLUMN precision TEXT NOT NULL DEFAULT 'float32'")
            self._execute("ALTER TABLE modes ADD COLUMN centre BLOB")
        for table in ("state", "passages"):
            self._execute(f"ALTER TABLE {table} ADD COLUMN checks BLOB")
        self._row_of_state = None
        self._execute(f"PRAGMA user_version = {FORMAT}")

    def _format(self) -> int:
        return parse_integer(self._require("PRAGMA user_version")[0])

    def _has_table(self, name: str) -> bool:
        return self._row("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", name) is not None

    def _scan(self, query: str, *values: Any) -> list[Any]:
        """Return all rows of a query that reads a whole table."""
        with self._connection.limited():
            return self._rows(query, *values)

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._connection.execute(query, values).fetchall()

    def _row(self, query: str, *values: Any) -> Any:
        return self._connection.execute(query, values).fetchone()

    def _require(self, query: str, *values: Any) -> Any:
        row = self._row(query, *values)
        if row is None:
            raise damaged_catalog_error(f"a row is missing ({query})")
        return row

    def _execute(self, statement: str, *values: Any) -> None:
        self._connection.execute(statement, values)


class Catalog:
    """The database of one folder, with a pool of connections.

    Each connection is used by one thread at a time.

    Args:
        folder: The index folder.
        timeout: Seconds that a write waits for another writer.
    """

    def __init__(self, folder: Path, timeout: float) -> None:
        self._folder = folder
        self.timeout = timeout
        self._lock = ForkSafeLock()
        self._idle: list[Connection] = []
        self._version: tuple[float, ...] = ()  # of a database that may only be read: it is not watched by SQLite
        self._process = os.getpid()
        self._closed = False

    @property
    def is_read_only(self) -> bool:
        """Whether the folder may only be read."""
        return is_read_only(self._path)

    @property
    def _path(self) -> Path:
        return self._folder / FILE_NAME

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a read transaction."""
        with self._connection(self.timeout) as connection, self._transaction(connection, "BEGIN") as transaction:
            yield transaction

    @contextmanager
    def write(self, timeout: float | None = None) -> Iterator[Transaction]:
        """Open the only write transaction of all processes; an exception rolls it back.

        Args:
            timeout: Seconds to wait for another writer; None is the timeout of the catalog.

        Raises:
            WriterBusy: If another writer does not finish in time.
            IndexFolderError: If the folder may only be read.
        """
        if self.is_read_only:
            raise read_only_error(self._path)
        seconds = self.timeout if timeout is None else timeout
        with self._connection(seconds) as connection, self._transaction(connection, "BEGIN IMMEDIATE") as transaction:
            yield transaction

    def rewrite(self) -> None:
        """Rewrite the database, so that nothing of deleted rows is left in it.

        Raises:
            WriterBusy: If another process reads an earlier state, or writes, for longer than a write waits.
        """
        with self._connection(self.timeout) as connection:
            rewrite(connection, self._path)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _transaction(self, connection: Connection, begin: str) -> Iterator[Transaction]:
        connection.execute(begin)
        try:
            transaction = Transaction(connection)
            if begin != "BEGIN":
                transaction.verify_state()  # the end of the transaction replaces its checksum
            yield transaction
            transaction.seal()
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise

    @contextmanager
    def _connection(self, timeout: float) -> Iterator[Connection]:
        with self._translated_errors(), delay_forks():
            connection = self._acquire()
            try:
                if timeout == self.timeout:  # as connected: setting it takes as long as a small query
                    yield connection
                    return
                connection.execute(f"PRAGMA busy_timeout = {round(timeout * 1000)}")
                try:
                    yield connection
                finally:
                    connection.execute(f"PRAGMA busy_timeout = {round(self.timeout * 1000)}")
            finally:
                self._release(connection)

    def _acquire(self) -> Connection:
        with self._lock:
            if self._closed:
                raise IndexFolderError(f"the index in {self._folder} is closed; open it again with LocalIndex.open()")
            if self._process != os.getpid():  # after a fork, SQLite connections must not be used, nor closed
                _INHERITED.extend(self._idle)
                self._idle, self._process = [], os.getpid()
            self._drop_outdated()
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _drop_outdated(self) -> None:
        """Drop connections to an earlier version of a database that may only be read."""
        if self._idle and self._idle[0].is_read_only:
            paths = (self._path, self._path.with_name(f"{FILE_NAME}-wal"))
            stats = [path.stat() for path in paths if path.exists()]
            version = tuple(number for each in stats for number in (each.st_mtime_ns, each.st_size))
            if version != self._version:
                self._idle, self._version = [], version

    def _release(self, connection: Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> Connection:
        connection = connect(self._path, self.timeout)
        try:
            with self._transaction(connection, "BEGIN") as transaction:
                transaction.is_new()  # before changing settings of what may be another program's database
            if not connection.is_read_only:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _translated_errors(self) -> AbstractContextManager[None]:
        return translate_errors(self._path, self.timeout, lambda problem: damaged_catalog_error(problem, self._folder))

"""SQLite catalog of a local index: the single commit point.

The index is what the catalog says; files without a row in it are not part of the index. Ids, texts and metadata are
stored as UTF-8 bytes, since SQLite's own texts cannot contain a lone surrogate, and since bytes sort like code points.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3_integrations.core.encoded import MODES, Array, Mode
from m3_integrations.core.errors import DamagedFolder, IndexFolderError, M3Error
from m3_integrations.core.files import FileChecksum
from m3_integrations.core.forking import ForkSafeLock, delay_forks
from m3_integrations.core.sqlite.connection import Connection, connect, is_read_only, read_only_error, translate_errors
from m3_integrations.core.sqlite.rewriting import rewrite
from m3_integrations.core.sqlite.schema import Schema
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.index.quantization.codecs import PRECISIONS, Codec, Precision, make_codec
from m3_integrations.index.records import PassageRecord, from_json, hash_content, to_json

FILE_NAME = "catalogue.sqlite"
SEGMENT_NAME = re.compile(r"(dense|sparse|multi_vector)-[0-9]{8,19}-[0-9a-f]{16}\.segment", re.ASCII)
_APPLICATION = 0x4D334958
_FORMAT = 5
_BEFORE_MULTI_VECTOR_INT8 = 4  # multi-vectors without an int8 copy; readable
_BEFORE_DENSE_INT8 = 3  # dense segments without an int8 copy; readable
_BEFORE_CUBIC_LEVELS = 2  # another meaning of int4; otherwise readable
_BEFORE_PRECISION = 1
_READABLE = (_FORMAT, _BEFORE_MULTI_VECTOR_INT8, _BEFORE_DENSE_INT8, _BEFORE_CUBIC_LEVELS, _BEFORE_PRECISION)
_MAX_SEGMENT_NUMBER = 1 << 31
_BATCH_METADATA = 4096
_BATCH_SLOTS = 512
_INHERITED: list[Connection] = []
_SCHEMA = f"""
CREATE TABLE state (
    generation INTEGER NOT NULL,    -- increases with every commit
    next_slot INTEGER NOT NULL,     -- slots are numbers of passages, never reused
    forgotten INTEGER NOT NULL,     -- tombstones up to this generation are purged: an older reader must reload
    encoder TEXT,                   -- fingerprint of the encoder that fills the index
    encoder_label TEXT,             -- its repr
    precision TEXT NOT NULL         -- precision of multi-vectors
);
INSERT INTO state VALUES (0, 0, 0, NULL, NULL, ?);
CREATE TABLE modes (
    mode TEXT PRIMARY KEY, width INTEGER NOT NULL, precision TEXT NOT NULL,
    centre BLOB                     -- center of the codec, as float32
);
CREATE TABLE passages (
    slot INTEGER PRIMARY KEY, id BLOB UNIQUE NOT NULL, text BLOB NOT NULL, metadata BLOB NOT NULL, hash TEXT NOT NULL
);
CREATE TABLE tombstones (slot INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
CREATE INDEX tombstones_by_generation ON tombstones (generation);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,   -- of two with the same slot, the higher number is current
    mode TEXT NOT NULL, file TEXT UNIQUE NOT NULL, length INTEGER NOT NULL, checksum TEXT NOT NULL,
    rows INTEGER NOT NULL, dead INTEGER NOT NULL
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
"""


_PLAN_TABLE = "CREATE TABLE IF NOT EXISTS plan (plan TEXT NOT NULL)"  # one row of JSON, or none
_REMOVED_TABLE = "CREATE TABLE IF NOT EXISTS removed (file TEXT PRIMARY KEY)"  # files that a merge replaced
_TABLES = Schema(
    columns={
        "state": ("generation", "next_slot", "forgotten", "encoder", "encoder_label", "precision"),
        "modes": ("mode", "width", "precision", "centre"),
        "passages": ("slot", "id", "text", "metadata", "hash"),
        "tombstones": ("slot", "generation"),
        "segments": ("number", "mode", "file", "length", "checksum", "rows", "dead"),
        "plan": ("plan",),
        "removed": ("file",),
    },
    indexes=("tombstones_by_generation",),
    defaults=("'float32'",),
)


class State(NamedTuple):
    """The row changed by every commit.

    Attributes:
        generation: Number of the last commit.
        next_slot: Slot of the next passage.
        forgotten: Generation up to which tombstones are purged.
    """

    generation: int
    next_slot: int
    forgotten: int


class SegmentRow(NamedTuple):
    """A segment in the catalog.

    Attributes:
        number: Of two segments with the same slot, the higher number is current.
        mode: The mode of its embeddings.
        file: Name of its file.
        length: Length of the file in bytes.
        checksum: SHA-256 of the file.
        rows: Number of rows.
        dead: Number of rows that are no longer current.
    """

    number: int
    mode: Mode
    file: str
    length: int
    checksum: str
    rows: int
    dead: int


class ModeConfig(NamedTuple):
    """How one mode is stored: its width, and its codec; None for float32."""

    width: int
    codec: Codec | None


class Transaction:
    """A transaction on one connection: a consistent view of the index."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def state(self) -> State:
        """Return the row changed by every commit."""
        return State(*map(_integer, self._require("SELECT generation, next_slot, forgotten FROM state")))

    def modes(self) -> dict[Mode, ModeConfig]:
        """Return how each mode is stored; empty before the first passages."""
        found = {row[0]: _mode_config(*row) for row in self._scan("SELECT * FROM modes")}
        return {mode: found[mode] for mode in MODES if mode in found}

    def precision(self) -> Precision:
        """Return the precision of multi-vectors, present or future."""
        if self._format() == _BEFORE_PRECISION:
            return "float32"
        (value,) = self._require("SELECT precision FROM state")
        for precision in PRECISIONS:
            if value == precision:
                return precision
        raise _newer_format_error(f"multi-vectors stored as {value}")

    def segments(self) -> list[SegmentRow]:
        """Return all segments, ordered by number."""
        rows = self._scan("SELECT number, mode, file, length, checksum, rows, dead FROM segments ORDER BY number")
        return [_segment_row(row) for row in rows]

    def encoder(self) -> tuple[str | None, str | None]:
        """Return the fingerprint and the repr of the encoder of the index; None if unknown."""
        fingerprint, label = self._require("SELECT encoder, encoder_label FROM state")
        return fingerprint and str(fingerprint), label

    def plan(self) -> SearchPlan | None:
        """Return the search plan of the index; None if none was set."""
        if not self._has_table("plan"):
            return None
        row = self._row("SELECT plan FROM plan")
        return None if row is None else _parse_plan(row[0])

    def slots(self, first: int = 0) -> list[int]:
        """Return the slots of all passages from `first` on, ascending."""
        return [slot for (slot,) in self._scan("SELECT slot FROM passages WHERE slot >= ? ORDER BY slot", first)]

    def deleted_slots(self, since: int) -> list[int]:
        """Return the slots deleted after a generation."""
        return [slot for (slot,) in self._scan("SELECT slot FROM tombstones WHERE generation > ?", since)]

    def slots_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the slot of each known id."""
        found = ((id, self._row("SELECT slot FROM passages WHERE id = ?", to_bytes(id))) for id in ids)
        return {id: row[0] for id, row in found if row}

    def ids_of(self, slots: Iterable[int]) -> list[str]:
        """Return the id of each slot; all slots must exist."""
        return [_text(self._require("SELECT id FROM passages WHERE slot = ?", slot)[0]) for slot in slots]

    def ids(self) -> list[str]:
        """Return all ids, ascending."""
        return [_text(id) for (id,) in self._scan("SELECT id FROM passages ORDER BY id")]

    def passages(self, slots: Sequence[int]) -> list[Passage]:
        """Return the passage of each slot; all slots must exist."""
        found: dict[int, Passage] = {}
        for batch in (slots[start : start + _BATCH_SLOTS] for start in range(0, len(slots), _BATCH_SLOTS)):
            query = f"SELECT slot, id, text, metadata, hash FROM passages WHERE slot IN ({', '.join('?' * len(batch))})"
            found.update((slot, _passage(row)) for slot, *row in self._rows(query, *batch))
        if not found.keys() >= set(slots):
            raise damaged_catalog_error("a passage is missing")
        return [found[slot] for slot in slots]

    def all_passages(self) -> list[Passage]:
        """Return all passages, ordered by id."""
        return [_passage(row) for row in self._scan("SELECT id, text, metadata, hash FROM passages ORDER BY id")]

    def metadata(self, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Iterate over slot and metadata of all passages from slot `first` on, ascending."""
        query = "SELECT slot, metadata FROM passages WHERE slot >= ? ORDER BY slot"
        with self._connection.limited():
            rows = self._connection.execute(query, (first,))
            while batch := rows.fetchmany(_BATCH_METADATA):
                slots, metadata = zip(*batch, strict=True)
                yield from zip(slots, _parse_all_metadata(metadata), strict=True)

    def hashes(self, ids: Sequence[str] | None) -> dict[str, str]:
        """Return the content hash of each known id; None returns all, ordered by id."""
        if ids is None:
            return {_text(id): hash for id, hash in self._scan("SELECT id, hash FROM passages ORDER BY id")}
        found = ((id, self._row("SELECT hash FROM passages WHERE id = ?", to_bytes(id))) for id in ids)
        return {id: row[0] for id, row in found if row}

    def create(self, precision: Precision) -> None:
        """Create the tables."""
        for statement in _SCHEMA.split(";\n"):
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
        if application != _APPLICATION:
            raise IndexFolderError(f"the {FILE_NAME} there was written by another program; choose another folder")
        if version not in _READABLE:
            raise _newer_format_error(f"format {version}")
        fault = _TABLES.find_fault(self._connection)
        if fault:
            raise damaged_catalog_error(fault)
        if version == _BEFORE_CUBIC_LEVELS and self.precision() == "int4":
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
        self._execute(_PLAN_TABLE)  # earlier versions of this format have none, and ignore it
        self._execute("DELETE FROM plan")
        if plan is not None:
            self._execute("INSERT INTO plan VALUES (?)", json.dumps(plan.to_json()))

    def set_modes(self, modes: Mapping[Mode, ModeConfig]) -> None:
        """Set how each mode is stored, once."""
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
        rows = (
            (slot, to_bytes(record.id), to_bytes(record.text), to_json(record.metadata), record.hash)
            for slot, record in enumerate(records, first_slot)
        )
        self._connection.executemany("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", rows)

    def add_tombstones(self, slots: Iterable[int], generation: int) -> None:
        """Delete passages and record their slots as deleted in a generation."""
        rows = [(slot, generation) for slot in slots]
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
        return _integer(row[0]) + 1 if row else 1

    def add_segment(self, mode: Mode, file: str, checksum: FileChecksum, rows: int) -> None:
        """Add a segment; its file must be written and synced."""
        if self._format() != _FORMAT:
            self._upgrade()
        insert = "INSERT INTO segments (mode, file, length, checksum, rows, dead) VALUES (?, ?, ?, ?, ?, 0)"
        self._execute(insert, mode, file, checksum.length, checksum.checksum, rows)

    def drop_segments(self, numbers: Iterable[int]) -> None:
        """Remove segments; their files can be deleted after the commit."""
        self._connection.executemany("DELETE FROM segments WHERE number = ?", ((number,) for number in numbers))

    def removed_files(self) -> list[str]:
        """Return the files that a merge replaced and that may still be there."""
        if not self._has_table("removed"):
            return []
        return [file for (file,) in self._scan("SELECT file FROM removed") if _is_segment_name(file)]

    def set_removed_files(self, files: Iterable[str]) -> None:
        """Record the files to delete after the commit, in place of those recorded before."""
        self._execute(_REMOVED_TABLE)
        self._execute("DELETE FROM removed")
        self._connection.executemany("INSERT OR IGNORE INTO removed VALUES (?)", ((file,) for file in files))

    def add_dead_rows(self, counts: Mapping[int, int]) -> None:
        """Increase the number of dead rows of segments, by number."""
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
        if self._format() == _BEFORE_PRECISION:
            self._execute("ALTER TABLE state ADD COLUMN precision TEXT NOT NULL DEFAULT 'float32'")
            self._execute("ALTER TABLE modes ADD COLUMN centre BLOB")
        self._execute(f"PRAGMA user_version = {_FORMAT}")

    def _format(self) -> int:
        return _integer(self._require("PRAGMA user_version")[0])

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
            yield Transaction(connection)
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


def damaged_catalog_error(problem: str, folder: Path | None = None) -> DamagedFolder:
    """Return the error for a damaged catalog."""
    return DamagedFolder(
        f"{FILE_NAME}{f' in {folder}' if folder else ''} is damaged: {problem}; put back a copy of the whole folder, "
        "or add the passages to a new one"
    )


def to_bytes(text: str) -> bytes:
    """Encode a text as stored; lone surrogates are preserved."""
    return text.encode("utf-8", "surrogatepass")


def _text(data: Any) -> str:
    try:
        return str(bytes.decode(data, "utf-8", "surrogatepass"))
    except (TypeError, UnicodeDecodeError) as error:
        raise damaged_catalog_error(f"{data!r} is not a text") from error


def _parse_metadata(data: Any) -> dict[str, Any]:
    try:
        metadata = from_json(data)
    except (AttributeError, ValueError, RecursionError) as error:
        raise damaged_catalog_error(f"metadata is not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise damaged_catalog_error(f"metadata is not a JSON object: {metadata!r}")
    return metadata


def _parse_all_metadata(data: Sequence[Any]) -> list[dict[str, Any]]:
    """Parse all by one call of the JSON parser, in half the time of one call each."""
    try:
        parsed = from_json(b"[" + b",".join(data) + b"]")
    except (TypeError, ValueError, RecursionError):
        parsed = []
    is_valid = len(parsed) == len(data) and all(isinstance(item, dict) for item in parsed)
    return parsed if is_valid else [_parse_metadata(item) for item in data]


def _passage(row: Any) -> Passage:
    id, text, metadata, hash = row
    try:
        passage = Passage(_text(id), _text(text), _parse_metadata(metadata))
    except ValueError as error:
        raise damaged_catalog_error(str(error)) from error
    if hash_content(passage.text, passage.metadata) != hash:
        raise damaged_catalog_error(f"the text or metadata of passage {passage.id!r} differs from what was written")
    return passage


def _parse_plan(data: Any) -> SearchPlan:
    try:
        return SearchPlan.from_json(json.loads(data))
    except (TypeError, ValueError, AttributeError, RecursionError, M3Error) as error:
        raise damaged_catalog_error(f"the search plan cannot be read ({error})") from error


def _mode_config(mode: Any, width: Any, precision: Any, center: Any = None) -> ModeConfig:
    if mode not in MODES or precision not in PRECISIONS or (mode != "multi_vector" and precision != "float32"):
        raise _newer_format_error(f"{mode} vectors stored as {precision}")
    if _integer(width) < 0:
        raise damaged_catalog_error(f"{mode} vectors have width {width}")
    return ModeConfig(width, None if precision == "float32" else make_codec(precision, _center(center, width)))


def _center(data: Any, width: int) -> Array:
    if not isinstance(data, bytes) or len(data) != 4 * width:
        raise damaged_catalog_error(f"the center of vectors of width {width} has another width")
    center = np.frombuffer(data, "<f4")
    if not np.isfinite(center).all():
        raise damaged_catalog_error("the center of the vectors is not finite")
    return center


def _segment_row(row: Any) -> SegmentRow:
    number, mode, file, length, digest, rows, dead = row
    if not (_is_segment_name(file) and file.startswith(f"{mode}-")):
        raise damaged_catalog_error(f"a segment has the name {file!r}")
    if not 0 < number < _MAX_SEGMENT_NUMBER:
        raise damaged_catalog_error(f"a segment has the number {number}")
    return SegmentRow(number, mode, file, _integer(length), str(digest), _integer(rows), _integer(dead))


def _is_segment_name(file: Any) -> bool:
    return isinstance(file, str) and SEGMENT_NAME.fullmatch(file) is not None


def _integer(value: Any) -> int:
    if not isinstance(value, int):
        raise damaged_catalog_error(f"{value!r} is not an integer")
    return value


def _newer_format_error(what: str) -> IndexFolderError:
    return IndexFolderError(f"the folder has {what}, which this version cannot read; install a newer m3-integrations")

"""The catalogue of a local index: one SQLite database, the point of every commit.

What a transaction of the catalogue says is the index; files that no row names are not part of it. Ids, texts and
metadata are kept as bytes of UTF-8, since SQLite's own texts cannot hold a lone surrogate, and since bytes sort as
code points do.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3_integrations.core.encoded import MODES, Array, Mode
from m3_integrations.core.errors import DamagedFolder, IndexFolderError
from m3_integrations.core.texts import Passage
from m3_integrations.index.arrays import Stamp
from m3_integrations.index.codes import PRECISIONS, Coding, Precision, coding_of
from m3_integrations.index.entries import Entry, from_json, to_json

FILE_NAME = "catalogue.sqlite"
SEGMENT_NAME = re.compile(r"(dense|sparse|multi_vector)-[0-9]{8,19}-[0-9a-f]{16}\.segment", re.ASCII)
_APPLICATION = 0x4D334958
_FORMAT = 5
_WITHOUT_BYTES = 4  # multi-vectors had no bytes beside them; they are read without
_WITHOUT_COPIES = 3  # dense segments had no coarse copies; they are read without
_WITH_EVEN_LEVELS = 2  # int4 meant others; all else is as now
_WITHOUT_PRECISION = 1
_MOST_SEGMENTS = 1 << 31
_PARSED_AT_ONCE = 4096
_NAMED_AT_ONCE = 512
_INHERITED: list[sqlite3.Connection] = []
_SCHEMA = f"""
CREATE TABLE state (
    generation INTEGER NOT NULL,    -- rises with every commit
    next_slot INTEGER NOT NULL,     -- slots are numbers of passages, given once and never again
    forgotten INTEGER NOT NULL,     -- tombstones up to this generation are gone: a reader behind it starts over
    encoder TEXT,                   -- the fingerprint of the encoder that fills the index
    encoder_label TEXT,             -- and what it is called
    precision TEXT NOT NULL         -- how multi-vectors are kept
);
INSERT INTO state VALUES (0, 0, 0, NULL, NULL, ?);
CREATE TABLE modes (
    mode TEXT PRIMARY KEY, width INTEGER NOT NULL, precision TEXT NOT NULL,
    centre BLOB                     -- around which vectors are coded, as float32
);
CREATE TABLE passages (
    slot INTEGER PRIMARY KEY, id BLOB UNIQUE NOT NULL, text BLOB NOT NULL, metadata BLOB NOT NULL, hash TEXT NOT NULL
);
CREATE TABLE tombstones (slot INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
CREATE INDEX tombstones_by_generation ON tombstones (generation);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,   -- of two that hold a slot, the higher is right
    mode TEXT NOT NULL, file TEXT UNIQUE NOT NULL, length INTEGER NOT NULL, checksum TEXT NOT NULL,
    rows INTEGER NOT NULL, dead INTEGER NOT NULL
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
"""


class State(NamedTuple):
    """The one row that changes with every commit."""

    generation: int
    next_slot: int
    forgotten: int


class SegmentRow(NamedTuple):
    """A segment as the catalogue names it. dead: how many of its rows are no longer anyone's vectors."""

    number: int
    mode: Mode
    file: str
    length: int
    checksum: str
    rows: int
    dead: int


class Kept(NamedTuple):
    """How the vectors of one mode are kept: how wide they are, and how they are coded; None: as they are."""

    width: int
    coding: Coding | None


class Transaction:
    """One transaction on one connection: everything read through it is of one state of the index."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def state(self) -> State:
        return State(*map(_integer, self._found("SELECT generation, next_slot, forgotten FROM state")))

    def modes(self) -> dict[Mode, Kept]:
        """How each mode is kept; nothing before the first passages."""
        found = {row[0]: _kept(*row) for row in self._rows("SELECT * FROM modes")}
        return {mode: found[mode] for mode in MODES if mode in found}

    def precision(self) -> Precision:
        """How multi-vectors are kept, or will be."""
        if self._format() == _WITHOUT_PRECISION:
            return "float32"
        (said,) = self._found("SELECT precision FROM state")
        for precision in PRECISIONS:
            if said == precision:
                return precision
        raise _newer(f"multi-vectors kept as {said}")

    def segments(self) -> list[SegmentRow]:
        """Every segment, in ascending order of number."""
        rows = self._rows("SELECT number, mode, file, length, checksum, rows, dead FROM segments ORDER BY number")
        return [_segment_row(row) for row in rows]

    def encoder(self) -> tuple[str | None, str | None]:
        fingerprint, label = self._found("SELECT encoder, encoder_label FROM state")
        return fingerprint and str(fingerprint), label

    def slots(self, first: int = 0) -> list[int]:
        """The slots of all passages from this one on, ascending."""
        return [slot for (slot,) in self._rows("SELECT slot FROM passages WHERE slot >= ? ORDER BY slot", first)]

    def buried(self, since: int) -> list[int]:
        """The slots that died after this generation."""
        return [slot for (slot,) in self._rows("SELECT slot FROM tombstones WHERE generation > ?", since)]

    def slots_of(self, ids: Iterable[str]) -> dict[str, int]:
        """The slot of each id that is there."""
        found = ((id, self._one("SELECT slot FROM passages WHERE id = ?", to_bytes(id))) for id in ids)
        return {id: row[0] for id, row in found if row}

    def ids_of(self, slots: Iterable[int]) -> list[str]:
        return [_text(self._found("SELECT id FROM passages WHERE slot = ?", slot)[0]) for slot in slots]

    def ids(self) -> list[str]:
        return [_text(id) for (id,) in self._rows("SELECT id FROM passages ORDER BY id")]

    def passages(self, slots: Sequence[int]) -> list[Passage]:
        """The passage of each slot, which must be there, in this order."""
        found: dict[int, Passage] = {}
        for some in (slots[start : start + _NAMED_AT_ONCE] for start in range(0, len(slots), _NAMED_AT_ONCE)):
            query = f"SELECT slot, id, text, metadata FROM passages WHERE slot IN ({', '.join('?' * len(some))})"
            found.update((slot, _passage(row)) for slot, *row in self._rows(query, *some))
        if not found.keys() >= set(slots):
            raise broken("a passage that must be there is not")
        return [found[slot] for slot in slots]

    def all_passages(self) -> list[Passage]:
        return [_passage(row) for row in self._rows("SELECT id, text, metadata FROM passages ORDER BY id")]

    def metadata(self, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Slot and metadata of all passages from this slot on, ascending."""
        rows = self._connection.execute("SELECT slot, metadata FROM passages WHERE slot >= ? ORDER BY slot", (first,))
        while some := rows.fetchmany(_PARSED_AT_ONCE):
            slots, said = zip(*some, strict=True)
            yield from zip(slots, _all_metadata(said), strict=True)

    def hashes(self, ids: Sequence[str] | None) -> dict[str, str]:
        if ids is None:
            return {_text(id): hash for id, hash in self._rows("SELECT id, hash FROM passages ORDER BY id")}
        found = ((id, self._one("SELECT hash FROM passages WHERE id = ?", to_bytes(id))) for id in ids)
        return {id: row[0] for id, row in found if row}

    # Writing

    def create(self, precision: Precision) -> None:
        for statement in _SCHEMA.split(";\n"):
            self._do(statement, *[precision] * statement.count("?"))

    def is_new(self) -> bool:
        """Whether nothing was ever written here. Raises IndexFolderError for another program's database."""
        application, version = (self._found(f"PRAGMA {name}")[0] for name in ("application_id", "user_version"))
        if application == version == self._found("SELECT count(*) FROM sqlite_master")[0] == 0:
            return True
        if application != _APPLICATION:
            raise IndexFolderError(f"the {FILE_NAME} there was written by another program; choose another folder")
        if version not in (_FORMAT, _WITHOUT_BYTES, _WITHOUT_COPIES, _WITH_EVEN_LEVELS, _WITHOUT_PRECISION):
            raise _newer(f"format {version}")
        if version == _WITH_EVEN_LEVELS and self.precision() == "int4":
            raise IndexFolderError(
                "the folder keeps int4 as a version before the first release did; ingest the passages into a new folder"
            )
        return False

    def _renew(self) -> None:
        """Bring the catalogue of an older folder to this format, before what only this format has is named in it."""
        if self._format() == _WITHOUT_PRECISION:
            self._do("ALTER TABLE state ADD COLUMN precision TEXT NOT NULL DEFAULT 'float32'")
            self._do("ALTER TABLE modes ADD COLUMN centre BLOB")
        self._do(f"PRAGMA user_version = {_FORMAT}")

    def _format(self) -> int:
        return _integer(self._found("PRAGMA user_version")[0])

    def remember_encoder(self, fingerprint: str, label: str) -> None:
        self._do("UPDATE state SET encoder = ?, encoder_label = ?", fingerprint, label)

    def fix_modes(self, modes: Mapping[Mode, Kept]) -> None:
        for mode, (width, coding) in modes.items():
            self._do("INSERT INTO modes (mode, width, precision) VALUES (?, ?, 'float32')", mode, width)
            if coding is not None:
                said = coding.precision, coding.centre.astype("<f4").tobytes(), mode
                self._do("UPDATE modes SET precision = ?, centre = ? WHERE mode = ?", *said)

    def keep(self, first_slot: int, entries: Iterable[Entry]) -> None:
        rows = (
            (slot, to_bytes(entry.id), to_bytes(entry.text), to_json(entry.metadata), entry.hash)
            for slot, entry in enumerate(entries, first_slot)
        )
        self._connection.executemany("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", rows)

    def bury(self, slots: Iterable[int], generation: int) -> None:
        rows = [(slot, generation) for slot in slots]
        self._connection.executemany("DELETE FROM passages WHERE slot = ?", ((slot,) for slot, _ in rows))
        self._connection.executemany("INSERT INTO tombstones VALUES (?, ?)", rows)

    def forget_tombstones(self, generation: int) -> None:
        self._do("DELETE FROM tombstones")
        self._do("UPDATE state SET forgotten = ?", generation)

    def tombstones(self) -> int:
        return int(self._found("SELECT count(*) FROM tombstones")[0])

    def next_segment_number(self) -> int:
        row = self._one("SELECT seq FROM sqlite_sequence WHERE name = 'segments'")
        return _integer(row[0]) + 1 if row else 1

    def name_segment(self, mode: Mode, file: str, stamp: Stamp, rows: int) -> None:
        if self._format() != _FORMAT:
            self._renew()
        insert = "INSERT INTO segments (mode, file, length, checksum, rows, dead) VALUES (?, ?, ?, ?, ?, 0)"
        self._do(insert, mode, file, stamp.length, stamp.checksum, rows)

    def drop_segments(self, numbers: Iterable[int]) -> None:
        self._connection.executemany("DELETE FROM segments WHERE number = ?", ((number,) for number in numbers))

    def count_dead(self, dead: Mapping[int, int]) -> None:
        rows = ((count, number) for number, count in dead.items())
        self._connection.executemany("UPDATE segments SET dead = dead + ? WHERE number = ?", rows)

    def move_on(self, generation: int, next_slot: int) -> None:
        self._do("UPDATE state SET generation = ?, next_slot = ?", generation, next_slot)

    def check_integrity(self) -> None:
        (said,) = self._found("PRAGMA integrity_check(1)")
        if said != "ok":
            raise broken(f"SQLite says: {said}")

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._connection.execute(query, values).fetchall()

    def _one(self, query: str, *values: Any) -> Any:
        return self._connection.execute(query, values).fetchone()

    def _found(self, query: str, *values: Any) -> Any:
        row = self._one(query, *values)
        if row is None:
            raise broken(f"a row that must be there is not ({query})")
        return row

    def _do(self, statement: str, *values: Any) -> None:
        self._connection.execute(statement, values)


class Catalogue:
    """The database of one folder, and its connections: each is used by one thread at a time."""

    def __init__(self, folder: Path, patience: float) -> None:
        self._folder = folder
        self._patience = patience
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._process = os.getpid()
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        with self._connection(self._patience) as connection, self._transaction(connection, "BEGIN") as transaction:
            yield transaction

    @contextmanager
    def writing(self, patience: float | None = None) -> Iterator[Transaction]:
        """The only writer, from all processes; waits for the one before. Commits where nothing was raised."""
        waiting = self._patience if patience is None else patience
        with self._connection(waiting) as connection, self._transaction(connection, "BEGIN IMMEDIATE") as transaction:
            yield transaction

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection, begin: str) -> Iterator[Transaction]:
        connection.execute(begin)
        try:
            yield Transaction(connection)
        except BaseException:
            connection.rollback()
            raise
        try:
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise

    @contextmanager
    def _connection(self, patience: float) -> Iterator[sqlite3.Connection]:
        with self._told():
            connection = self._take()
            try:
                if patience == self._patience:  # which it was made with: to say so takes as long as a small query
                    yield connection
                    return
                connection.execute(f"PRAGMA busy_timeout = {round(patience * 1000)}")
                try:
                    yield connection
                finally:
                    connection.execute(f"PRAGMA busy_timeout = {round(self._patience * 1000)}")
            finally:
                self._give_back(connection)

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise IndexFolderError(f"the index in {self._folder} is closed; open it again with LocalIndex.open()")
            if self._process != os.getpid():  # SQLite's connections must not be used after a fork, nor be closed
                _INHERITED.extend(self._idle)
                self._idle, self._process = [], os.getpid()
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._folder / FILE_NAME, timeout=self._patience, isolation_level=None, check_same_thread=False
        )
        try:
            with self._transaction(connection, "BEGIN") as transaction:
                transaction.is_new()  # before anything is set in a database that may be another program's
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "trusted_schema = OFF"):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Says SQLite's errors in our words."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._operational(error) from error
        except (sqlite3.Error, UnicodeDecodeError) as error:  # a damaged name can make SQLite's message no text
            raise broken(f"SQLite says: {error}", self._folder) from error

    def _operational(self, error: sqlite3.OperationalError) -> IndexFolderError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Busy(
                f"another process has been writing to {self._folder} for longer than {self._patience:g} s; wait for "
                "it to end, or give it longer with LocalIndex.open(..., patience=...)"
            )
        if code in (0, sqlite3.SQLITE_ERROR):  # 0: a text that is no UTF-8
            return broken(f"SQLite says: {error}", self._folder)
        return IndexFolderError(f"{self._folder / FILE_NAME} cannot be read or written: {error}")


class Busy(IndexFolderError):
    """Another writer did not finish in time."""


def broken(what: str, folder: Path | None = None) -> DamagedFolder:
    return DamagedFolder(
        f"{FILE_NAME}{f' in {folder}' if folder else ''} is damaged: {what}; put back a copy of the whole folder, or "
        "add the passages to a new one"
    )


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(said: Any) -> str:
    try:
        return str(bytes.decode(said, "utf-8", "surrogatepass"))
    except (TypeError, UnicodeDecodeError) as error:
        raise broken(f"{said!r} is no text") from error


def _metadata(said: Any) -> dict[str, Any]:
    try:
        metadata = from_json(said)
    except (AttributeError, ValueError, RecursionError) as error:
        raise broken(f"metadata that is no JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise broken(f"metadata that is no mapping: {metadata!r}")
    return metadata


def _all_metadata(said: Sequence[Any]) -> list[dict[str, Any]]:
    """The same as `_metadata` of each, in one parse, which takes half the time."""
    try:
        found = from_json(b"[" + b",".join(said) + b"]")
    except (TypeError, ValueError, RecursionError):
        found = []
    whole = len(found) == len(said) and all(isinstance(each, dict) for each in found)
    return found if whole else [_metadata(each) for each in said]


def _passage(row: Any) -> Passage:
    id, text, metadata = row
    try:
        return Passage(_text(id), _text(text), _metadata(metadata))
    except ValueError as error:
        raise broken(str(error)) from error


def _kept(mode: Any, width: Any, precision: Any, centre: Any = None) -> Kept:
    if mode not in MODES or precision not in PRECISIONS or (mode != "multi_vector" and precision != "float32"):
        raise _newer(f"{mode} vectors kept as {precision}")
    if _integer(width) < 0:
        raise broken(f"{mode} vectors of width {width}")
    return Kept(width, None if precision == "float32" else coding_of(precision, _centre(centre, width)))


def _centre(said: Any, width: int) -> Array:
    if not isinstance(said, bytes) or len(said) != 4 * width:
        raise broken(f"vectors of width {width} around a centre of another")
    centre = np.frombuffer(said, "<f4")
    if not np.isfinite(centre).all():
        raise broken("vectors around a centre that is none")
    return centre


def _segment_row(row: Any) -> SegmentRow:
    number, mode, file, length, stamp, rows, dead = row
    if not (isinstance(file, str) and SEGMENT_NAME.fullmatch(file) and file.startswith(f"{mode}-")):
        raise broken(f"a segment named {file!r}")
    if not 0 < number < _MOST_SEGMENTS:
        raise broken(f"a segment numbered {number}")
    return SegmentRow(number, mode, file, _integer(length), str(stamp), _integer(rows), _integer(dead))


def _integer(value: Any) -> int:
    if not isinstance(value, int):
        raise broken(f"{value!r} where a whole number belongs")
    return value


def _newer(what: str) -> IndexFolderError:
    return IndexFolderError(f"the folder has {what}, which this version cannot read; install a newer m3-integrations")

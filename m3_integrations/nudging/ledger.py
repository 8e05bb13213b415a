"""The ledger of a nudged index: judged queries, the vectors as they were, and every version; one SQLite file beside it.

What was moved can be put back to the bit, because its original is written here before the index is touched.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, MultiVectors
from m3_integrations.core.errors import DamagedFolder, WrongEncoder
from m3_integrations.core.texts import Query
from m3_integrations.nudging.judged import Ints

FILE_NAME = "nudges.sqlite"
SCHEMA = 1
Role = Literal["train", "validation"]

_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS queries (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL, role TEXT NOT NULL, text TEXT NOT NULL, relevant TEXT NOT NULL,
  since INTEGER NOT NULL, until INTEGER, dense BLOB, tokens BLOB, weights BLOB, vectors BLOB
);
CREATE TABLE IF NOT EXISTS originals (
  passage TEXT NOT NULL, mode TEXT NOT NULL, content TEXT NOT NULL, places BLOB NOT NULL, vectors BLOB NOT NULL,
  PRIMARY KEY (passage, mode)
);
CREATE TABLE IF NOT EXISTS versions (
  number INTEGER PRIMARY KEY, made TEXT NOT NULL, asked TEXT NOT NULL, moves TEXT NOT NULL, figures TEXT NOT NULL
);
"""


class Asked(NamedTuple):
    """The options of a fit, which a later `refit` goes by."""

    modes: tuple[Mode, ...]
    metric: str
    method: Literal["auto", "n", "m"]
    spread: Literal["auto", "neighbours"] | None


class Version(NamedTuple):
    """One fit. moves: by mode, how it moved: {"method", "gamma", "spread", "centre"}; weights: that go with it.

    before, after: the metric on validation; moved: how many passages moved in any mode.
    """

    number: int
    made: str
    asked: Asked
    moves: Mapping[Mode, Mapping[str, Any]]
    weights: Mapping[Mode, float]
    before: float
    after: float
    moved: int


class Original(NamedTuple):
    """Vectors of one passage in one mode as they were encoded.

    content: the hash of the passage's text. dense, sparse: the whole row; multi_vector: those at `places` alone.
    """

    content: str
    places: Ints
    vectors: bytes


class Pending(NamedTuple):
    """A change that was begun: the version that it leads to (0: nothing moved), and what it touches.

    digest: of the vectors of these passages before; fresh: whether the version's questions replace all earlier ones.
    """

    version: int
    passages: Mapping[Mode, Sequence[str]]
    digest: str
    fresh: bool


class Ledger:
    """Opened beside an index, or in memory. Every method is one transaction."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self.path = path
        self._connection = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        try:
            self._connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _TABLES)
            self._check(fingerprint)
        except sqlite3.DatabaseError as broken:
            self.close()
            raise DamagedFolder(
                f"{path} cannot be read: {broken}; move it away, and the index stays as it is, nudged or not"
            ) from broken

    def _check(self, fingerprint: str) -> None:
        schema = int(self._about("schema") or SCHEMA)
        if schema != SCHEMA:
            raise DamagedFolder(f"{self.path} is of version {schema}, this package reads {SCHEMA}; update the package")
        known = self._about("fingerprint")
        if known is not None and known != fingerprint:
            raise WrongEncoder(
                f"{self.path} holds queries of the encoder {known[:12]}…, this one is {fingerprint[:12]}…; "
                "open it with the encoder that filled the index"
            )
        with self.transaction():
            self._set_about(schema=str(SCHEMA), fingerprint=fingerprint)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that happens inside happens, or none of it."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _about(self, name: str) -> str | None:
        found = self._connection.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def _set_about(self, **values: str | None) -> None:
        for name, value in values.items():
            if value is None:
                self._connection.execute("DELETE FROM about WHERE name = ?", (name,))
            else:
                self._connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))

    @property
    def current(self) -> int:
        """The version whose vectors the index holds; 0 where nothing is moved."""
        return int(self._about("current") or 0)

    @property
    def pending(self) -> Pending | None:
        """The change that was begun and not said to have ended."""
        said = self._about("pending")
        return None if said is None else Pending(*json.loads(said))

    def begin(self, pending: Pending, originals: Mapping[Mode, Mapping[str, Original]]) -> None:
        """Write down the originals of what is about to move for the first time, and what is about to happen."""
        with self.transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO originals VALUES (?, ?, ?, ?, ?)",
                (
                    (id, mode, each.content, each.places.astype(np.int32).tobytes(), each.vectors)
                    for mode, of_mode in originals.items()
                    for id, each in of_mode.items()
                ),
            )
            self._set_about(pending=json.dumps(pending))

    def end(self, version: int | None) -> None:
        """What was begun has happened, and the index holds this version; None: it has not happened."""
        with self.transaction():
            self._set_about(pending=None)
            if version is not None:
                self._set_about(current=str(version))
            if version == 0:
                self._connection.execute("DELETE FROM originals")

    def drop(self, pending: Pending) -> None:
        """What was begun has not happened: forget the version that it made, and its questions."""
        with self.transaction():
            self._set_about(pending=None)
            made = self._connection.execute("SELECT MAX(number) FROM versions").fetchone()[0]
            if pending.version and pending.version == made and pending.version != self.current:
                self._connection.execute("DELETE FROM versions WHERE number = ?", (made,))
                if pending.fresh:
                    self._connection.execute("DELETE FROM queries WHERE since = ?", (made,))
                    self._connection.execute("UPDATE queries SET until = NULL WHERE until = ?", (made,))

    def originals(self, mode: Mode) -> dict[str, Original]:
        """By passage id."""
        rows = self._connection.execute(
            "SELECT passage, content, places, vectors FROM originals WHERE mode = ?", (mode,)
        )
        return {
            id: Original(content, np.frombuffer(places, np.int32).astype(np.int64), vectors)
            for id, content, places, vectors in rows
        }

    def keep_version(self, version: Version) -> None:
        """Remember a fit; its number is the next one. Queries that were added or removed since the last one count."""
        figures = {"weights": version.weights, "before": version.before, "after": version.after, "moved": version.moved}
        with self.transaction():
            self._connection.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?)",
                (
                    version.number,
                    version.made,
                    json.dumps(version.asked),
                    json.dumps(version.moves),
                    json.dumps(figures),
                ),
            )

    def versions(self) -> list[Version]:
        """Every fit, oldest first."""
        rows = self._connection.execute("SELECT number, made, asked, moves, figures FROM versions ORDER BY number")
        return [_version(*row) for row in rows]

    @property
    def next_version(self) -> int:
        (last,) = self._connection.execute("SELECT COALESCE(MAX(number), 0) FROM versions").fetchone()
        return int(last) + 1

    def replace_queries(self, role: Role, queries: Sequence[Query], encoded: Encoded) -> None:
        """From the next version on the queries of this role are these."""
        with self.transaction():
            self._retire("role = ?", [(role,)])
            self._insert(role, queries, encoded)

    def add_queries(self, role: Role, queries: Sequence[Query], encoded: Encoded) -> None:
        """From the next version on these count too; one whose id is known is replaced."""
        with self.transaction():
            self._retire("id = ?", [(query.id,) for query in queries])
            self._insert(role, queries, encoded)

    def remove_queries(self, ids: Collection[str]) -> int:
        """From the next version on these do not count. Returns how many there were."""
        with self.transaction():
            return self._retire("id = ?", [(id,) for id in ids])

    def _retire(self, which: str, values: Iterable[tuple[str]]) -> int:
        number, count = self.next_version, 0
        for value in values:
            self._connection.execute(
                f"DELETE FROM queries WHERE {which} AND until IS NULL AND since = ?", (*value, number)
            )
            done = self._connection.execute(
                f"UPDATE queries SET until = ? WHERE {which} AND until IS NULL", (number, *value)
            )
            count += done.rowcount
        return count

    def _insert(self, role: Role, queries: Sequence[Query], encoded: Encoded) -> None:
        since = self.next_version
        self._connection.executemany(
            "INSERT INTO queries (id, role, text, relevant, since, dense, tokens, weights, vectors) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (query.id, role, query.text, json.dumps(dict(query.relevant)), since, *_blobs(encoded, i))
                for i, query in enumerate(queries)
            ),
        )

    def queries(self, role: Role, version: int | None = None) -> list[Query]:
        """The queries of a role that count in a version; None: in the next one."""
        rows = self._connection.execute(
            "SELECT id, text, relevant FROM queries WHERE role = ? AND since <= ? AND (until IS NULL OR until > ?) "
            "ORDER BY number",
            (role, *self._at(version)),
        )
        return [Query(id, text, json.loads(relevant)) for id, text, relevant in rows]

    def encoded(self, role: Role, modes: Collection[Mode], shape: Shape, version: int | None = None) -> Encoded:
        """The vectors of `queries(role, version)` in these modes."""
        rows = self._connection.execute(
            "SELECT dense, tokens, weights, vectors FROM queries WHERE role = ? AND since <= ? "
            "AND (until IS NULL OR until > ?) ORDER BY number",
            (role, *self._at(version)),
        ).fetchall()
        return _unblobbed(rows, [mode for mode in MODES if mode in modes], shape)

    def _at(self, version: int | None) -> tuple[int, int]:
        number = self.next_version if version is None else version
        return number, number

    def close(self) -> None:
        self._connection.close()


class Shape(NamedTuple):
    """The widths of an encoder's vectors."""

    dim: int
    vocab: int
    width: int


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(number: int, made: str, asked: str, moves: str, figures: str) -> Version:
    modes, metric, method, spread = json.loads(asked)
    return Version(number, made, Asked(tuple(modes), metric, method, spread), json.loads(moves), **json.loads(figures))


def _blobs(encoded: Encoded, i: int) -> tuple[bytes | None, bytes | None, bytes | None, bytes | None]:
    dense = encoded.dense[i].tobytes() if "dense" in encoded.modes else None
    vectors = encoded.multi_vector[i].tobytes() if "multi_vector" in encoded.modes else None
    if "sparse" not in encoded.modes:
        return dense, None, None, vectors
    row = slice(encoded.sparse.indptr[i], encoded.sparse.indptr[i + 1])
    return dense, encoded.sparse.indices[row].astype(np.int32).tobytes(), encoded.sparse.data[row].tobytes(), vectors


def _unblobbed(rows: Sequence[Sequence[bytes]], modes: Sequence[Mode], shape: Shape) -> Encoded:
    parts: dict[str, Any] = {}
    if "dense" in modes:
        parts["dense"] = _floats(row[0] for row in rows).reshape(-1, shape.dim)
    if "sparse" in modes:
        tokens = np.frombuffer(b"".join(row[1] for row in rows), np.int32)
        offsets = np.cumsum([0, *(len(row[1]) // 4 for row in rows)])
        weights = _floats(row[2] for row in rows)
        parts["sparse"] = scipy.sparse.csr_array((weights, tokens, offsets), shape=(len(rows), shape.vocab))
    if "multi_vector" in modes:
        offsets = np.cumsum([0, *(len(row[3]) // 4 // shape.width for row in rows)])
        parts["multi_vector"] = MultiVectors(_floats(row[3] for row in rows).reshape(-1, shape.width), offsets)
    return Encoded(**parts)


def _floats(blobs: Iterable[bytes]) -> Array:
    return np.frombuffer(b"".join(blobs), np.float32)

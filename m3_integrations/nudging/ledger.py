"""SQLite ledger of a nudged index: judged queries, original vectors, versions, and a write-ahead record.

Original vectors are recorded before the index is written, so every nudge can be reverted bit for bit.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from m3_integrations.core.encoded import MODES, Encoded, Mode, Modes, SparseScore
from m3_integrations.core.errors import DamagedFolder, IndexFolderError, M3Error, WrongEncoder
from m3_integrations.core.forking import ProcessBound
from m3_integrations.core.sqlite.connection import connect, is_read_only, read_only_error, translate_errors
from m3_integrations.core.sqlite.rewriting import rewrite
from m3_integrations.core.sqlite.row_checks import find_row_fault, prepare
from m3_integrations.core.types import Query, SearchPlan
from m3_integrations.index.local.ledger_file import (
    CHECKED_TABLES,
    CREATE_FEEDBACK,
    CREATE_LEDGER,
    LEDGER_APPLICATION,
    LEDGER_NAME,
    LEDGER_TABLES,
    REQUIRED_TABLES,
    damaged_ledger_error,
    has_feedback,
    incomplete_versions,
    maintain_checks,
    remove_passages,
    remove_questions,
)
from m3_integrations.nudging.ledger_vectors import Dimensions, OriginalVector, pack_query, unpack_queries

FILE_NAME = LEDGER_NAME
SCHEMA = 1
Role = Literal["train", "validation"]
_ON_DISK = {"nudge-n": "n", "nudge-m": "m", "neighbors": "neighbours"}  # spelling in the file, as in format 1
_IN_MEMORY = {stored: name for name, stored in _ON_DISK.items()}
T = TypeVar("T")


class FitOptions(NamedTuple):
    """Options of a fit, which a later `refit` reuses."""

    modes: tuple[Mode, ...]
    metric: str
    method: Literal["auto", "nudge-n", "nudge-m"]
    propagate: Literal["auto", "neighbors"] | None


class Version(NamedTuple):
    """One fit.

    Attributes:
        number: Number of the version, from 1.
        made: Time of the fit, ISO 8601 in UTC.
        options: Options of the fit.
        moves: By mode, "method", "gamma", "spread" and "centre" as they are stored.
        weights: Mode weights chosen with the nudge.
        before: Metric on the validation questions before the nudge.
        after: The same after the nudge.
        moved: Passages that moved in any mode.
        sparse_score: Sparse score that the weights are for.
        plan: Plan that was given to fit and evaluate with, as `SearchPlan.to_json` returns it.
    """

    number: int
    made: str
    options: FitOptions
    moves: Mapping[Mode, Mapping[str, Any]]
    weights: Mapping[Mode, float]
    before: float
    after: float
    moved: int
    sparse_score: SparseScore = "sum"  # that of versions from before it was recorded
    plan: Mapping[str, Any] | None = None


class PendingWrite(NamedTuple):
    """A write to the index that has begun.

    Attributes:
        version: Version that the index will hold; 0 for the original vectors.
        passages: Ids of the passages whose vectors change, by mode.
        digest: Digest of these vectors before the write.
        fresh: Whether the questions of the version replace all earlier ones.
        plan: Search plan that the index will hold, as `SearchPlan.to_json` gives it; None from before it was stored.
    """

    version: int
    passages: Mapping[Mode, Sequence[str]]
    digest: str
    fresh: bool
    plan: Mapping[str, Any] | None = None


class Judgement(NamedTuple):
    """Whether a passage was useful for a query.

    Attributes:
        query: Text of the query; None if it was not recorded.
        passage: Id of the passage.
        is_useful: The judgement.
        time: ISO 8601 in UTC.
    """

    query: str | None
    passage: str
    is_useful: bool
    time: str


class TunedPlan(NamedTuple):
    """A search plan that was tuned, and the one before; None if there was none."""

    previous: SearchPlan | None
    plan: SearchPlan


class Ledger:
    """SQLite ledger of an index, in a file or in memory; every method is one transaction.

    Args:
        path: Its file; None for a ledger in memory, as is that of a folder that may only be read and has none.
        fingerprint: Fingerprint of the encoder of the queries.
        timeout: Seconds that a write waits for another process.

    Raises:
        WrongEncoder: If the ledger was written with another encoder.
        WriterBusy: If another process writes for longer than `timeout`.
        DamagedFolder: If the ledger cannot be read.
    """

    def __init__(self, path: Path | None, fingerprint: str, timeout: float = 60.0) -> None:
        self.path = None if path is None else path.absolute()
        self._timeout = timeout
        self._process = ProcessBound("a Nudger")
        self._is_closed = False
        self._lock = threading.RLock()  # of transactions, since threads share a ledger in memory
        self._verified: dict[tuple[str, bool], int] = {}  # tables, and SQLite's version of the data at that time
        with self._guarded():
            is_missing = self.path is None or (is_read_only(self.path) and not self.path.exists())
            self._database = connect(None if is_missing else self.path, timeout)
            try:
                prepare(self._database)
                self._prepare()
                self._check(fingerprint)
            except BaseException:
                self._database.close()
                raise

    def _prepare(self) -> None:
        """Create the tables of a new ledger, and refuse what is none."""
        (application,) = self._one("PRAGMA application_id")
        (objects,) = self._one("SELECT count(*) FROM sqlite_master")
        if not objects and application == 0:
            self._database.execute("PRAGMA journal_mode = WAL")
            with self.transaction():
                if not self._one("SELECT count(*) FROM sqlite_master")[0]:  # another process may have been faster
                    for statement in CREATE_LEDGER.split(";\n"):
                        self._write(statement)
                    with self._guarded():
                        maintain_checks(self._database)
        elif application not in (0, LEDGER_APPLICATION) or (not application and not self._has_tables()):
            raise IndexFolderError(
                f"{self.path} was written by another program; pass another file, Nudger(..., ledger=...)"
            )
        fault = LEDGER_TABLES.find_fault(self._database)
        if fault or not self._has_tables():
            raise self._damaged(fault or "a table is missing")
        if not self._database.is_read_only:
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA temp_store = MEMORY")  # of the triggers

    def _has_tables(self) -> bool:
        names = {name for (name,) in self._read("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return names >= REQUIRED_TABLES

    def _verify(self, *tables: str, with_body: bool = False) -> None:
        """Compare rows with their checksums, again if another connection has written; raise DamagedFolder."""
        (version,) = self._one("PRAGMA data_version")
        for table in tables:
            if self._verified.get((table, with_body)) != version:
                with self._guarded(), self._database.limited():
                    fault = find_row_fault(self._database, CHECKED_TABLES[table], with_body=with_body)
                if fault:
                    raise self._damaged(fault)
                self._verified[table, with_body] = version

    def _check(self, fingerprint: str) -> None:
        schema = self._parse(int, self._about("schema") or SCHEMA)
        if schema != SCHEMA:
            raise DamagedFolder(f"{self.path} has format {schema} and this package reads {SCHEMA}; update the package")
        known = self._about("fingerprint")
        if known is not None and known != fingerprint:
            raise WrongEncoder(
                f"{self.path} holds queries of encoder {known[:12]}…, and this one is {fingerprint[:12]}…; "
                "open it with the encoder that filled the index"
            )
        if known is None and not self._database.is_read_only:
            with self.transaction():
                self._set_about(schema=str(SCHEMA), fingerprint=fingerprint)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        self._process.check()
        if self._is_closed:
            raise IndexFolderError(f"the ledger {self.path} is closed; make another Nudger")
        with translate_errors(self.path or Path(":memory:"), self._timeout, self._damaged):
            yield

    def _damaged(self, problem: str) -> DamagedFolder:
        return damaged_ledger_error(self.path, problem)

    def _parse(self, parse: Callable[..., T], *stored: Any) -> T:
        """Return what stored values mean, or raise DamagedFolder."""
        try:
            return parse(*stored)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, M3Error) as error:
            raise self._damaged(f"a stored value cannot be read ({error})") from error

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._guarded(), self._database.limited():
            return self._database.execute(query, values).fetchall()

    def _one(self, query: str, *values: Any) -> Any:
        rows = self._read(query, *values)
        return rows[0] if rows else None

    def _write(self, statement: str, *values: Any) -> int:
        with self._guarded():
            return self._database.execute(statement, values).rowcount

    def _write_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._guarded():
            self._database.executemany(statement, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one transaction, joining one that is open."""
        self._process.check()
        with self._lock:
            if self._database.in_transaction:
                yield
                return
            if self.path is not None and self._database.is_read_only:
                raise read_only_error(self.path)
            self._write("BEGIN IMMEDIATE")
            try:
                with self._guarded():
                    maintain_checks(self._database)
                yield
                self._write("COMMIT")
            except BaseException:
                self._database.rollback()
                raise

    def _about(self, name: str) -> str | None:
        self._verify("about")
        found = self._one("SELECT value FROM about WHERE name = ?", name)
        return None if found is None else self._parse(_text, found[0])

    def _set_about(self, **values: str | None) -> None:
        for name, value in values.items():
            if value is None:
                self._write("DELETE FROM about WHERE name = ?", name)
            else:
                self._write("INSERT OR REPLACE INTO about VALUES (?, ?)", name, value)

    @property
    def current(self) -> int:
        """Version whose vectors the index holds; 0 for the original vectors."""
        current = self._parse(int, self._about("current") or 0)
        self._verify("versions")
        if current and self._one("SELECT 1 FROM versions WHERE number = ?", current) is None:
            raise self._damaged(f"it has no version {current}")
        return current

    @property
    def first_plan(self) -> SearchPlan | None:
        """Search plan of the index before the first nudge; None if it had none."""
        return self._parse(_plan, self._about("first_plan") or "null")

    @first_plan.setter
    def first_plan(self, plan: SearchPlan | None) -> None:
        self._set_about(first_plan=json.dumps(None if plan is None else plan.to_json()))

    @property
    def stores_plans(self) -> bool:
        """Whether the index holds the plans of its nudges, as it does since they are stored with the vectors."""
        return self._about("first_plan") is not None

    @property
    def tuned_plan(self) -> TunedPlan | None:
        """The search plan chosen by `tune` and the one before; None if the plan is not tuned."""
        stored = self._about("tuned_plan")
        return None if stored is None else self._parse(_tuned_plan, stored)

    @tuned_plan.setter
    def tuned_plan(self, tuned: TunedPlan | None) -> None:
        plans = None if tuned is None else [None if plan is None else plan.to_json() for plan in tuned]
        with self.transaction():
            self._set_about(tuned_plan=None if plans is None else json.dumps(plans))

    @property
    def pending(self) -> PendingWrite | None:
        """The write that has begun and not ended."""
        pending = self._about("pending")
        return None if pending is None else self._parse(_pending, pending)

    def begin(self, pending: PendingWrite, originals: Mapping[Mode, Mapping[str, OriginalVector]]) -> None:
        """Record a write before it happens, with the original vectors of passages that move."""
        with self.transaction():
            self._write_many(
                "INSERT OR REPLACE INTO originals VALUES (?, ?, ?, ?, ?)",
                (
                    (id, mode, each.content, each.places.astype(np.int32).tobytes(), each.vectors)
                    for mode, of_mode in originals.items()
                    for id, each in of_mode.items()
                ),
            )
            self._set_about(pending=json.dumps(pending))

    def end(self, version: int | None) -> None:
        """Record that the pending write has happened and the index holds this version."""
        with self.transaction():
            self._set_about(pending=None)
            if version is not None:
                self._set_about(current=str(version))
            if version == 0:
                self._write("DELETE FROM originals")

    def drop(self, pending: PendingWrite) -> None:
        """Forget the pending write, which has not happened, with its version and questions."""
        with self.transaction():
            self._verify("queries")
            self._set_about(pending=None)
            made = self.next_version - 1
            if pending.version and pending.version == made and pending.version != self.current:
                self._write("DELETE FROM versions WHERE number = ?", made)
                if pending.fresh:
                    self._write("DELETE FROM queries WHERE since = ?", made)
                    self._write("UPDATE queries SET until = NULL WHERE until = ?", made)

    def originals(self, mode: Mode, width: int) -> dict[str, OriginalVector]:
        """Return original vectors of `width` dimensions or columns by passage id."""
        self._verify("originals")
        rows = self._read("SELECT passage, content, places, vectors FROM originals WHERE mode = ?", mode)
        return {self._parse(_text, id): self._parse(_original, mode, width, *stored) for id, *stored in rows}

    def record_version(self, version: Version) -> None:
        """Record a fit; its number is the next one."""
        figures = {name: getattr(version, name) for name in Version._fields[4:]}
        with self.transaction():
            self._write(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?)",
                version.number,
                version.made,
                json.dumps([version.options.modes, version.options.metric, *map(to_stored, version.options[2:])]),
                json.dumps(version.moves),
                json.dumps(figures),
            )

    def versions(self) -> list[Version]:
        """Return every fit, oldest first."""
        self._verify("versions")
        rows = self._read("SELECT number, made, asked, moves, figures FROM versions ORDER BY number")
        return [self._parse(_version, *row) for row in rows]

    @property
    def next_version(self) -> int:
        self._verify("versions")
        (last,) = self._one("SELECT COALESCE(MAX(number), 0) FROM versions")
        return self._parse(_whole, last) + 1

    def replace_queries(self, role: Role, queries: Sequence[Query], encoded: Encoded) -> None:
        """Replace the queries of a role from the next version on."""
        with self.transaction():
            self._end_validity("role = ?", [(role,)])
            self._insert(role, queries, encoded)

    def add_queries(self, role: Role, queries: Sequence[Query], encoded: Encoded) -> None:
        """Add queries from the next version on; a known id is replaced."""
        with self.transaction():
            self._end_validity("id = ?", [(query.id,) for query in queries])
            self._insert(role, queries, encoded)

    def remove_queries(self, ids: Collection[str]) -> int:
        """Remove queries from the next version on; return how many there were."""
        with self.transaction():
            return self._end_validity("id = ?", [(id,) for id in ids])

    def _end_validity(self, which: str, values: Iterable[tuple[str]]) -> int:
        self._verify("queries")  # a row gets a new checksum
        number, count = self.next_version, 0
        for value in values:
            self._write(f"DELETE FROM queries WHERE {which} AND until IS NULL AND since = ?", *value, number)
            count += self._write(f"UPDATE queries SET until = ? WHERE {which} AND until IS NULL", number, *value)
        return count

    def _insert(self, role: Role, queries: Sequence[Query], encoded: Encoded) -> None:
        since, added, encoded = self.next_version, now(), encoded.with_sparse_score("sum")
        self._write_many(
            "INSERT INTO queries (id, role, text, relevant, since, added, dense, tokens, weights, vectors) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (query.id, role, query.text, json.dumps(dict(query.relevant)), since, added, *pack_query(encoded, i))
                for i, query in enumerate(queries)
            ),
        )

    def add_judgements(self, judgements: Iterable[Judgement]) -> None:
        """Record judgements; they are on disk when the call returns."""
        with self.transaction():
            self._write(CREATE_FEEDBACK)
            with self._guarded():
                maintain_checks(self._database)
            self._write_many(
                "INSERT INTO feedback (query, passage, useful, time) VALUES (?, ?, ?, ?)",
                ((query, passage, int(is_useful), time) for query, passage, is_useful, time in judgements),
            )

    def judgements(self) -> list[Judgement]:
        """Return every judgement, oldest first."""
        with self._guarded():
            exists = has_feedback(self._database)
        self._verify("feedback")
        rows = self._read("SELECT query, passage, useful, time FROM feedback ORDER BY number") if exists else []
        return [self._parse(_judgement, *row) for row in rows]

    def forget_before(self, moment: str) -> int:
        """Delete questions and judgements recorded before a time, in every version and from every page of the file.

        Args:
            moment: ISO 8601 in UTC, as `now` returns it.

        Returns:
            The number of questions and judgements.
        """
        with self.transaction():
            self._verify("versions", "feedback")
            self._verify("queries", with_body=True)
            rows = self._read(
                "SELECT number FROM queries WHERE "
                "COALESCE(added, (SELECT made FROM versions WHERE versions.number = since), '') < ?",
                moment,
            )
            count = self._parse(remove_questions, self._database, [number for (number,) in rows])
            if has_feedback(self._database):
                count += self._write("DELETE FROM feedback WHERE time < ?", moment)
        self._rewrite()
        return count

    def forget_passages(self, ids: Collection[str]) -> None:
        """Delete the original vectors of passages and the questions that they answer, from every page of the file."""
        with self.transaction():
            self._parse(remove_passages, self._database, ids)
        self._rewrite()

    def _rewrite(self) -> None:
        with self._guarded():
            rewrite(self._database, self.path or Path(":memory:"))

    def is_complete(self, version: int) -> bool:
        """Return whether all questions of a version are still there."""
        with self._guarded():
            return version not in self._parse(incomplete_versions, self._database)

    def queries(self, role: Role, version: int | None = None) -> list[Query]:
        """Return the queries of a role in a version; None for the next one."""
        self._verify("queries")
        rows = self._read(
            "SELECT id, text, relevant FROM queries WHERE role = ? AND since <= ? AND (until IS NULL OR until > ?) "
            "ORDER BY number",
            role,
            *self._at(version),
        )
        return [self._parse(_query, *row) for row in rows]

    def encoded(self, role: Role, modes: Modes, dimensions: Dimensions, version: int | None = None) -> Encoded:
        """Return the embeddings of `queries(role, version)` in these modes, with sums of sparse weights."""
        self._verify("queries", with_body=True)
        rows = self._read(
            "SELECT dense, tokens, weights, vectors FROM queries WHERE role = ? AND since <= ? "
            "AND (until IS NULL OR until > ?) ORDER BY number",
            role,
            *self._at(version),
        )
        return self._parse(unpack_queries, rows, [mode for mode in MODES if mode in modes], dimensions)

    def _at(self, version: int | None) -> tuple[int, int]:
        number = self.next_version if version is None else version
        return number, number

    def close(self) -> None:
        if not self._process.is_forked:
            self._is_closed = True
            self._database.close()


def to_stored(name: str | None) -> str | None:
    """Return the spelling of an option in the file."""
    return None if name is None else _ON_DISK.get(name, name)


def from_stored(stored: str | None) -> Any:
    """Return the option that the file spells so."""
    return None if stored is None else _IN_MEMORY.get(stored, stored)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def to_stored_time(moment: datetime) -> str:
    """Return a time, in UTC unless it states a time zone, as `now` does."""
    moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.isoformat(timespec="seconds")


def _text(stored: Any) -> str:
    if not isinstance(stored, str):
        raise TypeError(f"{stored!r:.80} is not a text")
    return stored


def _plan(stored: str) -> SearchPlan | None:
    plan = json.loads(stored)
    return None if plan is None else SearchPlan.from_json(plan)


def _tuned_plan(stored: str) -> TunedPlan:
    previous, plan = json.loads(stored)
    return TunedPlan(None if previous is None else SearchPlan.from_json(previous), SearchPlan.from_json(plan))


def _pending(stored: str) -> PendingWrite:
    pending = PendingWrite(*json.loads(stored))
    passages = {_mode(mode): [_text(id) for id in ids] for mode, ids in pending.passages.items()}
    if pending.plan is not None:
        SearchPlan.from_json(pending.plan)
    return pending._replace(version=_whole(pending.version), passages=passages, digest=_text(pending.digest))


def _judgement(query: Any, passage: Any, useful: Any, time: Any) -> Judgement:
    is_useful = {0: False, 1: True}[useful]
    return Judgement(None if query is None else _text(query), _text(passage), is_useful, _text(time))


def _query(id: Any, text: Any, relevant: Any) -> Query:
    grades = {_text(passage): _finite(grade) for passage, grade in json.loads(_text(relevant)).items()}
    return Query(_text(id), _text(text), grades)


def _version(number: Any, made: Any, options: Any, moves: Any, figures: Any) -> Version:
    modes, metric, method, propagate = json.loads(_text(options))
    options = FitOptions(tuple(map(_mode, modes)), _text(metric), from_stored(method), from_stored(propagate))
    if options.method not in ("auto", "nudge-n", "nudge-m") or options.propagate not in ("auto", "neighbors", None):
        raise ValueError(f"the options {options!r:.80}")
    version = Version(_whole(number), _text(made), options, json.loads(_text(moves)), **json.loads(_text(figures)))
    for mode, move in version.moves.items():
        _check_move(_mode(mode), move)
    weights = {mode: _finite(weight) for mode, weight in version.weights.items()}
    # raises an error for invalid ones
    SearchPlan.from_json({"weights": weights or None, "sparse_score": version.sparse_score, **(version.plan or {})})
    return version._replace(moved=_whole(version.moved), before=float(version.before), after=float(version.after))


def _check_move(mode: Mode, move: Mapping[str, Any]) -> None:
    """Raise ValueError or KeyError for a move that no fit records."""
    if mode == "dense" and from_stored(move["method"]) not in ("nudge-n", "nudge-m"):
        raise ValueError(f"the method {move['method']!r:.80}")
    if move["spread"]:
        temperature, self_weight = map(_finite, move["spread"])
        if temperature <= 0 or not 0 <= self_weight <= 1:
            raise ValueError(f"the spread {move['spread']}")
    if _finite(move["gamma"]) < 0 or _finite(move["centre"]) < 0:
        raise ValueError(f"the step {move['gamma']} around {move['centre']}")


def _mode(stored: Any) -> Mode:
    if stored not in MODES:
        raise ValueError(f"the mode {stored!r:.80}")
    mode: Mode = stored
    return mode


def _whole(stored: Any) -> int:
    if type(stored) is not int or not 0 <= stored < 1 << 31:
        raise ValueError(f"{stored!r:.80} is no whole number")
    return stored


def _finite(stored: Any) -> float:
    if type(stored) not in (int, float) or not abs(stored) < 1e30:
        raise ValueError(f"{stored!r:.80} is no finite number")
    return float(stored)


def _original(mode: Mode, width: int, content: Any, places: Any, vectors: Any) -> OriginalVector:
    positions = np.frombuffer(places, np.int32).astype(np.int64)
    values = np.frombuffer(vectors, np.float32)
    expected = {"dense": width, "sparse": len(positions), "multi_vector": len(positions) * width}[mode]
    if len(values) != expected or not np.isfinite(values).all() or (mode == "sparse" and np.any(values < 0)):
        raise ValueError(f"original {mode} vectors that are none")
    above = width if mode == "sparse" else np.iinfo(np.int32).max
    if len(positions) and (positions[0] < 0 or positions[-1] >= above or np.any(np.diff(positions) <= 0)):
        raise ValueError(f"positions of original {mode} vectors that are none")
    return OriginalVector(_text(content), positions, vectors)

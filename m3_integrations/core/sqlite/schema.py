"""Comparison of a database's schema with that of our own files, since views and triggers are programs."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_TOKEN = re.compile(r"\w+|'[^']*'|\S")
_KEYWORDS = frozenset(
    {
        *("create", "table", "index", "on", "if", "not", "exists", "integer", "text", "blob", "null"),
        *("primary", "key", "unique", "autoincrement", "default"),
    }
)
_OWN_TABLES_OF_SQLITE = re.compile(r"sqlite_(sequence|stat[134])")


class Schema(NamedTuple):
    """Names that a database of ours may have.

    Attributes:
        columns: Columns of each table, in order; an earlier format may lack the last two.
        indexes: Indexes with a name of their own.
        defaults: SQL literals that are defaults of columns.
    """

    columns: Mapping[str, Sequence[str]]
    indexes: Collection[str] = ()
    defaults: Collection[str] = ()

    def find_fault(self, connection: sqlite3.Connection) -> str:
        """Return what the database has beyond this schema, or an empty string."""
        for kind, name, table, sql in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"):
            if not (self._is_table(kind, name, sql) or self._is_index(kind, name, table, sql)):
                return f"it has the {kind} {name!r}, which m3-integrations does not create"
            if kind == "table" and name in self.columns:
                found = [row[1] for row in connection.execute(f"PRAGMA table_xinfo({name})")]
                wanted = list(self.columns[name])
                if found not in (wanted, wanted[:-1], wanted[:-2]):
                    return f"its table {name!r} has the columns {found}"
        return ""

    def _is_table(self, kind: Any, name: Any, sql: Any) -> bool:
        if kind != "table" or not isinstance(name, str):
            return False
        return bool(_OWN_TABLES_OF_SQLITE.fullmatch(name)) or (name in self.columns and self._is_plain(sql))

    def _is_index(self, kind: Any, name: Any, table: Any, sql: Any) -> bool:
        if kind != "index" or not isinstance(name, str) or table not in self.columns:
            return False
        return sql is None if name.startswith("sqlite_autoindex_") else name in self.indexes and self._is_plain(sql)

    def _is_plain(self, sql: Any) -> bool:
        """Return whether a statement has only keywords and names of ours: no expression, no generated column."""
        if not isinstance(sql, str):
            return False
        names = {*self.columns, *self.indexes, *(column for columns in self.columns.values() for column in columns)}
        tokens = {token.lower() for token in _TOKEN.findall(_COMMENT.sub(" ", sql))}
        return tokens <= {*_KEYWORDS, *names, *self.defaults, *"(),"}

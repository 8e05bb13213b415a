"""Dictionary-encoded metadata columns for fast filters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from m3_integrations.index.filters import ABSENT, AllOf, AnyOf, Field, Where, look_up
from m3_integrations.index.records import to_json

Mask = npt.NDArray[np.bool_]
_MAX_CACHED_FILTERS = 64


class MetadataColumns:
    """Columns of the fields used in filters; rows are only appended."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def known_rows(self, fields: Collection[str]) -> int:
        """Return the number of rows with known values of all these fields."""
        return min((self._columns[name].rows if name in self._columns else 0 for name in fields), default=0)

    def fill(self, fields: Collection[str], metadata: Iterable[tuple[int, Mapping[str, Any]]], rows: int) -> None:
        """Add values of fields.

        Args:
            fields: Names of the fields.
            metadata: Rows and their metadata. The fields are missing in new rows that are not among them.
            rows: Number of rows that are known afterwards.
        """
        columns = {name: self._columns.setdefault(name, _Column()) for name in fields}
        for column in columns.values():
            column.grow(rows)
        for row, values in metadata:
            for name, column in columns.items():
                column.set(row, look_up(values, name))

    def matching_rows(self, where: Where, rows: int) -> Mask:
        """Evaluate a filter as `where.matches` does.

        Args:
            where: A filter over known fields.
            rows: Number of rows.

        Returns:
            Which rows match, shape (rows,).
        """
        if isinstance(where, Field):
            return self._columns[where.name].matching_rows(where, rows)
        parts = [self.matching_rows(part, rows) for part in where.parts]
        if isinstance(where, AllOf):
            every: Mask = np.logical_and.reduce([np.ones(rows, bool), *parts])
            return every
        some: Mask = np.logical_or.reduce([np.zeros(rows, bool), *parts])
        return some if isinstance(where, AnyOf) else ~some

    def copy(self) -> MetadataColumns:
        """Return an independent copy."""
        copy = MetadataColumns()
        copy._columns = {name: column.copy() for name, column in self._columns.items()}
        return copy


class _Column:
    """Distinct values of a field, and each row's index into them; index 0 is ABSENT."""

    def __init__(self) -> None:
        self.rows = 0
        self._codes = np.zeros(0, np.int32)
        self._values: list[Any] = [ABSENT]
        self._code_of: dict[Any, int] = {}
        self._filters: dict[str, Mask] = {}

    def grow(self, rows: int) -> None:
        if rows > len(self._codes):
            self._codes = np.concatenate([self._codes, np.zeros(max(rows, 2 * self.rows) - len(self._codes), np.int32)])
        self.rows = max(rows, self.rows)

    def set(self, row: int, value: Any) -> None:
        if value is not ABSENT:
            self._codes[row] = self._encode(value)

    def matching_rows(self, field: Field, rows: int) -> Mask:
        return self._matching_values(field)[self._codes[:rows]]

    def copy(self) -> _Column:
        copy = _Column()
        copy.rows, copy._codes, copy._values = self.rows, self._codes.copy(), list(self._values)
        copy._code_of, copy._filters = dict(self._code_of), dict(self._filters)
        return copy

    def _encode(self, value: Any) -> int:
        # The type is in the key because True, 1 and 1.0 are equal in Python, but not in a filter.
        key = (type(value), to_json(value) if isinstance(value, (list, dict)) else value)
        code = self._code_of.setdefault(key, len(self._values))
        if code == len(self._values):
            self._values.append(value)
        return code

    def _matching_values(self, field: Field) -> Mask:
        """Evaluate a condition on the distinct values; the result is cached and extended."""
        name = repr(field)
        known = self._filters.pop(name, np.zeros(0, bool))
        new = [field.matches_value(value) for value in self._values[len(known) :]]
        matches = np.concatenate([known, np.array(new, bool)]) if new else known
        while len(self._filters) >= _MAX_CACHED_FILTERS:
            self._filters.pop(next(iter(self._filters)))
        self._filters[name] = matches
        return matches

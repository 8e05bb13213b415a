"""Metadata as columns: each field's distinct values once, and for each row which of them it has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from m3_integrations.index.entries import to_json
from m3_integrations.index.where import ABSENT, AllOf, AnyOf, Field, Where, look_up

Mask = npt.NDArray[np.bool_]
_REMEMBERED = 64


class Columns:
    """The columns of the fields that were asked for, each filled up to some row. Rows are only ever appended."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def filled(self, fields: Collection[str]) -> int:
        """How many rows every one of these fields is known for."""
        return min((self._columns[name].rows if name in self._columns else 0 for name in fields), default=0)

    def fill(self, fields: Collection[str], metadata: Iterable[tuple[int, Mapping[str, Any]]], rows: int) -> None:
        """Know these fields for all of `rows` rows; a row that `metadata` passes over has none of them."""
        columns = {name: self._columns.setdefault(name, _Column()) for name in fields}
        for column in columns.values():
            column.grow(rows)
        for row, values in metadata:
            for name, column in columns.items():
                column.put(row, look_up(values, name))

    def passing(self, where: Where, rows: int) -> Mask:
        """(rows,) which rows pass; what `where.matches` says of each row's metadata."""
        if isinstance(where, Field):
            return self._columns[where.name].passing(where, rows)
        parts = [self.passing(part, rows) for part in where.parts]
        if isinstance(where, AllOf):
            every: Mask = np.logical_and.reduce([np.ones(rows, bool), *parts])
            return every
        some: Mask = np.logical_or.reduce([np.zeros(rows, bool), *parts])
        return some if isinstance(where, AnyOf) else ~some

    def copy(self) -> Columns:
        twin = Columns()
        twin._columns = {name: column.copy() for name, column in self._columns.items()}
        return twin


class _Column:
    """codes[row] is the place in `values` of the row's value; place 0 is ABSENT."""

    def __init__(self) -> None:
        self.rows = 0
        self._codes = np.zeros(0, np.int32)
        self._values: list[Any] = [ABSENT]
        self._places: dict[Any, int] = {}
        self._known: dict[str, Mask] = {}

    def grow(self, rows: int) -> None:
        if rows > len(self._codes):
            self._codes = np.concatenate([self._codes, np.zeros(max(rows, 2 * self.rows) - len(self._codes), np.int32)])
        self.rows = max(rows, self.rows)

    def put(self, row: int, value: Any) -> None:
        if value is not ABSENT:
            self._codes[row] = self._place(value)

    def passing(self, field: Field, rows: int) -> Mask:
        return self._passing_values(field)[self._codes[:rows]]

    def copy(self) -> _Column:
        twin = _Column()
        twin.rows, twin._codes, twin._values = self.rows, self._codes.copy(), list(self._values)
        twin._places, twin._known = dict(self._places), dict(self._known)
        return twin

    def _place(self, value: Any) -> int:
        # The type is in the key because True, 1 and 1.0 are equal in Python, and no filter may take them for one.
        key = (type(value), to_json(value) if isinstance(value, (list, dict)) else value)
        place = self._places.setdefault(key, len(self._values))
        if place == len(self._values):
            self._values.append(value)
        return place

    def _passing_values(self, field: Field) -> Mask:
        """Which of the distinct values pass; remembered, and continued where new values came."""
        name = repr(field)
        before = self._known.pop(name, np.zeros(0, bool))
        new = [field.holds(value) for value in self._values[len(before) :]]
        known = np.concatenate([before, np.array(new, bool)]) if new else before
        while len(self._known) >= _REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._known[name] = known
        return known

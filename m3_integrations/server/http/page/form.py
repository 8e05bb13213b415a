"""The form of the page: what the query string of its address says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import urlencode

from m3_integrations.core.encoded import MODES, Mode
from m3_integrations.index.filters import Field, Where, all_of
from m3_integrations.server.http.encoding import INVALID
from m3_integrations.server.http.responses import RefusedRequest

MAX_PERCENT = 200
MAX_CONTROLS = 6
MAX_OPTIONS = 60
_TITLES = {"title", "url", "id"}  # fields that name a passage
_LONGEST_QUERY = 10_000


@dataclass(frozen=True)
class SearchForm:
    """The state of the page.

    Attributes:
        query: Text of the search box.
        index: Name of the index; None for the only one.
        selected: Id of the passage to show in full; None for the first result.
        percents: Weight of each mode in percent of its usual one; modes at their default are left out.
        filters: Filters by name of their control.
    """

    query: str = ""
    index: str | None = None
    selected: str | None = None
    percents: Mapping[Mode, int] | None = None
    filters: Mapping[str, str] | None = None

    @classmethod
    def from_params(cls, params: Iterable[tuple[str, str]]) -> SearchForm:
        """Read the parameters of a query string; unknown ones are ignored.

        Raises:
            RefusedRequest: If the query is too long or a number is none.
        """
        stated = {name: value for name, value in params if value}
        query = stated.get("q", "").strip()
        if len(query) > _LONGEST_QUERY:
            raise RefusedRequest(INVALID, f"the question has over {_LONGEST_QUERY:,} characters; shorten it")
        return cls(
            query,
            stated.get("index"),
            stated.get("id"),
            {mode: round(_number(mode, stated[mode], MAX_PERCENT)) for mode in MODES if mode in stated},
            {name: value for name, value in stated.items() if name.partition(".")[0] in ("f", "min", "max")},
        )

    @property
    def without_filters(self) -> str:
        """The address of the page without its filters."""
        return replace(self, selected=None, filters=None).url()

    def url(self, selected: str | None = None) -> str:
        """Return the address of the page, with a passage shown in full."""
        percents = {str(mode): str(percent) for mode, percent in (self.percents or {}).items()}
        named = {"index": self.index, "id": selected}
        stated = {name: value for name, value in named.items() if value is not None}
        return f"/?{urlencode({'q': self.query, **percents, **(self.filters or {}), **stated}, errors='replace')}"


class FilterOption(NamedTuple):
    """A value of a field to choose, as JSON, and the number of passages with it."""

    value: str
    label: str
    passages: int


@dataclass(frozen=True)
class FilterControl:
    """A control that filters by one field: values to choose from, or the least and the greatest number.

    Attributes:
        field: Name of the metadata field.
        is_list: Whether passages have several values.
        options: Values to choose from; empty for a range.
        low: Least number.
        high: Greatest number.
    """

    field: str
    is_list: bool = False
    options: Sequence[FilterOption] = ()
    low: float | None = None
    high: float | None = None

    @property
    def label(self) -> str:
        return self.field.replace("_", " ").replace(".", " ")

    @property
    def names(self) -> list[str]:
        """Names of the form's parameters."""
        return [f"f.{self.field}"] if self.options else [f"min.{self.field}", f"max.{self.field}"]

    def conditions(self, filters: Mapping[str, str]) -> list[Where]:
        """Return the conditions that a form states for this field.

        Raises:
            RefusedRequest: If a value is none.
        """
        if self.options:
            return [
                Field(self.field, "contains" if self.is_list else "==", _value(name, filters[name]))
                for name in self.names
                if name in filters
            ]
        least, most = (filters.get(name) for name in self.names)
        low: list[Where] = [] if least is None else [Field(self.field, ">=", _number(self.names[0], least))]
        high: list[Where] = [] if most is None else [Field(self.field, "<=", _number(self.names[1], most))]
        return low + high


def filter_controls(fields: Sequence[Mapping[str, Any]], passages: int) -> list[FilterControl]:
    """Choose the controls for the metadata fields of an index.

    Fields that name a passage, and those with too many different texts to choose from, have none.

    Args:
        fields: Fields as `list_fields` returns them, with more than `MAX_OPTIONS` values.
        passages: Number of passages.
    """
    controls = [_control(field, passages) for field in fields if field["name"] not in _TITLES]
    return [control for control in controls if control is not None][:MAX_CONTROLS]


def where_of(form: SearchForm, controls: Sequence[FilterControl]) -> Where | None:
    """Return the filter that a form states; None if it states none."""
    conditions = [each for control in controls for each in control.conditions(form.filters or {})]
    return all_of(*conditions) if conditions else None


def _control(field: Mapping[str, Any], passages: int) -> FilterControl | None:
    values = field["values"]
    if len(values) <= MAX_OPTIONS and not field["has_more"]:
        if len(values) < 2 and field["passages"] >= passages:
            return None  # every passage has the same value
        ordered = sorted(values, key=lambda each: (isinstance(each["value"], str), each["value"]))
        options = [FilterOption(json.dumps(each["value"]), _label(each["value"]), each["passages"]) for each in ordered]
        return FilterControl(field["name"], field["is_list"], options)
    if field["kind"] == "number" and not field["is_list"]:
        return FilterControl(field["name"], low=field["min"], high=field["max"])
    return None


def _label(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _value(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = [None]
    if not isinstance(value, str | int | float):
        raise RefusedRequest(INVALID, f'{name} must be a JSON value such as "de" or 2020, got {text[:80]!r}')
    return value


def _number(name: str, text: str, most: float = float("inf")) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf") or (most < float("inf") and not 0 <= number <= most):
        limits = f" from 0 to {most:g}" if most < float("inf") else ""
        raise RefusedRequest(INVALID, f"{name} must be a number{limits}, got {text[:80]!r}")
    return number

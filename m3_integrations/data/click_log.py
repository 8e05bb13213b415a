"""Judged queries from click logs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from m3_integrations.core.errors import InvalidFile
from m3_integrations.core.types import Query
from m3_integrations.data.splits import normalize_question
from m3_integrations.data.text_files import read_jsonl, read_table

DAY = 86_400.0  # seconds
_REQUIRED = {"query", "passage"}
_LINE = 'a line is {"query": "opening hours", "passage": "doc-7"}'


class Click(NamedTuple):
    """One line of a log; `time` is in seconds since 1970, None if unknown."""

    query: str
    passage: str
    weight: float = 1.0
    time: float | None = None


def read_clicks(path: str | os.PathLike[str]) -> list[Click]:
    """Read a JSONL, CSV or TSV click log with the fields query, passage, and optionally weight and time.

    Args:
        path: File, plain or .gz, in UTF-8, or in UTF-16 with a byte order mark. Columns are separated by commas,
            semicolons or tabs, as the first line shows. Weights are above 0, 1 by default; times are ISO 8601 (UTC
            without a zone) or seconds since 1970.

    Returns:
        The clicks, in the order of the file.

    Raises:
        ValueError: If a line is not a click; the message begins with `path:line`.
    """
    source = Path(path)
    tabular = source.name.removesuffix(".gz").endswith((".csv", ".tsv"))
    lines = read_table(source, _REQUIRED, "query,passage,weight,time") if tabular else read_jsonl(source, _LINE)
    return [_click(location, fields) for location, fields in lines]


def clicks_to_queries(clicks: Iterable[Click], *, half_life: float | None = None) -> list[Query]:
    """Combine clicks into one query per question text, with the sums of click weights as grades.

    Args:
        clicks: Clicks; texts that differ in case, width or spacing are one question.
        half_life: Days after which the weight of a click halves, counted from the newest; clicks without a time keep
            theirs.

    Returns:
        Queries with ids "click-1" and so on, in order of first occurrence.

    Raises:
        ValueError: If half_life is not above 0.
    """
    if half_life is not None and not half_life > 0:
        raise ValueError(f"half_life must be above 0 days, got {half_life}; leave it out to weigh all clicks alike")
    known = list(clicks)
    newest = max((click.time for click in known if click.time is not None), default=0.0)
    texts: dict[str, str] = {}
    relevant: dict[str, dict[str, float]] = {}
    for click in known:
        key = normalize_question(click.query)
        texts.setdefault(key, click.query)
        grades = relevant.setdefault(key, {})
        grades[click.passage] = grades.get(click.passage, 0.0) + click.weight * _freshness(click, newest, half_life)
    return [Query(f"click-{i}", texts[key], relevant[key]) for i, key in enumerate(texts, 1)]


def _freshness(click: Click, newest: float, half_life: float | None) -> float:
    if half_life is None or click.time is None:
        return 1.0
    return float(0.5 ** ((newest - click.time) / DAY / half_life))


def _click(location: str, fields: Mapping[str, Any]) -> Click:
    if not fields.get("query") or not fields.get("passage"):
        raise InvalidFile(f"{location} has no query or passage; {_LINE}")
    weight, time = _weight(location, fields.get("weight", 1)), _time(location, fields.get("time"))
    return Click(str(fields["query"]), str(fields["passage"]), weight, time)


def _weight(location: str, value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InvalidFile(f"{location} has the weight {value!r:.80}; a weight is a number above 0")
    return weight


def _time(location: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = _seconds(value)
    except (ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InvalidFile(f"{location} has the time {value!r:.80}; write 2024-05-31T12:00:00Z or seconds since 1970")
    return seconds


def _seconds(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        moment = datetime.fromisoformat(str(value))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

"""Judged queries from a click log: what people asked, and what they then opened."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from m3_integrations.core.texts import Query
from m3_integrations.nudging.splits import normalised

DAY = 86_400.0  # seconds


class Click(NamedTuple):
    """One line of a log. time: seconds since 1970, None where the log does not say."""

    query: str
    passage: str
    weight: float = 1.0
    time: float | None = None


def read_clicks(path: str | os.PathLike[str]) -> list[Click]:
    """The lines of a JSONL or CSV log (plain or .gz) with the fields query, passage, and if known weight and time.

    weight: above 0, 1 where it is not said; time: ISO 8601, without a zone in UTC, or seconds since 1970.
    Raises ValueError, naming file and line, for a line that is no click.
    """
    source = Path(path)
    reader = _csv_lines if source.name.removesuffix(".gz").endswith(".csv") else _json_lines
    open_text = gzip.open if source.suffix == ".gz" else open
    with open_text(source, "rt", encoding="utf-8") as lines:
        return [_click(f"{source}:{number}", fields) for number, fields in reader(source, lines)]


def queries_of(clicks: Iterable[Click], *, half_life: float | None = None) -> list[Query]:
    """One query for each text that was asked, however it was typed, with the weights of its clicks added up as grades.

    half_life: days after which a click counts half, from the newest click on; one without a time counts in full.
    Ids are "click-1" and on, in the order in which texts come first. Raises ValueError unless half_life is above 0.
    """
    if half_life is not None and not half_life > 0:
        raise ValueError(f"half_life is in days and above 0, got {half_life}; leave it out for clicks that do not age")
    known = list(clicks)
    newest = max((click.time for click in known if click.time is not None), default=0.0)
    texts: dict[str, str] = {}
    relevant: dict[str, dict[str, float]] = {}
    for click in known:
        asked = normalised(click.query)
        texts.setdefault(asked, click.query)
        grades = relevant.setdefault(asked, {})
        grades[click.passage] = grades.get(click.passage, 0.0) + click.weight * _freshness(click, newest, half_life)
    return [Query(f"click-{i}", texts[asked], relevant[asked]) for i, asked in enumerate(texts, 1)]


def _freshness(click: Click, newest: float, half_life: float | None) -> float:
    if half_life is None or click.time is None:
        return 1.0
    return float(0.5 ** ((newest - click.time) / DAY / half_life))


def _json_lines(source: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as broken:
            raise ValueError(f"{source}:{number} is no JSON: {broken}") from broken


def _csv_lines(source: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    rows = csv.DictReader(lines)
    if not {"query", "passage"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{source} begins with {rows.fieldnames}; its first line is: query,passage,weight,time")
    for fields in rows:
        yield rows.line_num, {name: value for name, value in fields.items() if value not in (None, "")}


def _click(at: str, fields: Any) -> Click:
    if not isinstance(fields, dict) or not fields.get("query") or not fields.get("passage"):
        raise ValueError(f'{at} names no query and passage; a line is {{"query": "opening hours", "passage": "doc-7"}}')
    return Click(str(fields["query"]), str(fields["passage"]), _weight(at, fields.get("weight", 1)), _time(at, fields))


def _weight(at: str, said: Any) -> float:
    try:
        weight = float(said)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"{at} has the weight {said!r}; a weight is a number above 0")
    return weight


def _time(at: str, fields: dict[str, Any]) -> float | None:
    said = fields.get("time")
    if said is None:
        return None
    try:
        return float(said)
    except (TypeError, ValueError):
        pass
    try:
        moment = datetime.fromisoformat(str(said))
    except ValueError as wrong:
        raise ValueError(f"{at} has the time {said!r}; write 2024-05-31T12:00:00Z or seconds since 1970") from wrong
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

"""Judged queries from any supported path, split into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m3_integrations.core.errors import InvalidFile
from m3_integrations.core.types import Query
from m3_integrations.data.beir import read_judged, read_qrels
from m3_integrations.data.click_log import clicks_to_queries, read_clicks
from m3_integrations.data.qa_json import load_qa_dataset
from m3_integrations.data.splits import split_by_text

SHARES = (0.7, 0.15, 0.15)  # of training, validation and test, for sources without splits
SPLITS = (("train",), ("dev", "validation", "valid"), ("test",))  # names in folders


class QuerySplits(NamedTuple):
    """Judged queries by their purpose."""

    train: list[Query]
    validation: list[Query]
    test: list[Query]


def load_judged_queries(paths: Sequence[Path], *, seed: int = 0, half_life: float | None = None) -> QuerySplits:
    """Load the judged queries of one source.

    Args:
        paths: A BEIR folder, whose own splits are used; or a file of queries and one of qrels; or a click log (.jsonl,
            .csv or .tsv); or a question-answer dataset (.json). Files may be .gz.
        seed: Seed of the split by text of all but folders, in which no question is in two parts.
        half_life: Half-life of clicks in days.

    Returns:
        The queries by split.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a path is none of these, a line cannot be read, or there are no questions.
    """
    _check_exist(paths)
    if len(paths) == 1 and paths[0].is_dir():
        return _read_folder(paths[0])
    return QuerySplits(*split_by_text(_read_files(paths, half_life), SHARES, np.random.default_rng(seed)))


def load_queries(paths: Sequence[Path], split: str = "test") -> list[Query]:
    """Load all judged queries of one source, without splitting them.

    Args:
        paths: As for `load_judged_queries`.
        split: Split of a BEIR folder; files have none.

    Returns:
        The queries.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a path is none of these, a line cannot be read, or there are no questions.
    """
    _check_exist(paths)
    if len(paths) == 1 and paths[0].is_dir():
        return _not_empty(paths, read_judged(paths[0], split))
    return _read_files(paths, None)


def _check_exist(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}; name a BEIR folder, queries and qrels, or a click log")


def _read_folder(folder: Path) -> QuerySplits:
    splits = {path.name.partition(".")[0] for path in folder.glob("qrels/*.tsv*")}
    if "train" not in splits:
        raise FileNotFoundError(
            f"{folder} has no qrels/train.tsv to train with; its qrels are {sorted(splits) or 'none'}; to split what "
            f"it has, name its files: {folder / 'queries.jsonl'} {folder / 'qrels' / 'test.tsv'}"
        )
    found = [next((name for name in names if name in splits), None) for names in SPLITS]
    return QuerySplits(*([] if name is None else read_judged(folder, name) for name in found))


def _not_empty(paths: Sequence[Path], queries: list[Query]) -> list[Query]:
    if not queries:
        raise InvalidFile(f"{' '.join(map(str, paths))}: there are no judged questions")
    return queries


def _read_files(paths: Sequence[Path], half_life: float | None) -> list[Query]:
    if len(paths) == 2 and not any(path.is_dir() for path in paths):
        return _not_empty(paths, read_qrels(*paths))
    kind = paths[0].name.removesuffix(".gz").rpartition(".")[2] if len(paths) == 1 else ""
    if kind == "json":
        return _not_empty(paths, load_qa_dataset(paths[0]).queries)
    if kind in ("jsonl", "csv", "tsv"):
        return _not_empty(paths, clicks_to_queries(read_clicks(paths[0]), half_life=half_life))
    named = " ".join(str(path) for path in paths)
    raise ValueError(
        f"{named}: judged questions come as a BEIR folder, as a file of queries and a file of qrels, as a click log "
        "(.jsonl, .csv or .tsv), or as a question-answer dataset (.json)"
    )

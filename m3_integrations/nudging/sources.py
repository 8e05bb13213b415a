"""Judged questions from the paths that a user names, in training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m3_integrations.core.texts import Query
from m3_integrations.nudging.clicks import queries_of, read_clicks
from m3_integrations.nudging.datasets import collection_of, read_judged, read_qrels
from m3_integrations.nudging.splits import split

SHARES = (0.7, 0.15, 0.15)  # of training, validation and test, where a source does not say
SPLITS = (("train",), ("dev", "validation", "valid"), ("test",))  # what folders call them


class Questions(NamedTuple):
    """Judged questions by what they are for."""

    train: list[Query]
    validation: list[Query]
    test: list[Query]


def read_questions(paths: Sequence[Path], *, seed: int = 0, half_life: float | None = None) -> Questions:
    """The judged questions of one source.

    paths: a BEIR folder, whose own splits are taken; or a file of queries and one of qrels; or a click log (.jsonl or
    .csv, with half_life in days); or a question-answer dataset (.json). All but the folder are split by text, so that
    no question is on two sides, by a generator of this seed. Files may be .gz.
    Raises FileNotFoundError for what is not there, ValueError for what is none of these.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}; name a BEIR folder, queries and qrels, or a click log")
    if len(paths) == 1 and paths[0].is_dir():
        return _of_folder(paths[0])
    return Questions(*split(_of_files(paths, half_life), SHARES, np.random.default_rng(seed)))


def _of_folder(folder: Path) -> Questions:
    there = {path.name.partition(".")[0] for path in folder.glob("qrels/*.tsv*")}
    if "train" not in there:
        raise FileNotFoundError(
            f"{folder} has no qrels/train.tsv to learn from, and of qrels {sorted(there) or 'none'}; to split what it "
            f"has, name its files: {folder / 'queries.jsonl'} {folder / 'qrels' / 'test.tsv'}"
        )
    found = [next((name for name in names if name in there), None) for names in SPLITS]
    return Questions(*([] if name is None else read_judged(folder, name) for name in found))


def _of_files(paths: Sequence[Path], half_life: float | None) -> list[Query]:
    if len(paths) == 2 and not any(path.is_dir() for path in paths):
        return read_qrels(*paths)
    kind = paths[0].name.removesuffix(".gz").rpartition(".")[2] if len(paths) == 1 else ""
    if kind == "json":
        return collection_of(paths[0]).queries
    if kind in ("jsonl", "csv"):
        return queries_of(read_clicks(paths[0]), half_life=half_life)
    named = " ".join(str(path) for path in paths)
    raise ValueError(
        f"{named}: judged questions come as a BEIR folder, as a file of queries and a file of qrels, as a click log "
        "(.jsonl or .csv), or as a question-answer dataset (.json)"
    )

"""The writes that are interrupted, and the state of an index after each of them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from m3_integrations.core.encoded import vector_arrays
from m3_integrations.core.types import Passage, Query, SearchPlan
from m3_integrations.index.base import Index
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder(8, 4, 64)
WORDS = ("red", "blue", "green", "cat", "dog", "bird")
QUERIES = [Query(f"q{i}", f"{WORDS[i % 6]} ask{i % 3}", {f"p{i % 6}": 1.0}) for i in range(24)]
Step = Callable[[Index], None]


def add(*numbers: int, word: str = "old") -> Step:
    texts = [f"{WORDS[n % 6]} {word} {n}" for n in numbers]
    passages = [Passage(f"p{n}", text, {"n": n}) for n, text in zip(numbers, texts, strict=True)]
    return lambda index: index.add(passages, ENCODER.encode_passages(texts))


def delete(*numbers: int, purge: bool = False) -> Step:
    return lambda index: index.delete([f"p{n}" for n in numbers], purge=purge)


def set_vectors(*numbers: int) -> Step:
    encoded = ENCODER.encode_passages([f"moved {n}" for n in numbers])
    return lambda index: index.set_vectors([f"p{n}" for n in numbers], encoded)


def set_plan(index: Index) -> None:
    index.plan = SearchPlan(("dense",), 7)


def fit(index: Index) -> None:
    with closing(Nudger(ENCODER, index)) as nudger:
        nudger.fit(QUERIES[:16], QUERIES[16:], modes=("dense", "sparse", "multi_vector"), method="nudge-n")


def revert(index: Index) -> None:
    with closing(Nudger(ENCODER, index)) as nudger:
        nudger.revert()


STEPS: Sequence[tuple[str, Step]] = [
    ("add", add(*range(8))),
    ("replace", add(0, 1, 8, 9, word="new")),
    ("delete", delete(2)),
    ("set_vectors", set_vectors(3, 4)),
    ("add", add(10)),
    ("add", add(11)),
    ("merge", add(12)),
    ("add", add(2, 13)),
    ("fit", fit),
    ("add", add(14)),
    ("delete", delete(5)),
    ("purge", delete(6, 14, purge=True)),
    ("revert", revert),
    ("plan", set_plan),
    ("fit", fit),
    ("merge", add(15)),
    ("revert", revert),
    ("delete", delete(0)),
]


class Stored(NamedTuple):
    """What an index holds, as values to compare, and the version of its nudge."""

    passages: tuple[Passage, ...]
    vectors: tuple[bytes, ...]
    plan: SearchPlan | None
    version: int


def stored(index: Index, version: int) -> Stored:
    """Return what an index holds."""
    ids = index.ids()
    return Stored(tuple(index.passages()), vectors(index, ids), index.plan, version)


def vectors(index: Index, ids: Sequence[str]) -> tuple[bytes, ...]:
    """Return the vectors of passages as bytes."""
    encoded = index.vectors(ids) if index.modes else None
    modes = sorted(index.modes)
    return tuple(array.tobytes() for mode in modes for array in vector_arrays(encoded, mode)) if encoded else ()


class References(NamedTuple):
    """What an exact index holds before the first step and after each, with and without nudges."""

    nudged: list[Stored]
    plain: list[tuple[bytes, ...]]


def references(steps: Sequence[tuple[str, Step]] = STEPS) -> References:
    """Carry the steps out in memory."""
    index, plain = MemoryIndex(), MemoryIndex()
    found = References([stored(index, 0)], [()])
    for name, step in steps:
        step(index)
        if step not in (fit, revert):
            step(plain)
        found.nudged.append(stored(index, _version(index)))
        found.plain.append(vectors(plain, plain.ids()))
        del name
    return found


def _version(index: Index) -> int:
    with closing(Nudger(ENCODER, index)) as nudger:
        return nudger.version


def run(folder: Path, precision: Any = None, *, mark: Callable[[str], None]) -> None:
    """Carry the steps out in a folder, opened again in the middle, and mark the begin and the end of each."""
    index = LocalIndex.open(folder, ENCODER, precision=precision)
    for number, (name, step) in enumerate(STEPS, 1):
        if number == len(STEPS) // 2:
            index.close()
            index = LocalIndex.open(folder, ENCODER)
        mark(f"begin {number} {name}")
        step(index)
        mark(f"done {number} {name}")
    index.close()


if __name__ == "__main__":
    shim = ctypes.CDLL(None)
    run(Path(sys.argv[1]), mark=lambda text: shim.m3_mark(text.encode()))

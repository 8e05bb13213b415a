"""Clocks that the benchmarks share: contenders take turns, round by round, so that a busy machine slows them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

Answer = TypeVar("Answer")


def timed(call: Callable[[], Answer], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Answer]:
    """Seconds, and what the call answered."""
    began = clock()
    answer = call()
    return clock() - began, answer


def side_by_side(
    calls: Mapping[str, Callable[[], Answer]], rounds: int, *, show: bool = False
) -> dict[str, tuple[list[float], Answer]]:
    """Name -> the seconds of each round, and the last answer. show: prints each as it comes."""
    taken: dict[str, tuple[list[float], Answer]] = {}
    for number in range(1, rounds + 1):
        for name, call in calls.items():
            seconds, answer = timed(call)
            taken[name] = ([*(taken[name][0] if name in taken else []), seconds], answer)
            if show:
                print(f"  round {number}: {name} {seconds:.1f} s", flush=True)
    return taken


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times as long the one took in each round; their median is the figure to quote."""
    return [theirs / ours for theirs, ours in zip(slow, fast, strict=True)]


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return median(ratios(slow, fast))

"""Timing of alternatives in turns, round by round, so that other load on the machine slows them equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

Result = TypeVar("Result")


def timed(call: Callable[[], Result], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Result]:
    """Time a call; return the seconds and its result."""
    start = clock()
    result = call()
    return clock() - start, result


def side_by_side(
    calls: Mapping[str, Callable[[], Result]],
    rounds: int,
    *,
    show: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[list[float], Result]]:
    """Time every call once per round; return the seconds of its rounds and its last result by name."""
    measured: dict[str, tuple[list[float], Result]] = {}
    for number in range(1, rounds + 1):
        for name, call in calls.items():
            seconds, result = timed(call, clock)
            measured[name] = ([*(measured[name][0] if name in measured else []), seconds], result)
            if show:
                print(f"  round {number}: {name} {seconds:.1f} s", flush=True)
    return measured


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Ratio of the times of each round; quote the median."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return median(ratios(slow, fast))

"""Progress of a fit, with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias


class Progress(NamedTuple):
    """How far a fit is.

    Attributes:
        done: Fraction of the work, 0 to 1.
        seconds_left: Estimated seconds until the end; None before there is an estimate.
    """

    done: float
    seconds_left: float | None


OnProgress: TypeAlias = Callable[[Progress], object]


class ProgressMeter:
    """Reports the progress of a sequence of stages; an exception of the callback ends the work.

    Args:
        on_progress: Called with the progress; None for no reports.
        shares: Share of the work of each stage, in order.
    """

    def __init__(self, on_progress: OnProgress | None, shares: tuple[float, ...]) -> None:
        self._on_progress, self._shares = on_progress, shares
        self._stage, self._start = 0, time.perf_counter()

    def update(self, fraction: float) -> None:
        """Report that this fraction of the stage is done."""
        if self._on_progress is None:
            return
        done = sum(self._shares[: self._stage]) + fraction * self._shares[self._stage]
        done = min(done / sum(self._shares), 1.0)
        seconds = time.perf_counter() - self._start
        self._on_progress(Progress(done, seconds * (1 - done) / done if done > 0 else None))

    def end_stage(self) -> None:
        """Report that the stage is done."""
        self.update(1.0)
        self._stage = min(self._stage + 1, len(self._shares) - 1)

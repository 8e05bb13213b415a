"""Charts of a nudge as geometry for SVG templates; the base install has no plotting library."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from m3_integrations.nudging.judged import Floats
from m3_integrations.nudging.method.variants import Method
from m3_integrations.nudging.optimize.dense import Curve
from m3_integrations.nudging.report.values import Move, Outcome, in_steps

WIDTH, HEIGHT = 360.0, 200.0  # of the view box; legible at the width of a phone
LEFT, RIGHT, TOP, BOTTOM = 46.0, 348.0, 14.0, 164.0  # edges of the plot area
BINS = 20  # of the histogram
STEPS_PER_UNIT = 4.0  # steps of a curve drawn within one unit of the view box
MAX_BARS = 300  # of the questions that gained and lost
LABEL_DISTANCE = 34.0  # minimum between two labels of an axis
GAMMAS = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 10.0)


class Tick(NamedTuple):
    """A label on an axis and its position."""

    at: float
    label: str


class Line(NamedTuple):
    """A named line: SVG path data, and the points that it joins (none for an exact step curve)."""

    name: str
    path: str
    dots: Sequence[tuple[float, float]]


class Bar(NamedTuple):
    """A bar with its tooltip and kind: "", "won" or "lost"."""

    x: float
    y: float
    width: float
    height: float
    alt: str
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart: alternative text, axes, lines, bars, and an optional marker on the horizontal axis."""

    alt: str
    x_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    marker: Tick | None = None


class Scale(NamedTuple):
    """Linear map of values from [low, high] to [start, stop]."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, values: Floats | float) -> Floats:
        extent = (self.high - self.low) or 1.0
        return np.asarray(self.start + (np.asarray(values) - self.low) / extent * (self.stop - self.start))

    def ticks(self) -> list[Tick]:
        """Return about four ticks at round values."""
        return [Tick(float(self.at(value)), f"{value:g}") for value in round_values(self.low, self.high)]


def round_values(low: float, high: float, about: int = 4) -> list[float]:
    """Return about `about` multiples of 1, 2 or 5 times a power of ten from low to high."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * 0.999)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(i * step, 12) for i in range(first, last + 1)]


def curves_chart(mode: str, curves: Mapping[str, Curve], move: Move | None) -> Chart:
    """Chart metrics over gamma, with the chosen gamma marked."""
    method: Method = move.method if move else "nudge-n"
    levels = np.concatenate([curve.levels for curve in curves.values()])
    edges = np.concatenate([curve.edges for curve in curves.values()])
    margin = 0.08 * (float(np.ptp(levels)) or 0.1)
    x = Scale(0.0, float(_to_axis(method, edges).max(initial=1e-9)), LEFT, RIGHT)
    y = Scale(float(levels.min()) - margin, float(levels.max()) + margin, BOTTOM, TOP)
    choice = f"; chosen: {move.gamma:.3g}" if move else "; nothing was moved"
    return Chart(
        alt=f"{', '.join(curves)} over gamma, {mode}{choice}",
        x_label="gamma (squared chord)" if method == "nudge-n" else "gamma (length)",
        x_ticks=_gamma_ticks(method, x),
        y_ticks=y.ticks(),
        lines=[_line(name, curve, method, x, y) for name, curve in curves.items()],
        marker=Tick(float(x.at(_to_axis(method, move.gamma))), f"{move.gamma:.3g}") if move else None,
    )


def lengths_chart(mode: str, move: Move) -> Chart:
    """Chart a histogram of the distances that passages moved."""
    counts, edges = np.histogram(move.lengths, BINS, (0.0, float(move.lengths.max())))
    x = Scale(float(edges[0]), float(edges[-1]), LEFT, RIGHT)
    y = Scale(0.0, float(counts.max()), BOTTOM, TOP)
    bars = [
        _bar(x, y, low, high, count, f"{count} passages by {low:.3g} to {high:.3g}")
        for count, (low, high) in zip(counts.tolist(), itertools.pairwise(edges.tolist()), strict=True)
        if count
    ]
    return Chart(
        alt=f"distances of {move.moved} passages that moved, {mode}",
        x_label="distance moved",
        x_ticks=x.ticks(),
        y_ticks=[tick for tick in y.ticks() if "." not in tick.label],
        bars=bars,
    )


def gains_chart(outcome: Outcome) -> Chart:
    """Chart the gain of every question that gained or lost, largest gain first."""
    changed = [change for change in outcome.changes if change.gain]
    if len(changed) > MAX_BARS:
        changed = [changed[i] for i in np.linspace(0, len(changed) - 1, MAX_BARS).astype(int)]
    gains = [change.gain for change in changed]
    x = Scale(0.0, float(max(len(changed), 1)), LEFT, RIGHT)
    y = Scale(min([0.0, *gains]), max([0.0, *gains]) or 1.0, BOTTOM, TOP)
    bars = [
        _bar(
            x, y, i, i + 1, change.gain, f"{change.gain:+.3f} {change.query.text}", "won" if change.gain > 0 else "lost"
        )
        for i, change in enumerate(changed)
    ]
    unchanged = len(outcome.queries) - len(outcome.won) - len(outcome.lost)
    return Chart(
        alt=f"{len(outcome.won)} questions gained, {len(outcome.lost)} lost, {unchanged} unchanged",
        x_label=f"{len(outcome.won)} gained, {len(outcome.lost)} lost, {unchanged} unchanged",
        x_ticks=[],
        y_ticks=y.ticks(),
        bars=bars,
    )


def _to_axis(method: Method, gamma: Floats | float) -> Floats:
    """Map gamma to its axis before scaling: to the chord for NUDGE-N, to 0..1 for NUDGE-M, where it is unbounded."""
    return np.sqrt(gamma) if method == "nudge-n" else np.asarray(1 - 1 / (1 + np.asarray(gamma)))


def _gamma_ticks(method: Method, x: Scale) -> list[Tick]:
    ticks: list[Tick] = []
    for gamma in GAMMAS:
        position = float(_to_axis(method, gamma))
        at = float(x.at(position))
        if position <= x.high and (not ticks or at - ticks[-1].at >= LABEL_DISTANCE):
            ticks.append(Tick(at, f"{gamma:g}"))
    return ticks


def _line(name: str, curve: Curve, method: Method, x: Scale, y: Scale) -> Line:
    horizontal, vertical = x.at(_to_axis(method, curve.edges)), y.at(curve.levels)
    if in_steps(curve):
        return Line(name, _steps(horizontal, vertical), ())
    dots = [(round(float(a), 1), round(float(b), 1)) for a, b in zip(horizontal, vertical, strict=True)]
    return Line(name, "M" + " L".join(f"{a} {b}" for a, b in dots), dots)


def _steps(edges: Floats, levels: Floats) -> str:
    """Draw steps from edge to edge; of steps too narrow to be seen, the first."""
    visible = np.unique(np.round(edges[:-1] * STEPS_PER_UNIT), return_index=True)[1]
    ends = [*edges[visible[1:]].tolist(), float(edges[-1])]
    steps = [f"V{level:.1f}H{end:.2f}" for level, end in zip(levels[visible].tolist(), ends, strict=True)]
    return f"M{edges[0]:.2f} {levels[0]:.1f}" + "".join(steps)


def _bar(x: Scale, y: Scale, low: float, high: float, value: float, alt: str, kind: str = "") -> Bar:
    left, right = float(x.at(low)), float(x.at(high))
    top, bottom = sorted((float(y.at(value)), float(y.at(0.0))))
    gap = min(1.0, 0.15 * (right - left))
    return Bar(round(left, 2), round(top, 2), round(right - left - gap, 2), round(max(bottom - top, 0.5), 2), alt, kind)

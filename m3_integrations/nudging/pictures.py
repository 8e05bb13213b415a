"""Pictures of a nudge as geometry, which a template draws as SVG: no library for plots is in a base install."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from m3_integrations.nudging.dense import Curve
from m3_integrations.nudging.judged import Floats
from m3_integrations.nudging.plans import Method
from m3_integrations.nudging.report import Move, Outcome, in_steps

WIDTH, HEIGHT = 360.0, 200.0  # of the view box: what a phone shows at its full width
LEFT, RIGHT, TOP, BOTTOM = 46.0, 348.0, 14.0, 164.0  # of the field inside its axes
BINS = 20  # of a histogram
FINE = 4.0  # steps of a curve that are drawn within one unit of the view box
QUESTIONS = 300  # bars, at most, of the questions that won and lost
APART = 34.0  # between two labels of an axis
GAMMAS = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 10.0)


class Tick(NamedTuple):
    """A label on an axis, and where it stands."""

    at: float
    label: str


class Line(NamedTuple):
    """A named line: `path` as SVG path data; dots: the points that it joins, none where it is exact."""

    name: str
    path: str
    dots: Sequence[tuple[float, float]]


class Bar(NamedTuple):
    """A bar, what it says when it is pointed at, and its kind: "", "won" or "lost"."""

    x: float
    y: float
    width: float
    height: float
    says: str
    kind: str = ""


@dataclass(frozen=True)
class Picture:
    """What one picture shows. says: it in words; across: what its horizontal axis is; marked: a place on that axis."""

    says: str
    across: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    marked: Tick | None = None


class Scale(NamedTuple):
    """Values from low to high on the stretch from start to stop."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, values: Floats | float) -> Floats:
        wide = (self.high - self.low) or 1.0
        return np.asarray(self.start + (np.asarray(values) - self.low) / wide * (self.stop - self.start))

    def ticks(self) -> list[Tick]:
        """Round values in it, some four."""
        return [Tick(float(self.at(value)), f"{value:g}") for value in round_values(self.low, self.high)]


def round_values(low: float, high: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from low to high, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * 0.999)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(i * step, 12) for i in range(first, last + 1)]


def curves_picture(mode: str, curves: Mapping[str, Curve], move: Move | None) -> Picture:
    """Metrics over gamma, and where gamma was chosen."""
    method: Method = move.method if move else "n"
    levels = np.concatenate([curve.levels for curve in curves.values()])
    edges = np.concatenate([curve.edges for curve in curves.values()])
    room = 0.08 * (float(np.ptp(levels)) or 0.1)
    x = Scale(0.0, float(_along(method, edges).max(initial=1e-9)), LEFT, RIGHT)
    y = Scale(float(levels.min()) - room, float(levels.max()) + room, BOTTOM, TOP)
    said = f"; chosen: {move.gamma:.3g}" if move else "; nothing was moved"
    return Picture(
        says=f"{', '.join(curves)} over gamma, {mode}{said}",
        across="gamma (squared chord)" if method == "n" else "gamma (length)",
        x_ticks=_gamma_ticks(method, x),
        y_ticks=y.ticks(),
        lines=[_line(name, curve, method, x, y) for name, curve in curves.items()],
        marked=Tick(float(x.at(_along(method, move.gamma))), f"{move.gamma:.3g}") if move else None,
    )


def lengths_picture(mode: str, move: Move) -> Picture:
    """How many passages moved how far, as a histogram."""
    counts, edges = np.histogram(move.lengths, BINS, (0.0, float(move.lengths.max())))
    x = Scale(float(edges[0]), float(edges[-1]), LEFT, RIGHT)
    y = Scale(0.0, float(counts.max()), BOTTOM, TOP)
    bars = [
        _standing(x, y, low, high, count, f"{count} passages by {low:.3g} to {high:.3g}")
        for count, (low, high) in zip(counts.tolist(), itertools.pairwise(edges.tolist()), strict=True)
        if count
    ]
    return Picture(
        says=f"how far {move.moved} passages moved, {mode}",
        across="how far a passage moved",
        x_ticks=x.ticks(),
        y_ticks=[tick for tick in y.ticks() if "." not in tick.label],
        bars=bars,
    )


def gains_picture(outcome: Outcome) -> Picture:
    """Every question that won or lost, by how much, what gained most first."""
    changed = [change for change in outcome.changes if change.gain]
    if len(changed) > QUESTIONS:
        changed = [changed[i] for i in np.linspace(0, len(changed) - 1, QUESTIONS).astype(int)]
    gains = [change.gain for change in changed]
    x = Scale(0.0, float(max(len(changed), 1)), LEFT, RIGHT)
    y = Scale(min([0.0, *gains]), max([0.0, *gains]) or 1.0, BOTTOM, TOP)
    bars = [
        _standing(
            x, y, i, i + 1, change.gain, f"{change.gain:+.3f} {change.query.text}", "won" if change.gain > 0 else "lost"
        )
        for i, change in enumerate(changed)
    ]
    still = len(outcome.queries) - len(outcome.won) - len(outcome.lost)
    return Picture(
        says=f"{len(outcome.won)} questions won, {len(outcome.lost)} lost, {still} stayed",
        across=f"{len(outcome.won)} won, {len(outcome.lost)} lost, {still} as before",
        x_ticks=[],
        y_ticks=y.ticks(),
        bars=bars,
    )


def _along(method: Method, gamma: Floats | float) -> Floats:
    """Where gamma stands on its axis before scaling: the chord in "n"; in "m", where it is without end, up to 1."""
    return np.sqrt(gamma) if method == "n" else np.asarray(1 - 1 / (1 + np.asarray(gamma)))


def _gamma_ticks(method: Method, x: Scale) -> list[Tick]:
    ticks: list[Tick] = []
    for gamma in GAMMAS:
        along = float(_along(method, gamma))
        at = float(x.at(along))
        if along <= x.high and (not ticks or at - ticks[-1].at >= APART):
            ticks.append(Tick(at, f"{gamma:g}"))
    return ticks


def _line(name: str, curve: Curve, method: Method, x: Scale, y: Scale) -> Line:
    across, up = x.at(_along(method, curve.edges)), y.at(curve.levels)
    if in_steps(curve):
        return Line(name, _steps(across, up), ())
    dots = [(round(float(a), 1), round(float(b), 1)) for a, b in zip(across, up, strict=True)]
    return Line(name, "M" + " L".join(f"{a} {b}" for a, b in dots), dots)


def _steps(edges: Floats, levels: Floats) -> str:
    """From edge to edge at each level; of the steps that are too narrow to be seen apart, the first."""
    kept = np.unique(np.round(edges[:-1] * FINE), return_index=True)[1]
    ends = [*edges[kept[1:]].tolist(), float(edges[-1])]
    steps = [f"V{level:.1f}H{end:.2f}" for level, end in zip(levels[kept].tolist(), ends, strict=True)]
    return f"M{edges[0]:.2f} {levels[0]:.1f}" + "".join(steps)


def _standing(x: Scale, y: Scale, low: float, high: float, value: float, says: str, kind: str = "") -> Bar:
    left, right = float(x.at(low)), float(x.at(high))
    top, foot = sorted((float(y.at(value)), float(y.at(0.0))))
    gap = min(1.0, 0.15 * (right - left))
    return Bar(round(left, 2), round(top, 2), round(right - left - gap, 2), round(max(foot - top, 0.5), 2), says, kind)

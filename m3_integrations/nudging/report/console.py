"""A nudge report as tables for a terminal."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from m3_integrations.nudging.report.figures import NudgeFigures
from m3_integrations.nudging.report.html import describe_weights, outcome_rows


def tables(report: NudgeFigures) -> RenderableType:
    """Build the tables of a report: figures before and after, moves, coverage, warnings."""
    parts: list[RenderableType] = [*([report.summary] if report.summary else []), _figures(report)]
    if report.moves:
        parts += [_moves(report), f"mode weights: {describe_weights(report.plan.weights)}"]
    coverage = report.coverage
    parts.append(
        f"coverage: {coverage.queries} training questions name {coverage.answered} of {coverage.passages} passages "
        f"({coverage.share:.0%}) · {report.seconds:.1f} s"
    )
    return Group(*parts, *(f"[yellow]warning:[/yellow] {escape(warning)}" for warning in report.warnings))


def plain_text(report: NudgeFigures, width: int = 100) -> str:
    """Return the tables of a report as text without colors."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(tables(report))
    return captured.get()


def _figures(report: NudgeFigures) -> Table:
    table = _with_columns(
        f"nudge {report.version}: {report.metric}", "questions", "", "before", "after", "gain", "95 %"
    )
    for row in outcome_rows(report):
        interval = f"{row.low:+.3f} to {row.high:+.3f}"
        figures = f"{row.before:.3f}", f"{row.after:.3f}", f"{row.after - row.before:+.3f}"
        table.add_row(row.name, str(row.questions), *figures, interval)
    if not table.rows:
        figures = f"{report.before:.3f}", f"{report.after:.3f}", f"{report.gain:+.3f}"
        table.add_row("training, cross-validated", "", *figures, "")
    return table


def _moves(report: NudgeFigures) -> Table:
    headings = "method", "gamma", "center", "propagation (self)", "moved", "median", "max", "adds"
    table = _with_columns("moves by mode", "mode", *headings)
    for mode, move in report.moves.items():
        propagation = move.propagation
        table.add_row(
            mode,
            move.method,
            f"{move.gamma:.3g}",
            f"{move.center:g}",
            f"{propagation.temperature:g} ({propagation.self_weight:g})" if propagation else "none",
            str(move.moved),
            f"{np.median(move.lengths):.3f}",
            f"{move.lengths.max():.3f}",
            f"{report.added(mode):+.3f}",
        )
    return table


def _with_columns(title: str, first: str, *rest: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(first)
    for heading in rest:
        table.add_column(heading, justify="right")
    return table

"""A report for a terminal."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from m3_integrations.nudging.page import outcome_rows, said_weights
from m3_integrations.nudging.report import NudgeReport


def tables(report: NudgeReport) -> RenderableType:
    """Figures before and after, how each mode moved, coverage, and what to beware of."""
    parts: list[RenderableType] = [_figures(report)]
    if report.moves:
        parts += [_moves(report), f"weights that go with it: {said_weights(report.plan.weights)}"]
    cover = report.coverage
    parts.append(
        f"coverage: {cover.queries} training questions name {cover.answered} of {cover.passages} passages "
        f"({cover.share:.0%}) · {report.seconds:.1f} s"
    )
    return Group(*parts, *(f"[yellow]beware:[/yellow] {escape(warning)}" for warning in report.warnings))


def plain(report: NudgeReport, width: int = 100) -> str:
    """The same without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as said:
        console.print(tables(report))
    return said.get()


def _figures(report: NudgeReport) -> Table:
    table = _with_columns(
        f"nudge {report.version}: {report.metric}", "questions", "", "before", "after", "gain", "95 %"
    )
    for row in outcome_rows(report):
        gain = row.after - row.before
        spans = f"{row.low:+.3f} to {row.high:+.3f}"
        table.add_row(row.name, str(row.questions), f"{row.before:.3f}", f"{row.after:.3f}", f"{gain:+.3f}", spans)
    if not table.rows:
        table.add_row("training, crossed", "", f"{report.before:.3f}", f"{report.after:.3f}", f"{report.gain:+.3f}", "")
    return table


def _moves(report: NudgeReport) -> Table:
    table = _with_columns(
        "how each mode moved, and how far",
        "mode",
        "method",
        "gamma",
        "centre",
        "spread (own)",
        "moved",
        "median",
        "most",
        "adds",
    )
    for mode, move in report.moves.items():
        table.add_row(
            mode,
            move.method,
            f"{move.gamma:.3g}",
            f"{move.centre:g}",
            f"{move.spread.temperature:g} ({move.spread.own:g})" if move.spread else "none",
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

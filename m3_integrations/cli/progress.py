"""Progress of indexing: total, rate and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from m3_integrations.cli.output import terminal

if TYPE_CHECKING:
    from m3_integrations import IngestReport


class RateColumn(ProgressColumn):
    """Passages per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} passages/s")


@contextmanager
def ingest_progress(total: int) -> Iterator[Callable[[IngestReport], None]]:
    """Show progress on a terminal; the result takes the counts so far."""
    columns = (
        TextColumn("index"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=terminal.err, disable=not terminal.shows_progress, transient=True) as progress:
        task = progress.add_task("index", total=total)
        yield lambda report: progress.update(task, completed=report.total)

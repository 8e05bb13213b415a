"""NudgeReport: the figures of a nudge, printable and renderable."""

from __future__ import annotations

from html import escape
from os import PathLike
from pathlib import Path

from rich.console import RenderableType

from m3_integrations.index.base import Index
from m3_integrations.nudging.report.console import plain_text, tables
from m3_integrations.nudging.report.figures import NudgeFigures
from m3_integrations.nudging.report.html import page, write_page


class NudgeReport(NudgeFigures):
    """What a fit did: figures, outcomes by question, warnings.

    Printing it shows tables; `render` writes a page with charts. Outcomes are computed when they are first read, from
    the index and its ledger; if passages were added, changed or deleted since the fit, reading them raises StaleReport.
    """

    def render(self, path: str | PathLike[str], index: Index | None = None) -> None:
        """Write the report as one self-contained HTML page.

        Args:
            path: File to write; missing folders are created.
            index: The index that was nudged, for the texts of passages; without it their ids are shown.

        Raises:
            StaleReport: If the passages of the index changed since the fit and the outcomes were not read before.
        """
        write_page(Path(path), page(self, index))

    def __rich__(self) -> RenderableType:
        return tables(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(plain_text(self))}</pre>"

    def __str__(self) -> str:
        return plain_text(self)

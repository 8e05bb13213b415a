"""`m3 demo`: hybrid search over real text in many languages, before and after a nudge."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3_integrations.cli.options import Model, prepare_folder
from m3_integrations.cli.output import CommandResult, print_metrics, table, terminal

if TYPE_CHECKING:
    from m3_integrations.demo import Answer, Demo


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the HTML pages.")] = Path("demo-out"),
    model: Model = "m3-mini",
) -> CommandResult:
    """Show hybrid search and nudging. It indexes, searches and nudges text in many languages, and writes HTML pages."""
    from m3_integrations import LocalIndex, M3Encoder
    from m3_integrations.demo import run

    prepare_folder(out)
    encoder = M3Encoder.from_pretrained(model)
    with TemporaryDirectory() as folder, LocalIndex.open(folder, encoder) as index:
        result = run(encoder, index, show_progress=terminal.shows_progress)
        result.render(out, index)
    return CommandResult(_to_json(result, out), lambda: _show(result, out))


def _to_json(result: Demo, out: Path) -> dict[str, Any]:
    answers = [
        {"question": each.question.text, "ids": [match.passage.id for match in each.matches]} for each in result.answers
    ]
    figures = {"before": result.metrics, "after": result.after}
    return {
        "passages": result.ingested.total,
        "questions": result.judged,
        **figures,
        "answers": answers,
        "out": str(out),
    }


def _show(result: Demo, out: Path) -> None:
    for answer in result.answers:
        _print_answer(answer)
    terminal.print(("\nthe same index, nudged by training questions", "bold"))
    terminal.print(result.nudge)
    title = f"{result.judged} test questions over {result.ingested.total} passages after the nudge (change)"
    print_metrics(result.after, title, result.metrics)
    for remark in (result.comparison, *result.remarks):
        terminal.print(remark)
    terminal.print((str(result.nudge.headline), "bold"))
    terminal.print("What it finds, why, and what learning changed: ", (str(out / "index.html"), "bold"))
    terminal.print("Full report of the nudge: ", (str(out / "nudge.html"), "bold"))


def _print_answer(answer: Answer) -> None:
    """Print a question with the titles that it finds and the words that matched."""
    from m3_integrations.core.titles import title_of
    from m3_integrations.nudging.report.html import name_of

    terminal.print((f"\n{answer.question.text}", "bold"))
    rows = table("", "", "", ">")
    rows.show_header = False
    for rank, match in enumerate(answer.matches, 1):
        language = str(match.passage.metadata.get("language", ""))
        rows.add_row(str(rank), title_of(match.passage), language, f"{match.score:.2f}")
    terminal.print(rows)
    if answer.pairs:
        terminal.print("why: " + " · ".join(f"{each.asked} = {each.found}" for each in answer.pairs))
    alone = " · ".join(f"{name_of(mode)} {'✓' if found else '✗'}" for mode, found in answer.alone.items())
    terminal.print((f"one mode alone: {alone}", "dim"))

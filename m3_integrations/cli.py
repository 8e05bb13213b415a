"""The command `m3`: a thin door to the package. Heavy imports wait inside each command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from m3_integrations.core.errors import M3Error

if TYPE_CHECKING:
    from m3_integrations.demo import Answer
    from m3_integrations.retrieval.retriever import Match

app = typer.Typer(help="Hybrid retrieval with BGE-M3: dense, lexical, late interaction.", no_args_is_help=True)
console = Console()
Model = Annotated[str, typer.Option(help="m3-mini, a local folder, or a hub id such as BAAI/bge-m3.")]
Folder = Annotated[Path, typer.Argument(help="The folder of the index.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("demo-out"),
    model: Model = "m3-mini",
) -> None:
    """Ingest real text in many languages, answer by each mode and by all, and write one HTML page."""
    from m3_integrations import LocalIndex, M3Encoder
    from m3_integrations import demo as demonstration

    encoder = M3Encoder.from_pretrained(model)
    with TemporaryDirectory() as folder, LocalIndex.open(folder, encoder) as index:
        found = demonstration.run(encoder, index, show_progress=True)
    for answer in found.answers:
        _print_answer(answer)
    _print_metrics(found.metrics, f"{found.judged} test questions over {found.ingested.total} passages")
    page = out / "index.html"
    found.render(page)
    console.print(f"The same with every match coloured: [bold]{page}[/bold]")


@app.command()
def ingest(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help='JSON lines: {"_id", "text", "title"?, "metadata"?}.')],
    model: Model = "m3-mini",
) -> None:
    """Add passages from a file to the index in a folder; those unchanged are skipped."""
    from m3_integrations import LocalIndex, M3Encoder
    from m3_integrations import ingest as fill
    from m3_integrations.evaluation.beir import read_passages

    encoder = M3Encoder.from_pretrained(model)
    with LocalIndex.open(folder, encoder) as index:
        report = fill(encoder, index, read_passages(file), show_progress=True)
        changes = f"{report.added} added, {report.replaced} replaced, {report.unchanged} unchanged"
        console.print(f"{changes}; the index holds {len(index)}")


@app.command()
def search(
    folder: Folder,
    question: Annotated[str, typer.Argument(help="What to ask.")],
    k: Annotated[int, typer.Option(help="How many passages.")] = 5,
    model: Model = "m3-mini",
) -> None:
    """Ask the index in a folder."""
    from m3_integrations import LocalIndex, M3Encoder, Retriever

    if not folder.is_dir():
        raise FileNotFoundError(f"there is no index at {folder}; fill one with: m3 ingest {folder} FILE")
    encoder = M3Encoder.from_pretrained(model)
    with LocalIndex.open(folder, encoder) as index:
        _print_matches(Retriever(encoder, index).retrieve(question, k))


def main() -> None:
    """Run the command; an error of ours is one line, without a traceback."""
    try:
        app()
    except (M3Error, OSError, ValueError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}")
        raise SystemExit(1) from error


def _print_answer(answer: Answer) -> None:
    console.rule(escape(answer.question))
    best = " · ".join(f"{plan}: {id}" for plan, id in answer.best_by_plan.items())
    console.print(escape(best), style="dim")
    _print_matches(answer.matches)
    if answer.explanations:
        why = answer.explanations[0]
        shared = ", ".join(f"{each.token} {each.score:.3f}" for each in why.lexical[:5]) or "none"
        nearest = sorted(why.late, key=lambda each: -each.score)[:5]
        met = ", ".join(f"{each.query_token}→{each.passage_token} {each.similarity:.2f}" for each in nearest)
        console.print(escape(f"shared tokens: {shared}\nnearest tokens: {met}"), style="dim")


def _print_matches(matches: Sequence[Match]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("score", "what each mode gave", "passage", ""):
        table.add_column(heading, overflow="fold")
    for match in matches:
        parts = " ".join(f"{mode} {part:.3f}" for mode, part in match.by_mode.items())
        start = " ".join(match.passage.text.split())[:70]
        table.add_row(f"{match.score:.3f}", parts, escape(match.passage.id), escape(start))
    console.print(table)


def _print_metrics(metrics: Mapping[str, Mapping[str, float]], title: str) -> None:
    table = Table(title=title)
    table.add_column("plan")
    for metric in next(iter(metrics.values())):
        table.add_column(metric, justify="right")
    for plan, values in metrics.items():
        table.add_row(plan, *(f"{value:.3f}" for value in values.values()))
    console.print(table)

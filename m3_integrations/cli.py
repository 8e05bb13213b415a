"""The command `m3`: a thin door to the package. Heavy imports wait inside each command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from m3_integrations.core.errors import M3Error

if TYPE_CHECKING:
    from m3_integrations import LocalIndex, M3Encoder, Nudger, SearchPlan
    from m3_integrations.demo import Answer
    from m3_integrations.nudging.sources import Questions
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
    """Ingest real text in many languages, answer by each mode and by all, nudge, and write it as HTML pages."""
    from m3_integrations import LocalIndex, M3Encoder
    from m3_integrations import demo as demonstration

    encoder = M3Encoder.from_pretrained(model)
    with TemporaryDirectory() as folder, LocalIndex.open(folder, encoder) as index:
        found = demonstration.run(encoder, index, show_progress=True)
        found.render(out, index)
    for answer in found.answers:
        _print_answer(answer)
    _print_metrics(found.metrics, f"{found.judged} test questions over {found.ingested.total} passages")
    console.rule("the same index, nudged by training questions")
    console.print(found.nudge)
    _print_metrics(found.after, "the test questions again, after the nudge", found.metrics)
    for line in found.remarks:
        console.print(escape(line))
    console.print(f"The same with every match coloured: [bold]{out / 'index.html'}[/bold]")
    console.print(f"What the nudge did, in pictures: [bold]{out / 'nudge.html'}[/bold]")


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
def copy(
    source: Annotated[str, typer.Argument(help="A folder, or qdrant://host:6333/collection; qdrants:// with TLS.")],
    target: Annotated[str, typer.Argument(help="The same; it is made where there is none.")],
    api_key: Annotated[str | None, typer.Option(envvar="QDRANT_API_KEY", help="Of the Qdrant server.")] = None,
) -> None:
    """Copy an index with its vectors between a folder and Qdrant, checked; begun again, it goes on where it stopped."""
    from m3_integrations.index.qdrant_copying import copy as copied

    done = copied(source, target, api_key)
    console.print(f"{done.total} passages, {done.written} of them written, read back equal: {done.checksum[:16]}")
    if done.besides:
        console.print(f"{escape(target)} holds {done.besides} passages besides.")


@app.command()
def search(
    folder: Folder,
    question: Annotated[str, typer.Argument(help="What to ask.")],
    k: Annotated[int, typer.Option(help="How many passages.")] = 5,
    model: Model = "m3-mini",
) -> None:
    """Ask the index in a folder; one that was nudged is searched with the weights that the nudge was chosen with."""
    from m3_integrations import LocalIndex, M3Encoder, Retriever, SearchPlan

    _require_index(folder)
    encoder = M3Encoder.from_pretrained(model)
    with LocalIndex.open(folder, encoder) as index:
        plan = _nudged_plan(encoder, index) or SearchPlan()
        _print_matches(Retriever(encoder, index, plan).retrieve(question, k))


@app.command()
def nudge(
    folder: Folder,
    judged: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A BEIR folder (its train, dev and test); or a file of queries and one of TREC or BEIR qrels; or a "
            "click log (.jsonl or .csv); or a question-answer dataset (.json). All but the first are split by --seed."
        ),
    ] = None,
    modes: Annotated[str, typer.Option(help="What is moved, such as dense,multi_vector; all that there are.")] = "",
    metric: Annotated[str, typer.Option(help="ndcg@k, recall@k, mrr@k, precision@k or accuracy@k.")] = "ndcg@10",
    method: Annotated[
        str, typer.Option(help="Of the dense vectors: n keeps lengths, m does not; auto may move nothing.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Where a page with pictures goes, such as report.html.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Nudge a copy of the folder, and throw it away.")] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Put every vector back as it was encoded.")] = False,
    to: Annotated[int | None, typer.Option(help="Go back, or on, to this version.")] = None,
    versions: Annotated[bool, typer.Option("--versions", help="List the nudges so far.")] = False,
    half_life: Annotated[float | None, typer.Option(help="Days after which a click counts half.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split into training, validation and test.")] = 0,
    model: Model = "m3-mini",
) -> None:
    """Move the vectors of an index towards questions that its passages answer; or go back."""
    from m3_integrations import LocalIndex, M3Encoder

    _require_index(folder)
    _require_one_task(judged, revert=revert, to=to, versions=versions)
    questions = _judged(judged, seed, half_life) if judged else None
    encoder = M3Encoder.from_pretrained(model)
    with TemporaryDirectory() as spare:
        place = copytree(folder, Path(spare) / "index") if dry_run else folder
        with LocalIndex.open(place, encoder) as index, closing(_nudger(encoder, index)) as nudger:
            if questions is not None:
                _fit(nudger, questions, modes, metric, method, out)
            elif not versions:
                nudger.revert(to)
            _print_versions(nudger)
    if dry_run:
        console.print("This was done to a copy: the folder is as it was.")


def _require_index(folder: Path) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        raise FileNotFoundError(f"there is no index at {folder}; fill one with: m3 ingest {folder} FILE")


def _require_one_task(judged: Sequence[Path] | None, *, revert: bool, to: int | None, versions: bool) -> None:
    tasks = [bool(judged), revert, to is not None, versions]
    if sum(tasks) != 1:
        raise ValueError(
            "say one of: m3 nudge FOLDER JUDGED... to nudge, --revert or --to N to go back, --versions to look; "
            f"got {sum(tasks)} of them"
        )


def _nudger(encoder: M3Encoder, index: LocalIndex) -> Nudger:
    from m3_integrations import Nudger

    return Nudger(encoder, index)


def _nudged_plan(encoder: M3Encoder, index: LocalIndex) -> SearchPlan | None:
    """The plan of the nudge that the folder holds, which is said; None where there is none."""
    from m3_integrations.nudging.ledger import FILE_NAME
    from m3_integrations.nudging.page import said_weights

    if not (index.folder / FILE_NAME).is_file():  # a Nudger makes one, and a search should leave no trace
        return None
    with closing(_nudger(encoder, index)) as nudger:
        plan = nudger.plan
        if plan is not None:
            console.print(f"as nudge {nudger.version} weighs: {said_weights(plan.weights)}", style="dim")
        return plan


def _judged(paths: Sequence[Path], seed: int, half_life: float | None) -> Questions:
    from m3_integrations.nudging.sources import read_questions

    return read_questions(paths, seed=seed, half_life=half_life)


def _fit(nudger: Nudger, questions: Questions, modes: str, metric: str, method: str, out: Path | None) -> None:
    if method not in ("auto", "n", "m"):
        raise ValueError(f"--method is auto, n or m, got {method!r}")
    train, validation, test = questions
    chosen: Any = [mode.strip() for mode in modes.split(",")] if modes else nudger.encoder.modes & nudger.index.modes
    way: Any = method
    report = nudger.fit(train, validation, test=test, modes=chosen, metric=metric, method=way)
    console.print(report)
    if out is not None:
        report.render(out, nudger.index)
        console.print(f"In pictures: [bold]{escape(str(out))}[/bold]")


def _print_versions(nudger: Nudger) -> None:
    versions = nudger.versions()
    if not versions:
        console.print("This folder was never nudged.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("version", "made", "modes", "metric", "before", "after", "moved"):
        table.add_column(heading)
    for each in versions:
        figures = f"{each.before:.3f}", f"{each.after:.3f}", str(each.moved)
        table.add_row(str(each.number), each.made[:16], ", ".join(each.asked.modes), each.asked.metric, *figures)
    console.print(table)
    held = f"version {nudger.version}" if nudger.version else "every vector as it was encoded"
    console.print(f"The index holds {held}.")


@app.command()
def mine(
    source: Annotated[Path, typer.Argument(help="A BEIR folder, or a .jsonl, .json or .tsv file of examples.")],
    out: Annotated[Path, typer.Argument(help="Where the examples go, such as mined.jsonl; packed if it ends in .gz.")],
    index: Annotated[
        Path | None, typer.Option(help="The index to mine from; none takes the passages of the source.")
    ] = None,
    negatives: Annotated[int, typer.Option(help="How many a question gets.")] = 7,
    first: Annotated[int, typer.Option(help="The best rank to take one from.")] = 1,
    last: Annotated[int, typer.Option(help="The worst.")] = 100,
    margin: Annotated[
        float | None, typer.Option(help="Leave out what scores above the positive less this share of its score.")
    ] = None,
    flag_embedding: Annotated[
        bool, typer.Option("--flag-embedding", help="Name the fields as FlagEmbedding reads them.")
    ] = False,
    model: Model = "m3-mini",
) -> None:
    """Find hard negatives: passages that the hybrid retriever ranks high for a question and that do not answer it."""
    from m3_integrations import M3Encoder
    from m3_integrations.training.data import read_source
    from m3_integrations.training.finetuning import retriever_over
    from m3_integrations.training.mining import Margin, Mining, mine_each, write_mined

    if index is not None:
        _require_index(index)
    asked = Mining(negatives, first, last, None if margin is None else Margin(relative=margin))
    examples, encoder = read_source(source), M3Encoder.from_pretrained(model)
    with retriever_over(encoder, source, examples, index) as retriever:
        fields: Any = "flag_embedding" if flag_embedding else "m3"
        report = write_mined(out, mine_each(examples, retriever, asked), fields)
    console.print(str(report))


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    sources: Annotated[list[Path], typer.Argument(help="BEIR folders or files of examples, as `m3 mine` writes them.")],
    model: Model = "m3-mini",
    pairs: Annotated[
        list[Path] | None, typer.Option(help="Pairs for a first stage, dense and contrastive; may be repeated.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="A BEIR folder whose dev questions choose the best model.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Batches to learn from, in each stage; epochs otherwise.")] = None,
    epochs: Annotated[int, typer.Option(help="How often each example is learned from.")] = 1,
    warm_up: Annotated[int, typer.Option(help="Steps in which the heads learn alone, before all do.")] = 0,
    parts: Annotated[str, typer.Option(help="What learns.")] = "encoder,sparse,multi_vector",
    low_rank: Annotated[int | None, typer.Option(help="The rank of an update in the place of the encoder.")] = None,
    rows: Annotated[int | None, typer.Option(help="Questions of a batch at most.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens of a batch at most.")] = 16384,
    negatives: Annotated[int, typer.Option(help="Hard negatives that a question brings at most.")] = 3,
    learning_rate: Annotated[float | None, typer.Option(help="Of the encoder; 1e-5, or 2e-4 of a low rank.")] = None,
    temperature: Annotated[float, typer.Option(help="Of the softmax over scores.")] = 0.02,
    metric: Annotated[str, typer.Option(help="What the best model is chosen by.")] = "ndcg@10",
    seed: Annotated[int, typer.Option(help="All that is drawn follows from it.")] = 0,
) -> None:
    """Teach a model from examples, in all modes; called again after a stop, it goes on. For several GPUs: torchrun."""
    from m3_integrations.core.extras import need

    need("accelerate", extra="train")
    from m3_integrations.evaluation.beir import read_beir
    from m3_integrations.training.data import read_source
    from m3_integrations.training.sampling import Sampling
    from m3_integrations.training.stages import contrastive, unified
    from m3_integrations.training.stages import warm_up as warmed_up
    from m3_integrations.training.train import train as trained
    from m3_integrations.training.trainer import Loop
    from m3_integrations.training.watching import Validation

    labelled = {str(path): read_source(path) for path in sources}
    sampling = Sampling(tokens=tokens, rows=rows, negatives=negatives, seed=seed)
    learning: Any = tuple(part.strip() for part in parts.split(","))
    common = {"temperature": temperature, "low_rank": low_rank, "learning_rate": learning_rate}
    stages = [unified(labelled, steps=steps, epochs=epochs, parts=learning, sampling=sampling, **common)]
    if warm_up:
        stages.insert(0, warmed_up(labelled, steps=warm_up, temperature=temperature, sampling=sampling))
    if pairs:
        alone = Sampling(tokens=tokens, rows=rows, negatives=0, seed=seed)
        unlabelled = {str(path): read_source(path) for path in pairs}
        stages.insert(0, contrastive(unlabelled, steps=steps, epochs=epochs, sampling=alone, **common))
    checked = None if validation is None else Validation(read_beir(validation, "dev"), metric)
    console.print(str(trained(model, stages, out, validation=checked, loop=Loop(seed=seed, show_progress=True))))


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


def _print_metrics(
    metrics: Mapping[str, Mapping[str, float]], title: str, before: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    table = Table(title=title)
    table.add_column("plan")
    for metric in next(iter(metrics.values())):
        table.add_column(metric, justify="right")
    for plan, values in metrics.items():
        known = (before or {}).get(plan, {})
        table.add_row(plan, *(_changed(value, known.get(metric)) for metric, value in values.items()))
    console.print(table)


def _changed(value: float, before: float | None) -> str:
    return f"{value:.3f}" if before is None else f"{value:.3f} ({value - before:+.3f})"

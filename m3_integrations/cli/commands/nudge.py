"""`m3 nudge`: fit, list and revert nudges of an index."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from m3_integrations.cli.commands.tuning import check_rank_metric
from m3_integrations.cli.opening import load_encoder, require_index
from m3_integrations.cli.options import Folder, IndexModel, UsageError, parse_modes, prepare_output
from m3_integrations.cli.output import CommandResult, table, terminal

if TYPE_CHECKING:
    from m3_integrations import LocalIndex, M3Encoder, NudgeReport, SearchPlan
    from m3_integrations.core.encoded import Mode
    from m3_integrations.data import QuerySplits
    from m3_integrations.nudging.ledger import Version

METHODS = ("auto", "nudge-n", "nudge-m")
JudgedFiles: TypeAlias = Annotated[
    list[Path] | None,
    typer.Argument(
        help="A BEIR folder (its train, dev and test); or a file of queries and one of TREC or BEIR qrels; or a "
        "click log (.jsonl, .csv, .tsv); or a question-answer dataset (.json). Files are split by --seed."
    ),
]


def nudge(
    folder: Folder,
    judged: JudgedFiles = None,
    from_feedback: Annotated[
        bool, typer.Option("--from-feedback", help="Learn from the feedback recorded by m3 serve and m3 mcp.")
    ] = False,
    modes: Annotated[str, typer.Option(help="Modes to nudge, such as dense,multi_vector; all by default.")] = "",
    metric: Annotated[str, typer.Option(help="ndcg@k, recall@k, mrr@k, precision@k or accuracy@k.")] = "ndcg@10",
    method: Annotated[
        str,
        typer.Option(help="For dense vectors: nudge-n keeps lengths, nudge-m does not; auto may move nothing."),
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write an HTML report with charts, such as report.html.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Nudge a temporary copy of the index.")] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Restore every original vector.")] = False,
    to: Annotated[int | None, typer.Option(min=0, help="Switch to this version; 0 is the original vectors.")] = None,
    versions: Annotated[bool, typer.Option("--versions", help="List the versions.")] = False,
    forget_before: Annotated[
        str | None,
        typer.Option(help="Delete the questions and feedback recorded before this date, such as 2026-01-31."),
    ] = None,
    half_life: Annotated[float | None, typer.Option(help="Days after which the weight of a click halves.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split into training, validation and test.")] = 0,
    model: IndexModel = None,
) -> CommandResult:
    """Learn from judged questions. Vectors of passages move towards the questions they answer; --revert undoes it."""
    from m3_integrations import LocalIndex, Nudger
    from m3_integrations.data import load_judged_queries

    moment = _parse_date(forget_before)
    tasks = [bool(judged), from_feedback, revert, to is not None, versions, moment is not None]
    _require_one_task(sum(tasks))
    _check_fit(metric, method)
    nudged = parse_modes(modes)
    require_index(folder)
    prepare_output(out)
    queries = load_judged_queries(judged, seed=seed, half_life=half_life) if judged else None
    encoder = load_encoder(folder, model)
    report, message, fitted, tables, forgotten = None, None, None, None, None
    with TemporaryDirectory() as temporary:
        location = copytree(folder, Path(temporary) / "index") if dry_run else folder
        with LocalIndex.open(location, encoder) as index, closing(Nudger(encoder, index)) as nudger:
            if from_feedback or queries is not None:
                report, message = _learn(encoder, index, queries, nudged, metric, method, seed)
            elif moment is not None:
                forgotten = nudger.forget_queries(moment)
            elif not versions:
                nudger.revert(to)
            if report is not None:
                fitted, tables = _report_to_json(report), report.__rich__()  # its outcomes come from the open index
                fitted["warnings"] += _warn_of_few(sum(map(len, queries))) if queries else []
                if out is not None:
                    report.render(out, index)
            known, version = nudger.versions(), nudger.version

    data = {"version": version, "versions": [_version_to_json(each) for each in known], "dry_run": dry_run}
    told = {"forgotten": forgotten, "report": fitted, "message": message}
    note = "Dry run: the index itself is unchanged." if dry_run else None
    texts = [each for each in (tables, message, note) if each is not None]
    show = partial(_print, texts, out if fitted else None, forgotten, known, version)
    return CommandResult({"index": str(folder), **data, **told}, show)


def _require_one_task(given: int) -> None:
    if given != 1:
        raise UsageError(
            f"give exactly one task, got {given}: m3 nudge INDEX JUDGED... or --from-feedback to nudge, --revert or "
            "--to N to switch versions, --versions to list them, --forget-before DATE to delete questions"
        )


def _parse_date(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--forget-before {text!r} is no date; write it as 2026-01-31 or 2026-01-31T12:00") from None


def _check_fit(metric: str, method: str) -> None:
    if method not in METHODS:
        raise UsageError(f"--method is auto, nudge-n or nudge-m, got {method!r}")
    check_rank_metric(metric)


def _learn(
    encoder: M3Encoder,
    index: LocalIndex,
    queries: QuerySplits | None,
    modes: Sequence[Mode] | None,
    metric: str,
    method: str,
    seed: int,
) -> tuple[NudgeReport | None, str | None]:
    """Nudge by queries, or by the feedback of the index; return the report, None if there is too little, and a text."""
    from m3_integrations import Nudger
    from m3_integrations.nudging.feedback import ENOUGH_QUESTIONS, LEAST_QUESTIONS, Feedback

    named_method: Any = method
    if queries is None:
        nudged = modes or encoder.modes & index.modes
        learned = Feedback(encoder, index).learn(modes=nudged, metric=metric, method=named_method, seed=seed)
        return learned.report, learned.message
    count = sum(map(len, queries))
    if count < LEAST_QUESTIONS and method == "auto":
        wanted = f"give at least {LEAST_QUESTIONS}, better {ENOUGH_QUESTIONS} or more"
        return None, f"{count} judged questions are too few to learn from, and nothing was moved; {wanted}"
    train, validation, test = queries
    plan, weighted = _plan_and_modes(encoder, index, modes)
    with closing(Nudger(encoder, index, plan)) as nudger:
        report = nudger.fit(train, validation, test=test, modes=weighted, metric=metric, method=named_method)
    return report, None


def _plan_and_modes(
    encoder: M3Encoder, index: LocalIndex, named: Sequence[Mode] | None
) -> tuple[SearchPlan | None, Sequence[Mode]]:
    """Return the plan to fit and judge by, and the modes to nudge: those named, otherwise all that it weights.

    It is the plan of the index, unless a nudge chose that or it leaves out a mode named.
    """
    from m3_integrations import Nudger

    with closing(Nudger(encoder, index)) as nudger:
        plan = nudger.stated_plan
    if plan is not None and plan.weights is not None:
        weighted = [mode for mode, weight in plan.weights.items() if weight]
        if {*(named or ())} <= {*weighted}:
            return plan, named or weighted
    return None, named or [*(encoder.modes & index.modes)]


def _warn_of_few(count: int) -> list[str]:
    """Warn of too few judged questions; return the warning as a list."""
    from m3_integrations.nudging.feedback import ENOUGH_QUESTIONS

    if count >= ENOUGH_QUESTIONS:
        return []
    warning = f"{count} judged questions are too few to learn from reliably; give {ENOUGH_QUESTIONS} or more"
    terminal.warn(warning)
    return [warning]


def _version_to_json(version: Version) -> dict[str, Any]:
    options = {"modes": list(version.options.modes), "metric": version.options.metric, "weights": dict(version.weights)}
    figures = {"before": version.before, "after": version.after, "moved": version.moved}
    return {"version": version.number, "made": version.made, **options, **figures}


def _report_to_json(report: NudgeReport) -> dict[str, Any]:
    from m3_integrations.nudging.report.html import outcome_rows

    figures = {"metric": report.metric, "before": report.before, "after": report.after}
    outcomes = [row._asdict() for row in outcome_rows(report)]
    moves = {mode: move.moved for mode, move in report.moves.items()}
    return {**figures, "outcomes": outcomes, "moved": moves, "warnings": list(report.warnings)}


def _print(
    texts: Sequence[Any], out: Path | None, forgotten: int | None, versions: Sequence[Version], current: int
) -> None:
    for text in texts:
        terminal.print(text)
    if out is not None:
        terminal.print("Report with charts: ", (str(out), "bold"))
    if forgotten is not None:
        terminal.print(f"{forgotten:,} questions and judgements forgotten.")
    _print_versions(versions, current)


def _print_versions(versions: Sequence[Version], current: int) -> None:
    """Print the nudge versions of an index, and which one it holds."""
    if not versions:
        terminal.print("This index has never been nudged.")
        return
    rows = table("version", "made", "modes", "metric", "before", "after", "moved")
    for each in versions:
        figures = f"{each.before:.3f}", f"{each.after:.3f}", str(each.moved)
        rows.add_row(str(each.number), each.made[:16], ", ".join(each.options.modes), each.options.metric, *figures)
    terminal.print(rows)
    terminal.print(f"The index holds {f'version {current}' if current else 'the original vectors'}.")

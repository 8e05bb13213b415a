"""`m3 tune` and `m3 calibrate`: a search plan chosen on judged questions, and what its scores mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3_integrations.cli.opening import load_encoder, require_index
from m3_integrations.cli.options import Folder, IndexModel, UsageError, check_k
from m3_integrations.cli.output import CommandResult, describe_plan, terminal

if TYPE_CHECKING:
    from m3_integrations import SearchPlan
    from m3_integrations.nudging import PlanTuning

JudgedFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="JUDGED",
        help="A BEIR folder; a file of queries and one of TREC or BEIR qrels; a click log (.jsonl, .csv, .tsv); or a "
        "question-answer dataset (.json).",
    ),
]
ChoiceSplit = Annotated[str, typer.Option(help="Split of a BEIR folder.")]


def tune(
    folder: Folder,
    judged: JudgedFiles = None,
    split: ChoiceSplit = "dev",
    metric: Annotated[str, typer.Option(help="ndcg@k, recall@k, mrr@k, precision@k or accuracy@k.")] = "ndcg@10",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the plan of the index as it is.")] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Restore the plan from before.")] = False,
    model: IndexModel = None,
) -> CommandResult:
    """Choose mode weights and candidates. The plan of the index changes if the cross-validated gain is significant."""
    from m3_integrations import LocalIndex
    from m3_integrations.data import load_queries
    from m3_integrations.nudging import choose_plan, revert_tuning, tune

    if bool(judged) == revert:
        raise UsageError("give either judged questions, m3 tune INDEX JUDGED..., or --revert")
    check_rank_metric(metric)
    require_index(folder)
    queries = load_queries(judged, split) if judged else []
    encoder = load_encoder(folder, model)
    with LocalIndex.open(folder, encoder) as index:
        if revert:
            return _reverted(folder, revert_tuning(encoder, index))
        return _result(folder, (choose_plan if dry_run else tune)(encoder, index, queries, metric=metric), dry_run)


def calibrate(
    folder: Folder,
    judged: JudgedFiles = None,
    split: ChoiceSplit = "dev",
    precision: Annotated[
        float | None,
        typer.Option(help="Least precision of what the threshold keeps; by default it has the best F1."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="logistic, for tens of judgements and more, or isotonic, for thousands.")
    ] = "logistic",
    k: Annotated[int, typer.Option("--k", "-k", help="Matches per question to learn from.")] = 100,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the calibration.")] = False,
    model: IndexModel = None,
) -> CommandResult:
    """Learn what scores mean. Probabilities and a threshold are stored with the index, for search --min-relevance."""
    from m3_integrations import LocalIndex
    from m3_integrations.data import load_queries
    from m3_integrations.retrieval import calibrate_plan

    if bool(judged) == remove:
        raise UsageError("give either judged questions, m3 calibrate INDEX JUDGED..., or --remove")
    if method not in ("logistic", "isotonic"):
        raise UsageError(f"--method is logistic or isotonic, got {method!r}")
    if precision is not None and not 0 < precision <= 1:
        raise UsageError(f"--precision is above 0 and at most 1, got {precision:g}")
    check_k(k)
    require_index(folder)
    if remove:
        return _uncalibrated(folder)
    queries = load_queries(judged or [], split)
    encoder = load_encoder(folder, model)
    named: Any = method
    with LocalIndex.open(folder, encoder) as index:
        fitted = calibrate_plan(encoder, index, queries, method=named, precision=precision, k=k)
    kept = {"precision": fitted.threshold.precision, "recall": fitted.threshold.recall}
    threshold = fitted.plan.calibration.threshold if fitted.plan.calibration is not None else None
    data = {
        "index": str(folder),
        "questions": fitted.queries,
        "matches": fitted.matches,
        "threshold": threshold,
        **kept,
    }

    def show() -> None:
        terminal.print(f"{fitted.queries} questions with {fitted.matches} matches: matches are worth keeping from a")
        terminal.print(
            f"probability of {threshold:.3f} on, with precision {kept['precision']:.3f} and recall {kept['recall']:.3f}"
        )
        terminal.note(f"m3 search {folder} QUESTION --min-relevance auto leaves out the others")

    return CommandResult(data, show)


def _uncalibrated(folder: Path) -> CommandResult:
    from m3_integrations import LocalIndex

    with LocalIndex.open(folder) as index:
        if index.plan is None or index.plan.calibration is None:
            raise ValueError(f"{folder} is not calibrated; there is nothing to remove")
        index.plan = replace(index.plan, calibration=None)
    unknown = dict.fromkeys(("questions", "matches", "threshold", "precision", "recall"))
    return CommandResult({"index": str(folder), **unknown}, lambda: terminal.print("The calibration is removed."))


def check_rank_metric(metric: str) -> None:
    """Check the name of a metric that nudging and tuning maximize.

    Raises:
        UsageError: If it is unknown.
    """
    from m3_integrations.nudging.selection.rank_metric import RankMetric

    try:
        RankMetric.of(metric)
    except ValueError as error:
        raise UsageError(f"--metric: {error}") from error


def _result(folder: Path, tuning: PlanTuning, dry_run: bool) -> CommandResult:
    figures = {"before": tuning.before, "after": tuning.after, "gain": tuning.gain, "error": tuning.error}
    counts = {"metric": tuning.metric, "questions": tuning.queries}
    changes = {"changed": tuning.is_changed and not dry_run, "dry_run": dry_run}
    plans = {"plan": _plan_to_json(tuning.plan), "previous": _plan_to_json(tuning.previous)}

    def show() -> None:
        gain = f"{tuning.gain:+.4f} (standard error {tuning.error:.4f})"
        terminal.print(f"cross-validated gain in {tuning.metric}: {gain}, {tuning.queries} questions")
        if not tuning.is_changed:
            terminal.print("The gain is not significant: the plan stays as it is.")
            return
        terminal.print(f"on these questions: {tuning.before:.4f} before, {tuning.after:.4f} after")
        terminal.print("plan: " + describe_plan(tuning.plan.to_json()))
        terminal.print("Dry run: the index is unchanged." if dry_run else "m3 tune --revert restores the plan before.")

    return CommandResult({"index": str(folder), **counts, **figures, **changes, **plans}, show)


def _reverted(folder: Path, plan: SearchPlan | None) -> CommandResult:
    def show() -> None:
        terminal.print("restored: " + ("no plan, as before" if plan is None else describe_plan(plan.to_json())))

    unknown = dict.fromkeys(("metric", "questions", "before", "after", "gain", "error"))
    plans = {"plan": _plan_to_json(plan), "previous": None}
    return CommandResult({"index": str(folder), **unknown, "changed": True, "dry_run": False, **plans}, show)


def _plan_to_json(plan: SearchPlan | None) -> dict[str, Any] | None:
    return None if plan is None else plan.to_json()

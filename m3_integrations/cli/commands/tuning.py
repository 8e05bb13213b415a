"""`m3 tune`: a search plan chosen on judged questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3_integrations.cli.opening import load_encoder, require_index
from m3_integrations.cli.options import Folder, IndexModel, UsageError
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

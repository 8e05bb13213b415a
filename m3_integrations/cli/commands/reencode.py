"""`m3 reencode`: another model for an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3_integrations.cli.commands.tuning import ChoiceSplit, JudgedFiles, check_rank_metric
from m3_integrations.cli.opening import load_encoder, model_of_index, require_index
from m3_integrations.cli.options import Folder, UsageError
from m3_integrations.cli.output import CommandResult, terminal
from m3_integrations.cli.progress import ingest_progress

if TYPE_CHECKING:
    from m3_integrations import Query
    from m3_integrations.nudging import Reencoding


def reencode(
    folder: Folder,
    judged: JudgedFiles = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The new model: a local folder, a hub id, or m3-mini.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Switch although judged questions lose.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Go back to the former model.")] = False,
    split: ChoiceSplit = "dev",
    metric: Annotated[str, typer.Option(help="ndcg@k, recall@k, mrr@k, precision@k or accuracy@k.")] = "ndcg@10",
) -> CommandResult:
    """Encode an index with another model. It serves meanwhile, and switches unless judged questions lose."""
    from m3_integrations.data import load_queries

    if undo == (model is not None) or (undo and (judged or force)):
        raise UsageError("give either a new model, m3 reencode INDEX --model MODEL, or --undo")
    check_rank_metric(metric)
    require_index(folder)
    if model is None:
        return _undo(folder)
    result = _reencode(folder, model, load_queries(judged, split) if judged else None, metric, force)
    figures = {"metric": result.metric, "questions": result.queries, "before": result.before, "after": result.after}
    changes = {"fitted": result.is_fitted, "switched": result.is_switched, "undone": False}
    data = {"index": str(folder), "model": model, "passages": result.passages, **figures, **changes}
    return CommandResult(data, lambda: _show(folder, model, result), failed=not result.is_switched)


def _reencode(folder: Path, model: str, queries: Sequence[Query] | None, metric: str, force: bool) -> Reencoding:
    """Encode an index with another model.

    Raises:
        KeyboardInterrupt: With a message that says how to go on.
    """
    from m3_integrations import LocalIndex, M3Encoder
    from m3_integrations.nudging import reencode

    encoder, new_encoder = load_encoder(folder, None), M3Encoder.from_pretrained(model)
    with LocalIndex.open(folder) as index:
        total, is_former = len(index), index.encoder[0] in encoder.former_fingerprints
    try:
        with ingest_progress(total) as on_progress:
            former = None if is_former else encoder
            return reencode(
                folder, former, new_encoder, queries=queries, metric=metric, force=force, on_progress=on_progress
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted: the index is unchanged; run the same command again to go on with the encoded passages"
        ) from None


def _undo(folder: Path) -> CommandResult:
    from m3_integrations import LocalIndex, M3Encoder
    from m3_integrations.nudging import undo_reencode

    former = folder.absolute().with_name(f"{folder.absolute().name}.previous")
    try:
        undo_reencode(folder)
    except ValueError:  # passages were changed since
        with LocalIndex.open(former) as previous:
            name = model_of_index(previous)
        undo_reencode(folder, M3Encoder.from_pretrained(name or "m3-mini"))
    with LocalIndex.open(folder) as index:
        name, passages = model_of_index(index), len(index)
    unknown = dict.fromkeys(("metric", "questions", "before", "after"))
    data = {"index": str(folder), "model": name, "passages": passages, **unknown}
    changes = {"fitted": False, "switched": True, "undone": True}
    return CommandResult({**data, **changes}, lambda: terminal.print(f"{folder} has the embeddings of {name} again"))


def _show(folder: Path, model: str, result: Reencoding) -> None:
    if result.before is not None and result.after is not None:
        compared = f"{result.metric} on {result.queries} judged questions: {result.before:.4f} before"
        terminal.print(f"{compared}, {result.after:.4f} with {model}")
    elif result.after is not None:
        terminal.note(
            f"{result.metric} on {result.queries} judged questions: {result.after:.4f}; the former model is gone"
        )
    else:
        terminal.note("there are no judged questions to compare with")
    if result.is_switched:
        terminal.print(f"{folder} now has the embeddings of {model}: {result.passages:,} passages")
        terminal.note("m3 reencode --undo goes back, while the folder that ends in .previous is there")
    else:
        terminal.error(f"{folder} is unchanged, because {result.metric} falls; --force switches all the same")

"""`m3 info`, `check`, `repair` and `copy`: the state of an index, its files, and its copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3_integrations.cli.opening import DEFAULT_MODEL, model_of_index, model_of_label, require_index
from m3_integrations.cli.options import Folder, IndexModel
from m3_integrations.cli.output import CommandResult, describe_plan, table, terminal

if TYPE_CHECKING:
    from m3_integrations import Encoded, LocalIndex, M3Encoder
    from m3_integrations.index.local import DamagedFile, DamagedPassage


def info(folder: Folder) -> CommandResult:
    """Describe an index. Its passages, modes, model, search plan and size."""
    from m3_integrations import LocalIndex

    require_index(folder)
    with LocalIndex.open(folder) as index:
        data = _describe(folder, index)
    data["bytes"] = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())

    def show() -> None:
        rows = table("", "")
        rows.show_header = False
        for name, value in data.items():
            is_known = value is not None and value != {}
            rows.add_row(name, _in_words(name, value) if is_known else "none")
        terminal.print(rows)

    return CommandResult(data, show)


def _describe(folder: Path, index: LocalIndex) -> dict[str, Any]:
    ids, (fingerprint, _), plan = index.ids(), index.encoder, index.plan
    return {
        "index": str(folder),
        "passages": len(ids),
        "modes": _dimensions(index.vectors(ids[:1])) if ids else {},
        "model": model_of_index(index),
        "fingerprint": fingerprint,
        "plan": None if plan is None else plan.to_json(),
    }


def _dimensions(encoded: Encoded) -> dict[str, int]:
    """Return the dimension of each mode; of sparse embeddings, the size of the vocabulary."""
    from m3_integrations.index.validation import widths

    return {str(mode): int(width) for mode, width in widths(encoded).items()}


def _in_words(name: str, value: Any) -> str:
    if name == "modes":
        return ", ".join(f"{mode} ({width:,} dimensions)" for mode, width in value.items())
    if name == "plan":
        return describe_plan(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def check(folder: Folder) -> CommandResult:
    """Verify the files of an index. Lists damaged files and passages; the exit status is 1 if there are any."""
    from m3_integrations.index import check_index

    report = check_index(folder)
    files, damaged = ([each._asdict() for each in listed] for listed in (report.files, report.passages))
    data = {
        "index": str(folder),
        "passages": report.intact + len(damaged),
        "whole": report.is_whole,
        "files": files,
        "damaged": damaged,
    }

    def show() -> None:
        if report.is_whole:
            terminal.print(f"{folder} is whole: {report.intact:,} passages")
            return
        _show_damage(report.files, report.passages)
        advice = "save the intact ones in a new folder with" if report.passages else "repair it with"
        intact = f"{report.intact:,} passages are intact, {len(damaged):,} are damaged"
        terminal.print(f"{folder} is damaged: {intact}; {advice}: m3 repair {folder}")

    return CommandResult(data, show, failed=not report.is_whole)


def _show_damage(files: Sequence[DamagedFile], passages: Sequence[DamagedPassage]) -> None:
    for file in files:
        terminal.print_row(file.file, file.problem)
    for passage in passages:
        terminal.print_row("passage of unknown id" if passage.id is None else passage.id, passage.problem)


def repair(
    folder: Folder,
    target: Annotated[
        Path | None, typer.Argument(help="New folder.", show_default="the index's folder with -repaired")
    ] = None,
    reencode: Annotated[bool, typer.Option(help="Encode passages again whose vectors alone are damaged.")] = False,
    model: IndexModel = None,
) -> CommandResult:
    """Save the undamaged passages of an index in a new folder. The old folder keeps all of its data."""
    from m3_integrations import M3Encoder
    from m3_integrations.index import repair_index

    new = target or folder.with_name(f"{folder.absolute().name}-repaired")

    def encoder_of(label: str | None) -> M3Encoder:
        return M3Encoder.from_pretrained(model or model_of_label(label) or DEFAULT_MODEL)

    report = repair_index(folder, new, encoder_of if reencode else None)
    left, files = ([each._asdict() for each in listed] for listed in (report.left, report.check.files))
    data = {
        "index": str(folder),
        "target": None if report.target is None else str(report.target),
        "saved": report.saved,
        "reencoded": list(report.reencoded),
        "left": left,
        "removed": list(report.removed),
        "files": files,
    }

    def show() -> None:
        _show_damage(report.check.files, report.left)
        if report.target is None:
            terminal.print(f"{folder}: all {report.saved:,} passages are intact")
            return
        counts = [f"{report.saved:,} passages saved", f"{len(report.reencoded):,} encoded again", f"{len(left):,} left"]
        terminal.print(f"{report.target}: {', '.join(counts)}; {folder} is kept as it is")
        if any(passage.has_text for passage in report.left):
            terminal.note("some passages that are left can be encoded again: use --reencode and another new folder")

    return CommandResult(data, show, failed=bool(left))


def copy(
    source: Annotated[str, typer.Argument(help="A folder, or qdrant://host:6333/collection (qdrants:// for TLS).")],
    target: Annotated[str, typer.Argument(help="As for the source; created if missing.")],
    api_key: Annotated[str | None, typer.Option(envvar="QDRANT_API_KEY", help="API key of the Qdrant server.")] = None,
) -> CommandResult:
    """Copy an index with its vectors. Between folders and Qdrant, verified; run again to resume."""
    from m3_integrations.index import copy_location

    report = copy_location(source, target, api_key)

    def show() -> None:
        counts = f"{report.total} passages, {report.written} of them written and verified"
        terminal.print(f"{counts}: {report.checksum[:16]}")
        if report.extra:
            terminal.print(f"{target} also holds {report.extra} passages that the source does not.")

    return CommandResult({"source": source, "target": target, **report._asdict()}, show)

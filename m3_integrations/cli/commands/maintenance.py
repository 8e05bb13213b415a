"""`m3 info`, `m3 check` and `m3 copy`: the state of an index, its files, and its copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3_integrations.cli.opening import model_of_index, require_index
from m3_integrations.cli.options import Folder
from m3_integrations.cli.output import CommandResult, describe_plan, table, terminal

if TYPE_CHECKING:
    from m3_integrations import Encoded, LocalIndex


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
    """Verify the files of an index. Each is compared with its checksum; damage is an error that names the file."""
    from m3_integrations import LocalIndex

    require_index(folder)
    with LocalIndex.open(folder) as index:
        index.verify()
        total = len(index)
    data = {"index": str(folder), "passages": total, "whole": True}
    return CommandResult(data, lambda: terminal.print(f"{folder} is whole: {total:,} passages"))


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

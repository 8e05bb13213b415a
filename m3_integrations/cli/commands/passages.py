"""`m3 add`, `m3 delete` and `m3 export`: the passages of an index."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from m3_integrations.cli.commands.index import ChunkTokens, update_index
from m3_integrations.cli.opening import load_encoder, require_index
from m3_integrations.cli.options import Filter, Folder, IndexModel, UsageError, parse_filter, prepare_output, read_stdin
from m3_integrations.cli.output import CommandResult, terminal, to_json_line
from m3_integrations.cli.sources import Sources, read_sources

if TYPE_CHECKING:
    from m3_integrations import LocalIndex, Passage

NAMED = 3  # ids that a message names
PASSAGES_AT_ONCE = 256


def add(
    folder: Folder,
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE", help="As for m3 index; without sources, --id and --text.")
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="Id of a passage.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Its text.")] = None,
    chunk_tokens: ChunkTokens = None,
    model: IndexModel = None,
) -> CommandResult:
    """Add passages to an index that exists. Those with the same id are replaced."""
    from m3_integrations import LocalIndex, Passage

    if bool(sources) == bool(id and text is not None):
        raise UsageError("give either sources, or --id and --text of one passage")
    require_index(folder)
    found = read_sources(sources, folder) if sources else Sources(held=[Passage(id or "", text or "")])
    encoder = load_encoder(folder, model)
    with LocalIndex.open(folder, encoder) as index:
        return update_index(folder, index, encoder, found, chunk_tokens=chunk_tokens)


def delete(
    folder: Folder,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids of passages or names of documents; - reads one a line from stdin."),
    ] = None,
    where: Filter = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only count the passages.")] = False,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Leave nothing of them, nor of any deleted or replaced before, in a file."),
    ] = False,
) -> CommandResult:
    """Delete passages or documents. They are named, or match a metadata filter; --purge alone purges earlier ones."""
    from m3_integrations import LocalIndex

    if (ids and where is not None) or not (ids or where is not None or purge):
        raise UsageError("give either ids of passages or --where")
    condition = parse_filter(where)
    require_index(folder)
    with LocalIndex.open(folder) as index:
        named = [] if condition is not None else list(_read_ids(ids or []))
        found, unknown = (index.ids(condition), []) if condition is not None else _find(index, named)
        if not dry_run:
            index.delete([*found, *unknown] if purge else found, purge=purge)  # the ledger may know what it does not
        total = len(index)

    def show() -> None:
        done = "would be deleted" if dry_run else "deleted and purged" if purge else "deleted"
        terminal.print(f"{len(found):,} {done}; the index holds {total:,}")
        if unknown:
            more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
            terminal.warn(f"the index has no {', '.join(map(repr, unknown[:NAMED]))}{more}")

    data = {"index": str(folder), "deleted": len(found), "unknown": unknown, "dry_run": dry_run, "passages": total}
    data["purged"] = purge and not dry_run
    return CommandResult(data, show, failed=bool(unknown))


def _read_ids(ids: Sequence[str]) -> Iterator[str]:
    for id in ids:
        if id == "-":
            yield from read_stdin()
        else:
            yield id


def _find(index: LocalIndex, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the ids that are named or belong to a document that is, and the names of neither."""
    from m3_integrations import Field

    known = index.content_hashes(names)
    others = [name for name in dict.fromkeys(names) if name not in known]
    found, unknown = [*known], []
    for name in others:
        passages = index.ids(Field("source", "==", name))
        found += passages
        if not passages:
            unknown.append(name)
    return sorted(found), unknown


def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, .gz compresses it; - is stdout.")] = Path(
        "-"
    ),
    where: Filter = None,
) -> CommandResult | None:
    """Write passages as JSON lines. m3 index reads them; m3 copy copies the vectors too."""
    from m3_integrations import LocalIndex

    condition = parse_filter(where)
    require_index(folder)
    if out != Path("-"):
        prepare_output(out)
    with LocalIndex.open(folder) as index:
        ids = index.ids(condition)
        if out == Path("-") and terminal.as_json:
            passages = [_to_json(each) for each in _passages(index, ids)]
            return CommandResult({"index": str(folder), "file": None, "passages": passages}, lambda: None)
        if out == Path("-"):
            _write(sys.stdout, _passages(index, ids))
            return None
        _write_file(out, _passages(index, ids))
    count = len(ids)
    return CommandResult(
        {"index": str(folder), "file": str(out), "passages": count},
        lambda: terminal.print(f"{count:,} passages: {out}"),
    )


def _passages(index: LocalIndex, ids: Sequence[str]) -> Iterator[Passage]:
    for start in range(0, len(ids), PASSAGES_AT_ONCE):
        yield from index.passages(ids[start : start + PASSAGES_AT_ONCE])


def _to_json(passage: Passage) -> dict[str, object]:
    return {"_id": passage.id, "text": passage.text, "metadata": dict(passage.metadata)}


def _write(file: TextIO, passages: Iterable[Passage]) -> None:
    for passage in passages:
        file.write(to_json_line(_to_json(passage), file.encoding))


def _write_file(out: Path, passages: Iterable[Passage]) -> None:
    """Write a neighbor and rename it, so that the file is complete."""
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        with (
            gzip.open(unfinished, "wt", encoding="utf-8")
            if out.suffix == ".gz"
            else unfinished.open("w", encoding="utf-8") as file
        ):
            _write(file, passages)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)

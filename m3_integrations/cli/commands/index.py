"""`m3 index`: fill an index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3_integrations.cli.opening import load_encoder, open_for_writing, require_no_index_around
from m3_integrations.cli.options import Folder, IndexModel, UsageError
from m3_integrations.cli.output import CommandResult, terminal
from m3_integrations.cli.progress import estimate_encoding, ingest_progress
from m3_integrations.cli.sources import Sources, read_sources

if TYPE_CHECKING:
    from m3_integrations import IngestReport, LocalIndex, M3Encoder, Passage
    from m3_integrations.models.backends.exported import Backend

SourceNames = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Files of passages (.jsonl, .csv, .tsv, .parquet), documents (.txt, .md, .html, .pdf, .docx), folders of "
        "documents, BEIR folders, or - for JSON lines from stdin.",
    ),
]
ChunkTokens = Annotated[
    int | None,
    typer.Option(
        "--chunk-tokens", show_default="512, or what the model reads", help="Most tokens of a passage of a document."
    ),
]

_WATCH_TIMEOUT = 500  # milliseconds after which a watch without changes comes back


def index(
    folder: Folder,
    sources: SourceNames,
    sync: Annotated[
        bool, typer.Option("--sync", help="Delete the passages of the index that none of the sources holds.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on and follow changes of the sources, until Ctrl-C.")
    ] = False,
    chunk_tokens: ChunkTokens = None,
    backend: Annotated[
        str, typer.Option(help="torch, openvino or onnx (extras); the embeddings are the same but for rounding.")
    ] = "torch",
    model: IndexModel = None,
) -> CommandResult | None:
    """Index files and folders. Unchanged passages are skipped, so that the same call resumes after an interruption."""
    require_no_index_around(folder)
    _check_chunk_tokens(chunk_tokens)
    named = _check_backend(backend)
    if watch:
        _check_watch(sources)
    with terminal.working("reading the sources"):
        found = read_sources(sources, folder)
    with terminal.working("loading the model"):
        encoder = load_encoder(folder, model, named)
    with open_for_writing(folder, encoder) as opened:
        result = update_index(folder, opened, encoder, found, chunk_tokens=chunk_tokens, sync=sync)
        if not watch:
            return result
        terminal.show("index", result)
        _watch(folder, opened, encoder, sources, set(found.documents), chunk_tokens)
    return None


def update_index(
    folder: Path,
    index: LocalIndex,
    encoder: M3Encoder,
    found: Sources,
    *,
    chunk_tokens: int | None = None,
    sync: bool = False,
) -> CommandResult:
    """Add the passages of sources, and delete those that their documents no longer have.

    Raises:
        KeyboardInterrupt: With a message that says what was kept.
    """
    seen: set[str] = set()
    with terminal.working("splitting documents and timing a sample"):
        documents = found.split_documents(encoder, chunk_tokens)
        estimate = None if terminal.quiet else estimate_encoding(encoder, index, chain(found.passages(), documents))
    if estimate is not None:
        terminal.note(f"this takes {estimate}")
    passages = _note_ids(chain(found.passages(), documents), seen)
    report = _ingest(index, encoder, passages, found.rows + len(found.held) + len(documents))
    stale = _stale_ids(index, found, seen, sync=sync)
    index.delete(stale)
    return _summary(folder, index, report, len(stale), found.unreadable)


def _ingest(index: LocalIndex, encoder: M3Encoder, passages: Iterator[Passage], total: int) -> IngestReport:
    from m3_integrations import ingest

    try:
        with ingest_progress(total) as on_progress:
            return ingest(encoder, index, passages, on_progress=on_progress)
    except KeyboardInterrupt:
        kept = len(index)
        advice = (
            f"the index keeps {kept:,} passages; run the same command again to go on" if kept else "nothing is kept"
        )
        raise KeyboardInterrupt(f"interrupted: {advice}") from None


def _note_ids(passages: Iterator[Passage], seen: set[str]) -> Iterator[Passage]:
    for passage in passages:
        seen.add(passage.id)
        yield passage


def _stale_ids(index: LocalIndex, found: Sources, seen: set[str], *, sync: bool) -> list[str]:
    """Return the ids that the documents no longer have; with sync, all that were not seen."""
    from m3_integrations import Field

    held = index.ids() if sync else index.ids(Field("source", "in", list(found.documents)))
    return [id for id in held if id not in seen and not found.is_unread(id.rpartition("#")[0])]


def _summary(
    folder: Path, index: LocalIndex, report: IngestReport, deleted: int, unreadable: Sequence[str]
) -> CommandResult:
    counts = {"added": report.added, "replaced": report.replaced, "unchanged": report.unchanged}
    others = {"superseded": report.superseded, "deleted": deleted}
    shown = counts | {name: count for name, count in others.items() if count}
    total = len(index)
    changes = ", ".join(f"{count:,} {name}" for name, count in shown.items())

    def show() -> None:
        terminal.print(f"{changes}; the index holds {total:,}")
        if report.superseded:
            terminal.warn(f"{report.superseded} passages were superseded by later ones with the same id")
        if unreadable:
            count = "1 file or folder" if len(unreadable) == 1 else f"{len(unreadable)} files or folders"
            terminal.warn(f"{count} could not be read; passages that the index has of them are kept")

    data = {"index": str(folder), **counts, **others, "unreadable": list(unreadable), "passages": total}
    return CommandResult(data, show, failed=bool(unreadable))


def _check_chunk_tokens(chunk_tokens: int | None) -> None:
    if chunk_tokens is not None and chunk_tokens < 1:
        raise UsageError(f"--chunk-tokens must be at least 1, got {chunk_tokens}")


def _check_backend(backend: str) -> Backend:
    from m3_integrations.core.optional import import_optional

    if backend not in ("torch", "openvino", "onnx"):
        raise UsageError(f"--backend is torch, openvino or onnx, got {backend!r}")
    if backend != "torch":
        import_optional("openvino" if backend == "openvino" else "onnxruntime", extra=backend)
    known: Any = backend
    return known  # type: ignore[no-any-return]  # one of the three


def _check_watch(sources: Sequence[str]) -> None:
    from m3_integrations.core.optional import import_optional

    if "-" in sources:
        raise UsageError("--watch follows files and folders, not stdin; leave out -")
    import_optional("watchfiles", extra="files")


def _watch(
    folder: Path,
    index: LocalIndex,
    encoder: M3Encoder,
    sources: Sequence[str],
    names: set[str],
    chunk_tokens: int | None,
) -> None:
    """Update the index after every change of the sources, until Ctrl-C."""
    from m3_integrations import Field
    from m3_integrations.core.optional import import_optional

    watch: Any = import_optional("watchfiles", extra="files").watch
    changes = watch(*sources, raise_interrupt=False, yield_on_timeout=True, rust_timeout=_WATCH_TIMEOUT)
    for number, changed in enumerate(changes):
        if number == 0:
            terminal.note(f"watching {', '.join(sources)}; stop with Ctrl-C")
        elif not changed:
            continue  # but the first time, for what changed before the watch began
        try:
            found = read_sources(sources, folder)
        except (OSError, ValueError) as error:
            terminal.warn(str(error))
            continue
        vanished = sorted(name for name in names - {*found.documents} if not found.is_unread(name))
        gone = index.ids(Field("source", "in", vanished))
        index.delete(gone)
        names |= set(found.documents)
        result = update_index(folder, index, encoder, found, chunk_tokens=chunk_tokens)
        if changed or gone or any(result.data[each] for each in ("added", "replaced", "deleted")):
            terminal.show("index", result)

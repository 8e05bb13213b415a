"""Resumable encoding of a corpus by many workers, into a folder of Parquet files.

Each part is written atomically and records a digest of its input. So each passage is encoded once, and an interrupted
run that is repeated with the same passages gives the same files as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from m3_integrations.core.encoded import Encoded, Mode, Modes
from m3_integrations.core.errors import WrongEncoder
from m3_integrations.core.types import Passage
from m3_integrations.distributed.executors import Executor, InProcess
from m3_integrations.distributed.parquet import INPUT_DIGEST, read_part, read_part_metadata, write_part
from m3_integrations.encoders.base import Encoder
from m3_integrations.encoders.m3 import M3Encoder
from m3_integrations.index.base import Index, content_hash

_FILE_NAME = "part-{:06d}.parquet"


class EncodeReport(NamedTuple):
    """Result of `encode_corpus`.

    Attributes:
        passages: Number of distinct passages in the folder.
        parts: Number of files in the folder.
        encoded: Number of files written by this run; the others existed.
    """

    passages: int
    parts: int
    encoded: int


class CorpusPart(NamedTuple):
    """Passages of one file and their embeddings, row by row."""

    passages: list[Passage]
    encoded: Encoded


def encode_corpus(
    passages: Iterable[Passage],
    folder: str | PathLike[str],
    model: str | Encoder = "m3-mini",
    *,
    modes: Modes | None = None,
    part: int = 1000,
    workers: Executor | None = None,
) -> EncodeReport:
    """Encode a stream of passages into Parquet files, in the order of the stream.

    Files that exist and were made from the same passages by the same model are kept. Repeated passages are skipped.

    Args:
        passages: Passages.
        folder: Folder to write to, created if missing.
        model: Model name as in `M3Encoder.from_pretrained`, loaded once per worker; or an encoder, which is pickled.
        modes: Modes to encode; None for all of the encoder's.
        part: Passages per file.
        workers: `ProcessPool()` or `RayActors()`; by default this process.

    Returns:
        Numbers of passages and files.

    Raises:
        ValueError: If two passages with the same id differ, or `part` is below 1.
        WrongEncoder: If the folder has parts of another encoder.
        MissingExtra: If pyarrow or Ray is not installed.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    chosen = None if modes is None else sorted(modes)
    counts: list[int] = []
    name = model if isinstance(model, str) else model.fingerprint
    missing = _missing_parts(_split(_distinct(passages), part), path, f"{name} {chosen}", counts)
    executor = workers or InProcess()
    encoded = sum(1 for _ in executor.map(partial(_load_encoder, model), partial(_encode_part, chosen), missing))
    _require_one_encoder([path / _FILE_NAME.format(i) for i in range(len(counts))])
    return EncodeReport(sum(counts), len(counts), encoded)


def read_corpus(folder: str | PathLike[str]) -> Iterator[CorpusPart]:
    """Read a folder written by `encode_corpus`, one file at a time.

    Args:
        folder: The folder.

    Returns:
        Passages with their embeddings, file by file.
    """
    for file in sorted(Path(folder).glob("part-*.parquet")):
        yield CorpusPart(*read_part(file))


def ingest_sharded(folder: str | PathLike[str], index: Index) -> int:
    """Add the passages of a folder written by `encode_corpus` to an index, one file at a time.

    Passages that the index holds with the same content are skipped, so an interrupted call can be repeated.

    Args:
        folder: Folder written by `encode_corpus`.
        index: Index to add to.

    Returns:
        Number of passages added.

    Raises:
        WrongEncoder: If the folder has parts of several encoders.
    """
    _require_one_encoder(sorted(Path(folder).glob("part-*.parquet")))
    added = 0
    for passages, encoded in read_corpus(folder):
        known = index.content_hashes([each.id for each in passages])
        new = [row for row, each in enumerate(passages) if known.get(each.id) != content_hash(each)]
        index.add([passages[row] for row in new], encoded.take(new))
        added += len(new)
    return added


def passages_of(dataset: Any) -> Iterator[Passage]:
    """Yield the rows of a Ray dataset as passages, in order.

    For example, `encode_corpus(passages_of(ray.data.read_json("s3://bucket/corpus")), ...)`.

    Args:
        dataset: A `ray.data.Dataset` with the columns id, text and, optionally, metadata.

    Raises:
        ValueError: If a row has no id or no text.
    """
    # In another order, each run would form other parts and find none of those of the run before.
    dataset.context.execution_options.preserve_order = True
    for row in dataset.iter_rows():
        if "id" not in row or "text" not in row:
            raise ValueError(f"a passage needs the columns id and text, got {sorted(row)}; rename them first")
        yield Passage(row["id"], row["text"], row.get("metadata") or {})


class _MissingPart(NamedTuple):
    """A part to encode."""

    file: Path
    passages: Sequence[Passage]
    input_digest: str


def _missing_parts(
    parts: Iterable[Sequence[Passage]], folder: Path, model: str, counts: list[int]
) -> Iterator[_MissingPart]:
    """Yield the parts whose file is missing or outdated, and append the size of every part to `counts`."""
    for number, passages in enumerate(parts):
        counts.append(len(passages))
        file, digest = folder / _FILE_NAME.format(number), _input_digest(passages, model)
        if not file.exists() or read_part_metadata(file)[INPUT_DIGEST] != digest:
            yield _MissingPart(file, passages, digest)


def _encode_part(modes: Sequence[Mode] | None, encoder: Encoder, missing: _MissingPart) -> None:
    encoded = encoder.encode_passages([each.text for each in missing.passages], modes)
    write_part(missing.file, missing.passages, encoded, encoder.fingerprint, missing.input_digest)


def _load_encoder(model: str | Encoder) -> Encoder:
    return M3Encoder.from_pretrained(model) if isinstance(model, str) else model


def _distinct(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Yield each passage once."""
    seen: dict[str, bytes] = {}
    for passage in passages:
        content = bytes.fromhex(content_hash(passage))
        if seen.setdefault(passage.id, content) != content:
            raise ValueError(f"two passages with the id {passage.id!r} have different contents; ids must be unique")
        if seen[passage.id] is content:
            yield passage


def _split(passages: Iterator[Passage], size: int) -> Iterator[list[Passage]]:
    if size < 1:
        raise ValueError(f"part must be at least 1, got {size}")
    while part := list(islice(passages, size)):
        yield part


def _input_digest(passages: Sequence[Passage], model: str) -> str:
    text = "\0".join([model, *(part for each in passages for part in (each.id, content_hash(each)))])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _require_one_encoder(files: Sequence[Path]) -> None:
    by_fingerprint = {read_part_metadata(file)["fingerprint"]: file for file in files}
    if len(by_fingerprint) > 1:
        (one, first), (other, second) = list(by_fingerprint.items())[:2]
        raise WrongEncoder(
            f"{first} was encoded by the encoder {one[:12]} and {second} by {other[:12]}; encode into a new folder"
        )

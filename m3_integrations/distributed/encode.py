"""encode_corpus(): a stream of passages into a folder of Parquet files, by many workers; killed, it goes on.

A part is written whole or not at all, and says what it was made of. So each passage is encoded once, and a run that was
broken off, begun again with the same passages, leaves the files of one that was not.
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
from m3_integrations.distributed.parquet import MADE_OF, about, read_part, write_part
from m3_integrations.encoders.base import Encoder
from m3_integrations.encoders.m3 import M3Encoder
from m3_integrations.index.base import Index, content_hash

_NAME = "part-{:06d}.parquet"


class EncodeReport(NamedTuple):
    """passages: in the folder, each once. parts: its files, of which `encoded` were made now; the rest were there."""

    passages: int
    parts: int
    encoded: int


class CorpusPart(NamedTuple):
    """A file's passages, and their vectors row by row."""

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
    """Encode a stream of passages into Parquet files of `part` passages each, in the order in which they come.

    model: as in `M3Encoder.from_pretrained`, loaded once a worker; or an encoder, which travels to them. modes: None is
    all of the encoder's. workers: `Processes()` or `OnRay()`; None: here. A passage that comes again is passed over.
    A file that is there and was made of the same passages, by a model of the same name or the same encoder, is kept.
    Raises ValueError where an id comes again with another content, WrongEncoder where a model of the same name turned
    out to be another, MissingExtra.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    chosen = None if modes is None else sorted(modes)
    counts: list[int] = []
    name = model if isinstance(model, str) else model.fingerprint
    waiting = _waiting(_parts(_once(passages), part), place, f"{name} {chosen}", counts)
    encoded = sum(1 for _ in (workers or InProcess()).map(partial(_encoder, model), partial(_encode, chosen), waiting))
    _require_one_encoder([place / _NAME.format(i) for i in range(len(counts))])
    return EncodeReport(sum(counts), len(counts), encoded)


def read_corpus(folder: str | PathLike[str]) -> Iterator[CorpusPart]:
    """What `encode_corpus` wrote, a file at a time: passages, and their vectors row by row."""
    for file in sorted(Path(folder).glob("part-*.parquet")):
        yield CorpusPart(*read_part(file))


def ingest_sharded(folder: str | PathLike[str], index: Index) -> int:
    """Add what `encode_corpus` wrote to an index, a file at a time; how many passages were added.

    Passages that the index holds with the same content are passed over, so that the same call goes on where it stopped.
    Raises WrongEncoder where the folder holds parts of several encoders.
    """
    _require_one_encoder(sorted(Path(folder).glob("part-*.parquet")))
    added = 0
    for passages, encoded in read_corpus(folder):
        there = index.content_hashes([each.id for each in passages])
        new = [row for row, each in enumerate(passages) if there.get(each.id) != content_hash(each)]
        index.add([passages[row] for row in new], encoded.take(new))
        added += len(new)
    return added


def passages_of(dataset: Any) -> Iterator[Passage]:
    """The rows of a `ray.data.Dataset` with the columns id, text and, where there is one, metadata, in their order.

    So `encode_corpus(passages_of(ray.data.read_json("s3://bucket/corpus")), ...)` reads whatever Ray Data reads.
    Raises ValueError for a row without id or text.
    """
    # In another order each run would make other parts, and find none of those of the run before.
    dataset.context.execution_options.preserve_order = True
    for row in dataset.iter_rows():
        if "id" not in row or "text" not in row:
            raise ValueError(f"a passage needs the columns id and text, got {sorted(row)}; rename them first")
        yield Passage(row["id"], row["text"], row.get("metadata") or {})


class _Waiting(NamedTuple):
    """A part that is to be made."""

    file: Path
    passages: Sequence[Passage]
    made_of: str


def _waiting(parts: Iterable[Sequence[Passage]], folder: Path, model: str, counts: list[int]) -> Iterator[_Waiting]:
    """The parts that are not there yet. counts: how many passages each part has, there or not, is written down."""
    for number, passages in enumerate(parts):
        counts.append(len(passages))
        file, made_of = folder / _NAME.format(number), _content_digest(passages, model)
        if not file.exists() or about(file)[MADE_OF] != made_of:
            yield _Waiting(file, passages, made_of)


def _encode(modes: Sequence[Mode] | None, encoder: Encoder, waiting: _Waiting) -> None:
    encoded = encoder.encode_passages([each.text for each in waiting.passages], modes)
    write_part(waiting.file, waiting.passages, encoded, encoder.fingerprint, waiting.made_of)


def _encoder(model: str | Encoder) -> Encoder:
    return M3Encoder.from_pretrained(model) if isinstance(model, str) else model


def _once(passages: Iterable[Passage]) -> Iterator[Passage]:
    seen: dict[str, bytes] = {}
    for passage in passages:
        content = bytes.fromhex(content_hash(passage))
        if seen.setdefault(passage.id, content) != content:
            raise ValueError(f"passage {passage.id!r} comes twice, with different contents; give each an id of its own")
        if seen[passage.id] is content:
            yield passage


def _parts(passages: Iterator[Passage], size: int) -> Iterator[list[Passage]]:
    if size < 1:
        raise ValueError(f"part must be at least 1, got {size}")
    while some := list(islice(passages, size)):
        yield some


def _content_digest(passages: Sequence[Passage], model: str) -> str:
    said = "\0".join([model, *(part for each in passages for part in (each.id, content_hash(each)))])
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def _require_one_encoder(files: Sequence[Path]) -> None:
    by = {about(file)["fingerprint"]: file for file in files}
    if len(by) > 1:
        (one, first), (other, second) = list(by.items())[:2]
        raise WrongEncoder(
            f"{first} was encoded by the encoder {one[:12]} and {second} by {other[:12]}; encode into a new folder"
        )

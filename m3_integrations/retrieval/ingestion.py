"""Filling an index: texts stream in, what is unchanged is skipped, the rest is encoded and added."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from tqdm import tqdm

from m3_integrations.core.encoded import Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.texts import Passage
from m3_integrations.index.base import Index, content_hash

_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class IngestReport:
    """How many passages came, by what became of them; one that the same call brings again, changed, is `superseded`."""

    added: int
    replaced: int
    unchanged: int
    superseded: int = 0

    @property
    def total(self) -> int:
        return self.added + self.replaced + self.unchanged + self.superseded

    def __add__(self, other: IngestReport) -> IngestReport:
        return IngestReport(
            self.added + other.added,
            self.replaced + other.replaced,
            self.unchanged + other.unchanged,
            self.superseded + other.superseded,
        )


def ingest(
    encoder: Encoder,
    index: Index,
    passages: Iterable[Passage],
    *,
    modes: Collection[Mode] | None = None,
    show_progress: bool = False,
) -> IngestReport:
    """Encode and add a stream of passages; one whose text and metadata the index holds already is skipped.

    modes: what to keep; None keeps what the index keeps already, else all that the encoder has. What was added before
    an error stays, so that the same call goes on where it stopped.
    """
    report = IngestReport(0, 0, 0)
    with tqdm(desc="ingest", unit="passage", disable=not show_progress) as bar:
        for chunk in _chunks(passages):
            report += _ingest_chunk(encoder, index, chunk, modes)
            bar.update(len(chunk))
    return report


def _chunks(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    stream = iter(passages)
    while chunk := list(islice(stream, _AT_ONCE)):
        yield chunk


def _ingest_chunk(
    encoder: Encoder, index: Index, passages: Sequence[Passage], modes: Collection[Mode] | None
) -> IngestReport:
    latest = {passage.id: passage for passage in passages}
    kept = index.content_hashes(list(latest))
    fresh = [passage for id, passage in latest.items() if kept.get(id) != content_hash(passage)]
    if fresh:
        wanted = modes or (index.modes & encoder.modes) or None
        index.add(fresh, encoder.encode_passages([passage.text for passage in fresh], wanted))
    replaced = sum(passage.id in kept for passage in fresh)
    return IngestReport(
        added=len(fresh) - replaced,
        replaced=replaced,
        unchanged=len(latest) - len(fresh),
        superseded=len(passages) - len(latest),
    )

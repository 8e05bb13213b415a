"""Filling an index: texts stream in, what is unchanged is skipped, the rest is encoded and added."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from m3_integrations.core.encoded import Encoded, Mode
from m3_integrations.core.encoder import Encoder
from m3_integrations.core.texts import Passage
from m3_integrations.index.base import Index, content_hash

# What is encoded at once, and held until it is written: some 30,000 tokens, 120 MB of BGE-M3's multi-vectors, or two
# batches of an encoder whose batches are large, as an accelerator's are.
_PASSAGES_AT_ONCE, _CHARACTERS_AT_ONCE = 512, 1 << 17
_PASSAGES_A_TOKEN, _CHARACTERS_A_TOKEN = 1 / 32, 8


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
    with _Writing(index) as writing, tqdm(desc="ingest", unit="passage", disable=not show_progress) as bar:
        for chunk in _chunks(passages, getattr(encoder, "batch_tokens", 0)):
            report += _ingest_chunk(encoder, index, writing, chunk, modes)
            bar.update(len(chunk))
    return report


class _Writing:
    """Adds passages to an index on a thread, so that those after them are encoded meanwhile; one addition at a time."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._last: Future[None] | None = None
        self.hashes: Mapping[str, str] = {}
        self.modes: frozenset[Mode] = frozenset()

    def add(self, passages: Sequence[Passage], encoded: Encoded, hashes: Mapping[str, str]) -> None:
        """hashes: passage id -> content_hash, of these passages and maybe of others that are in the index already."""
        self.wait()
        self._last = self._thread.submit(self._index.add, passages, encoded)
        self.hashes = hashes
        self.modes = encoded.modes

    def wait(self) -> None:
        """Until what was added is in the index. Raises what the addition raised."""
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)  # what was encoded before an error is kept
        if error is None:
            self.wait()


def _chunks(passages: Iterable[Passage], batch_tokens: int) -> Iterator[list[Passage]]:
    """The stream in parts. batch_tokens: what the encoder computes at once; 0 where it does not say."""
    most = max(_PASSAGES_AT_ONCE, int(batch_tokens * _PASSAGES_A_TOKEN))
    room = max(_CHARACTERS_AT_ONCE, batch_tokens * _CHARACTERS_A_TOKEN)
    chunk: list[Passage] = []
    characters = 0
    for passage in passages:
        chunk.append(passage)
        characters += len(passage.text)
        if len(chunk) == most or characters >= room:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _ingest_chunk(
    encoder: Encoder,
    index: Index,
    writing: _Writing,
    passages: Sequence[Passage],
    modes: Collection[Mode] | None,
) -> IngestReport:
    latest = {passage.id: passage for passage in passages}
    kept = {**index.content_hashes(list(latest)), **_only(writing.hashes, latest)}
    hashes = {id: content_hash(passage) for id, passage in latest.items()}
    fresh = [passage for id, passage in latest.items() if kept.get(id) != hashes[id]]
    if fresh:
        wanted = modes or ((index.modes | writing.modes) & encoder.modes) or None
        writing.add(fresh, encoder.encode_passages([passage.text for passage in fresh], wanted), hashes)
    replaced = sum(passage.id in kept for passage in fresh)
    return IngestReport(
        added=len(fresh) - replaced,
        replaced=replaced,
        unchanged=len(latest) - len(fresh),
        superseded=len(passages) - len(latest),
    )


def _only(hashes: Mapping[str, str], ids: Collection[str]) -> dict[str, str]:
    return {id: value for id, value in hashes.items() if id in ids}

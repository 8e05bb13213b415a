"""Ingestion: a stream of passages, unchanged ones skipped, the rest encoded and added."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from operator import add
from time import perf_counter

from tqdm import tqdm

from m3_integrations.core.encoded import Encoded, Mode, Modes
from m3_integrations.core.types import Passage
from m3_integrations.encoders.base import Encoder
from m3_integrations.index.base import Index, content_hash

# Encoded at once and held until written: about 30,000 tokens, 120 MB of BGE-M3's multi-vectors, or two batches of an
# encoder with larger batches, as on an accelerator.
_PASSAGES_AT_ONCE, _CHARACTERS_AT_ONCE = 512, 1 << 17
_PASSAGES_A_TOKEN, _CHARACTERS_A_TOKEN = 1 / 32, 8
# Seconds of encoding between two commits, which are what an interruption loses; characters of the first, of unknown
# speed; how many characters the encoding of any passage costs; and how much larger the next part may be.
_SECONDS, _FIRST_CHARACTERS, _OVERHEAD, _GROWTH = 2.0, 2048, 64, 4


@dataclass(frozen=True, slots=True)
class IngestReport:
    """How many passages were added, replaced, unchanged, or superseded by a later one of the same call."""

    added: int
    replaced: int
    unchanged: int
    superseded: int = 0

    @property
    def total(self) -> int:
        """Number of passages."""
        return sum(astuple(self))

    def __add__(self, other: IngestReport) -> IngestReport:
        return IngestReport(*map(add, astuple(self), astuple(other)))


def ingest(
    encoder: Encoder,
    index: Index,
    passages: Iterable[Passage],
    *,
    modes: Modes | None = None,
    show_progress: bool = False,
    on_progress: Callable[[IngestReport], object] | None = None,
) -> IngestReport:
    """Encode and add a stream of passages, skipping those whose text and metadata are unchanged.

    Passages are committed every two seconds of encoding. Those added before an error or an interruption stay, so
    running the same call again resumes.

    Args:
        encoder: Encoder of the index.
        index: Index to add to.
        passages: Passages; they are not held in memory.
        modes: Modes to store; by default those of the index, or all of the encoder for an empty index.
        show_progress: Whether to show a progress bar.
        on_progress: Called with the counts so far after each part.

    Returns:
        Counts of what happened to the passages.
    """
    report, pace = IngestReport(0, 0, 0), _Pace()
    with _BackgroundWriter(index) as writer, tqdm(desc="ingest", unit="passage", disable=not show_progress) as bar:
        for chunk in _chunks(passages, getattr(encoder, "batch_tokens", 0)):
            for part in _ingest_chunk(encoder, index, writer, pace, chunk, modes):
                report += part
                bar.update(part.total)
                if on_progress is not None:
                    on_progress(report)
    return report


class _Pace:
    """Size of the parts of a stream that are encoded in about `_SECONDS`."""

    def __init__(self) -> None:
        self._characters: float = _FIRST_CHARACTERS

    def split(self, passages: Sequence[Passage]) -> Iterator[Sequence[Passage]]:
        """Yield parts of at least one passage; the time until the next is asked for sets its size."""
        start = 0
        while start < len(passages):
            stop, characters = start, 0
            while stop < len(passages) and (stop == start or characters < self._characters):
                characters += len(passages[stop].text) + _OVERHEAD
                stop += 1
            began = perf_counter()
            yield passages[start:stop]
            self._adapt(characters, perf_counter() - began)
            start = stop

    def _adapt(self, characters: int, seconds: float) -> None:
        self._characters = min(_SECONDS * characters / max(seconds, 1e-9), _GROWTH * max(self._characters, characters))


class _BackgroundWriter:
    """Adds passages on a thread while the next ones are encoded, one addition at a time."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._last: Future[None] | None = None
        self.hashes: Mapping[str, str] = {}
        self.modes: frozenset[Mode] = frozenset()

    def add(self, passages: Sequence[Passage], encoded: Encoded, hashes: Mapping[str, str]) -> None:
        """Add passages; `hashes` maps ids to content hashes, possibly of other passages in the index too."""
        self.wait()
        self._last = self._thread.submit(self._index.add, passages, encoded)
        self.hashes = hashes
        self.modes = encoded.modes

    def wait(self) -> None:
        """Wait for the last addition and raise its error."""
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> _BackgroundWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)  # passages encoded before an error are written
        if error is None:
            self.wait()


def _chunks(passages: Iterable[Passage], batch_tokens: int) -> Iterator[list[Passage]]:
    """Yield parts of the stream; `batch_tokens` is the encoder's batch size, 0 if unknown."""
    max_passages = max(_PASSAGES_AT_ONCE, int(batch_tokens * _PASSAGES_A_TOKEN))
    max_characters = max(_CHARACTERS_AT_ONCE, batch_tokens * _CHARACTERS_A_TOKEN)
    chunk: list[Passage] = []
    characters = 0
    for passage in passages:
        chunk.append(passage)
        characters += len(passage.text)
        if len(chunk) == max_passages or characters >= max_characters:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _ingest_chunk(
    encoder: Encoder,
    index: Index,
    writer: _BackgroundWriter,
    pace: _Pace,
    passages: Sequence[Passage],
    modes: Modes | None,
) -> Iterator[IngestReport]:
    """Yield the counts of the skipped passages, and of each part that was encoded."""
    latest = {passage.id: passage for passage in passages}
    known = {**index.content_hashes(list(latest)), **_hashes_of(writer.hashes, latest)}
    hashes = {id: content_hash(passage) for id, passage in latest.items()}
    fresh = [passage for id, passage in latest.items() if known.get(id) != hashes[id]]
    yield IngestReport(0, 0, unchanged=len(latest) - len(fresh), superseded=len(passages) - len(latest))
    for part in pace.split(fresh):
        wanted = modes or ((index.modes | writer.modes) & encoder.modes) or None
        writer.add(part, encoder.encode_passages([passage.text for passage in part], wanted), hashes)
        replaced = sum(passage.id in known for passage in part)
        yield IngestReport(added=len(part) - replaced, replaced=replaced, unchanged=0)


def _hashes_of(hashes: Mapping[str, str], ids: Collection[str]) -> dict[str, str]:
    return {id: value for id, value in hashes.items() if id in ids}

"""Progress of indexing: an estimate before it starts, then total, rate and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from m3_integrations.cli.output import SPINNER, terminal

if TYPE_CHECKING:
    from m3_integrations import Encoder, Index, IngestReport, Passage


SAMPLED_CHARACTERS = 2000  # encoded to measure the speed
WORTHWHILE = 20  # times the sample, below which nothing is estimated
# Speed of OpenVINO in bfloat16 relative to torch in float32 on a CPU with AVX-512 BF16 or AMX, see docs/benchmarks.md.
OPENVINO_SPEEDUP = 2.0


class EncodingEstimate(NamedTuple):
    """Time that indexing will take.

    Attributes:
        passages: Passages to encode.
        seconds: Seconds with the encoder.
        faster: Seconds by the name of a faster backend that is installed.
    """

    passages: int
    seconds: float
    faster: Mapping[str, float]

    def __str__(self) -> str:
        others = "".join(f"; {describe_seconds(each)} with --backend {name}" for name, each in self.faster.items())
        return f"{describe_seconds(self.seconds)} for {self.passages:,} passages{others}"


def describe_seconds(seconds: float) -> str:
    """Return a duration in words, such as "about 3 minutes"."""
    for unit, length in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * length:
            return f"about {round(seconds / length):,} {unit}"
    return f"about {max(1, round(seconds))} seconds"


def estimate_encoding(encoder: Encoder, index: Index, passages: Iterable[Passage]) -> EncodingEstimate | None:
    """Estimate the time of an ingestion from that of a sample; None if it is too little to be worth it.

    Args:
        encoder: Encoder of the index, which encodes the sample twice: the first time it warms up.
        index: Index; its unchanged passages take no time.
        passages: Passages.
    """
    from m3_integrations.index.base import content_hash

    known, count, characters, sample, sampled = index.content_hashes(), 0, 0, list[str](), 0
    for passage in passages:
        if known.get(passage.id) == content_hash(passage):
            continue
        count += 1
        characters += len(passage.text)
        if sampled < SAMPLED_CHARACTERS:
            sample.append(passage.text[: SAMPLED_CHARACTERS - sampled])
            sampled += len(sample[-1])
    if characters < WORTHWHILE * SAMPLED_CHARACTERS:
        return None
    encoder.encode_passages(sample)
    began = perf_counter()
    encoder.encode_passages(sample)
    seconds = (perf_counter() - began) * characters / sampled
    return EncodingEstimate(count, seconds, _faster(encoder, seconds))


def _faster(encoder: Encoder, seconds: float) -> dict[str, float]:
    is_torch, device = getattr(encoder, "backend", None) == "torch", getattr(encoder, "device", None)
    if is_torch and getattr(device, "type", None) == "cpu" and find_spec("openvino") is not None and has_bfloat16():
        return {"openvino": seconds / OPENVINO_SPEEDUP}
    return {}


def has_bfloat16() -> bool:
    """Return whether the processor computes in bfloat16, as far as Linux says it."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


class RateColumn(ProgressColumn):
    """Passages per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} passages/s")


@contextmanager
def ingest_progress(total: int) -> Iterator[Callable[[IngestReport], None]]:
    """Show progress on a terminal; the result takes the counts so far."""
    columns = (
        SpinnerColumn(SPINNER),  # moves between the parts, which take about two seconds
        TextColumn("index"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=terminal.err, disable=not terminal.shows_progress, transient=True) as progress:
        task = progress.add_task("index", total=total)
        yield lambda report: progress.update(task, completed=report.total)

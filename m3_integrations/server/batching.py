"""One call of the encoder per micro-batch, across clients and endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from m3_integrations.core.concurrency import micro_batched
from m3_integrations.core.encoded import Encoded, Mode, Modes, check_modes
from m3_integrations.encoders.base import Encoder
from m3_integrations.encoders.remote import Role
from m3_integrations.server.metrics import ServerMetrics

TEXTS_AT_ONCE = 64  # of one request; a longer one takes turns with others


class EncodeJob(NamedTuple):
    """Texts of one request to encode."""

    role: Role
    texts: tuple[str, ...]
    modes: frozenset[Mode]


class BatchingEncoder:
    """Encodes texts of concurrent requests together.

    Queries and passages are separate calls, since models may have a prefix for each. A call computes the union of the
    modes, and every request gets its own.

    Args:
        encoder: The encoder.
        metrics: Metrics that count texts and batches.
    """

    def __init__(self, encoder: Encoder, metrics: ServerMetrics) -> None:
        self.encoder = encoder
        self._metrics = metrics

    async def encode(self, role: Role, texts: Sequence[str], modes: Modes | None = None) -> Encoded:
        """Encode texts.

        Args:
            role: Whether they are queries or passages.
            texts: At least one text.
            modes: Modes to compute; None computes all.

        Raises:
            MissingMode: If the encoder lacks a mode.
        """
        wanted = check_modes(self.encoder.modes if modes is None else modes, self.encoder.modes)
        parts = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            job = EncodeJob(role, tuple(texts[start : start + TEXTS_AT_ONCE]), wanted)
            parts.append(await micro_batched(self._encode_jobs, job))
        return parts[0].join(*parts[1:])

    def _encode_jobs(self, jobs: list[EncodeJob]) -> list[Encoded]:
        encoded: dict[int, Encoded] = {}
        for role in dict.fromkeys(job.role for job in jobs):
            places = [place for place, job in enumerate(jobs) if job.role == role]
            encoded |= zip(places, self._encode_role(role, [jobs[place] for place in places]), strict=True)
        return [encoded[place] for place in range(len(jobs))]

    def _encode_role(self, role: Role, jobs: Sequence[EncodeJob]) -> list[Encoded]:
        texts = [text for job in jobs for text in job.texts]
        modes = frozenset[Mode]().union(*(job.modes for job in jobs))
        self._metrics.count_batch(role, len(texts))
        encode = self.encoder.encode_queries if role == "query" else self.encoder.encode_passages
        batch = encode(texts, modes)
        found, start = [], 0
        for job in jobs:
            found.append(batch.take(range(start, start + len(job.texts))).only(job.modes))
            start += len(job.texts)
        return found

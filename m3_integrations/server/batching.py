"""One call of the encoder, and one search, per micro-batch, across clients and endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from m3_integrations.core.concurrency import micro_batched
from m3_integrations.core.encoded import Encoded, Mode, Modes, check_modes
from m3_integrations.encoders.base import Encoder, has_content
from m3_integrations.encoders.remote import Role
from m3_integrations.index.filters import Where
from m3_integrations.retrieval.retriever import Match, Retriever
from m3_integrations.server.metrics import ServerMetrics

TEXTS_AT_ONCE = 32  # of one request; a longer one takes turns with others


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
            parts.append(await micro_batched(self._encode_jobs, job, len(job.texts)))
        return parts[0].join(*parts[1:]) if len(parts) > 1 else parts[0]

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


class SearchJob(NamedTuple):
    """A search of one request.

    Attributes:
        key: Index, encoder and plan; searches of the same key, k and filter run together.
        retriever: Retriever of the index with the plan.
        text: Text of the query.
        query: The encoded query, one row.
        k: Number of hits.
        where: Metadata filter.
    """

    key: tuple[object, ...]
    retriever: Retriever
    text: str
    query: Encoded
    k: int
    where: Where | None


def search_jobs(jobs: list[SearchJob]) -> list[list[Match]]:
    """Search for each job, those of one key, k and filter in one call; a query without content finds nothing."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, job in enumerate(jobs):
        if has_content(job.retriever.encoder, [job.text])[0]:
            groups.setdefault((job.key, frozenset(job.query.modes), job.k, repr(job.where)), []).append(place)
    found: list[list[Match]] = [[] for _ in jobs]
    for places in groups.values():
        first, *rest = (jobs[place] for place in places)
        queries = first.query.join(*(job.query for job in rest)) if rest else first.query
        for place, matches in zip(places, first.retriever.retrieve_encoded(queries, first.k, first.where), strict=True):
            found[place] = matches
    return found

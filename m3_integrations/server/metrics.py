"""Metrics of a server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class ServerMetrics:
    """Counters of requests, texts and batches of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("m3_requests", "Requests.", ("path", "status"), registry=self._registry)
        self._seconds = Histogram("m3_request_seconds", "Duration of requests.", ("path",), registry=self._registry)
        self._texts = Counter("m3_texts", "Texts encoded.", ("role",), registry=self._registry)
        self._batches = Histogram(
            "m3_batch_texts", "Texts per call of the encoder.", ("role",), buckets=_TEXTS, registry=self._registry
        )

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_batch(self, role: str, texts: int) -> None:
        """Count a call of the encoder."""
        self._texts.labels(role).inc(texts)
        self._batches.labels(role).observe(texts)

    def to_text(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

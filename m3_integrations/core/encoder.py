"""The protocol that every encoder keeps, and M3Encoder, the one over a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from m3_integrations.core.encoded import Encoded, Mode


@runtime_checkable
class Encoder(Protocol):
    """Texts in, vectors out: one forward pass a text, whatever modes are asked for."""

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes that this encoder has."""

    @property
    def weights(self) -> Mapping[Mode, float]:
        """How it recommends to weigh them in a summed score."""

    @property
    def dim(self) -> int:
        """The width of a dense vector."""

    @property
    def width(self) -> int:
        """The width of each vector of a multi-vector; 0 where it has none."""

    @property
    def vocab_size(self) -> int:
        """The number of sparse columns; 0 where it has none."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits over all that changes vectors: weights, tokenizer, prefixes, pooling, normalisation."""

    def encode_queries(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode questions; None asks for every mode that it has. Raises MissingMode for one that it has not."""

    def encode_passages(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode texts to be found, likewise."""

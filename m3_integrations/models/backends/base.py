"""Backend protocol and batched forward passes.

Batches are halved on out-of-memory, and texts that overflow in lower precision are computed again in float32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from m3_integrations.core.encoded import Modes
from m3_integrations.core.errors import NonFiniteVector
from m3_integrations.core.forking import ForkSafeLock, delay_forks
from m3_integrations.models.backends.states import HostStates, PendingStates
from m3_integrations.models.batching import Batches
from m3_integrations.models.tokenization import TokenSequence


class ModelBackend(Protocol):
    """Runs a model on batches of sequences."""

    @property
    def is_padded(self) -> bool:
        """Whether sequences are padded to the longest of their batch."""

    @property
    def batches_ahead(self) -> int:
        """Batches to start before the states of the first are read; 0 where `start` computes them."""

    def start(self, batch: Sequence[TokenSequence], modes: Modes) -> PendingStates:
        """Start to compute the states of a batch."""


class BatchRunner:
    """Runs all sequences of a call through a backend, in batches.

    Args:
        backend: The backend.
        float32: Builds a float32 backend for batches that overflow in lower precision; None if `backend` is float32.
        batch_tokens: Tokens per batch.
        name: Name of the model, for errors.
        batch_texts: Most sequences per batch; None for any number.
    """

    def __init__(
        self,
        backend: ModelBackend,
        float32: Callable[[], ModelBackend] | None,
        batch_tokens: int,
        name: str,
        batch_texts: int | None = None,
    ) -> None:
        self.backend, self.batch_tokens = backend, batch_tokens
        self._batch_texts = batch_texts
        self._float32, self._name = float32, name
        self._retry: ModelBackend | None = None
        self._lock = ForkSafeLock()

    def run(self, sequences: Sequence[TokenSequence], modes: Modes) -> Iterator[tuple[list[int], HostStates]]:
        """Yield positions and states of every sequence, by batch.

        On an accelerator, the next batches run while the caller uses these states. On out-of-memory the remaining
        batches are halved.

        Raises:
            NonFiniteVector: If states are not finite in float32.
        """
        lengths = [len(each.ids) for each in sequences]
        batches = Batches(lengths, self.batch_tokens, padded=self.backend.is_padded, most=self._batch_texts)
        started: deque[tuple[list[int], PendingStates]] = deque()
        while batches.remaining:
            batch = batches.peek().tolist()
            pending = self._start_if_it_fits([sequences[i] for i in batch], modes, wait=bool(started))
            if pending is not None:
                batches.pop()
                started.append((batch, pending))
            elif not started:
                batches.halve()
            if started and (pending is None or len(started) > self.backend.batches_ahead):
                yield self._finish(sequences, modes, *started.popleft())
        while started:
            yield self._finish(sequences, modes, *started.popleft())

    def _start_if_it_fits(self, batch: Sequence[TokenSequence], modes: Modes, *, wait: bool) -> PendingStates | None:
        """Start a batch; return None if it does not fit into memory, and could later or in halves."""
        try:
            with delay_forks():
                return self.backend.start(batch, modes)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error) or (len(batch) == 1 and not wait):
                raise
        return None

    def _finish(
        self, sequences: Sequence[TokenSequence], modes: Modes, positions: list[int], pending: PendingStates
    ) -> tuple[list[int], HostStates]:
        batch = [sequences[i] for i in positions]
        with delay_forks():
            states, lengths = pending.result(), [len(each.ids) for each in batch]
            bad = states.find_non_finite(lengths)
            if bad and self._float32 is not None:
                others = self._retry_backend().start([batch[i] for i in bad], modes).result()
                states = states.replace(bad, lengths, others)
                bad = states.find_non_finite(lengths)
        if bad:
            raise NonFiniteVector(
                f"{self._name!r} gives NaN or infinity for the text at position {{position}}, in float32 too; "
                "remove that text, or check the checkpoint's weights",
                batch[bad[0]].text,
            )
        return positions, states.parts

    def _retry_backend(self) -> ModelBackend:
        assert self._float32 is not None
        with self._lock:
            if self._retry is None:
                self._retry = self._float32()
            return self._retry


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()  # CPU and MPS

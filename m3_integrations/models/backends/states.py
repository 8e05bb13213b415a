"""States of a batch in host memory: copies from an accelerator, and the search for values that are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from m3_integrations.core.encoded import Mode

HostStates: TypeAlias = dict[Mode, Tensor]


def has_text_rows(mode: Mode, part: Tensor) -> bool:
    """Return whether states have a row per sequence, as dense vectors and expanded terms do; else one per token."""
    return mode == "dense" or (mode == "sparse" and part.ndim == 2)


class BatchStates(NamedTuple):
    """States of a batch in host memory.

    Attributes:
        parts: States by mode, token after token; dense vectors and expanded terms have one row per sequence. Token
            states may have the precision of the model.
        finite: Whether each row of `parts` is finite, by mode.
    """

    parts: HostStates
    finite: HostStates

    def find_non_finite(self, lengths: Sequence[int]) -> list[int]:
        """Find the sequences with NaN or infinity in their states.

        Args:
            lengths: Tokens of each sequence.

        Returns:
            Positions of these sequences, ascending.
        """
        if all(bool(rows.all()) for rows in self.finite.values()):
            return []
        bad = np.zeros(len(lengths), bool)
        sequence_of = np.repeat(np.arange(len(lengths)), lengths)
        for mode, finite in self.finite.items():
            rows = np.flatnonzero(~finite.numpy())
            bad[rows if has_text_rows(mode, self.parts[mode]) else sequence_of[rows]] = True
        return np.flatnonzero(bad).tolist()

    def replace(self, sequences: Sequence[int], lengths: Sequence[int], others: BatchStates) -> BatchStates:
        """Return these states with those of some sequences replaced.

        Args:
            sequences: Positions of the sequences to replace.
            lengths: Tokens of every sequence.
            others: New states in float32; sequence j is that at position sequences[j].
        """
        tokens = torch.from_numpy(np.isin(np.repeat(np.arange(len(lengths)), lengths), sequences))
        parts, finite = dict(self.parts), dict(self.finite)
        for mode, part in parts.items():
            rows = torch.tensor(sequences) if has_text_rows(mode, part) else tokens
            parts[mode] = part.to(others.parts[mode].dtype, copy=True)
            parts[mode][rows] = others.parts[mode]
            finite[mode] = finite[mode].clone()
            finite[mode][rows] = others.finite[mode]
        return BatchStates(parts, finite)


class PendingStates:
    """States of a batch on their way to host memory.

    On CUDA the copies run while the host goes on; elsewhere they are complete.

    Args:
        parts: States of a model by mode.
        dtype: Precision of the model. Token states were rounded to it, so they are copied in it without loss.
    """

    def __init__(self, parts: Mapping[Mode, Tensor], dtype: torch.dtype) -> None:
        device = next(iter(parts.values())).device
        narrow = {
            mode: part if has_text_rows(mode, part) or device.type == "cpu" else part.to(dtype)
            for mode, part in parts.items()
        }
        self._states = BatchStates(_start_copies(narrow), _start_copies(finite_rows(parts)))
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(device))

    def result(self) -> BatchStates:
        """Wait for the copies and return them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._states


def finite_rows(parts: Mapping[Mode, Tensor]) -> HostStates:
    """Return whether each row is finite, by mode."""
    return {mode: torch.isfinite(part.reshape(len(part), -1)).all(dim=1) for mode, part in parts.items()}


def _start_copies(parts: Mapping[Mode, Tensor]) -> HostStates:
    return {mode: _start_copy(part) for mode, part in parts.items()}


def _start_copy(part: Tensor) -> Tensor:
    """Start a copy to page-locked memory on CUDA; elsewhere, copy."""
    if not part.is_cuda:
        return part.cpu()
    return torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True)

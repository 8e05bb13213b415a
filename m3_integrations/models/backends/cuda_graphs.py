"""Forward passes of single short texts as CUDA graphs, whose launch takes one call instead of hundreds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from m3_integrations.core.forking import ForkSafeLock
from m3_integrations.models.packing import VariableLengths, row_arguments
from m3_integrations.models.tokenization import TokenSequence
from m3_integrations.models.transformer import Inputs

_SIZES = (16, 32, 64, 128)  # tokens
_WARM_UPS = 3  # passes before the capture, as libraries allocate and choose kernels in their first ones


class CapturedForwards:
    """Backbone passes over one text of at most 128 tokens, captured at the first text of each size.

    Args:
        backbone: Transformer in half precision on CUDA, with packing enabled.
        pad: Id of the padding token.
    """

    def __init__(self, backbone: PreTrainedModel, pad: int) -> None:
        self._backbone, self._pad = backbone, pad
        self._captured: dict[int, _CapturedForward] = {}
        self._lock = ForkSafeLock()

    def accepts(self, batch: Sequence[TokenSequence]) -> bool:
        """Return whether a batch is one text that is short enough."""
        return len(batch) == 1 and len(batch[0].ids) <= _SIZES[-1]

    def hidden(self, inputs: Inputs) -> Tensor:
        """Return the last hidden states of a text, shape (tokens, hidden)."""
        size = next(size for size in _SIZES if size >= len(inputs.ids))
        with self._lock:
            if size not in self._captured:
                self._captured[size] = _CapturedForward(self._backbone, size, self._pad)
            return self._captured[size].run(inputs)


class _CapturedForward:
    """A graph over a row of `size` tokens: a text, and padding tokens that are a text of their own."""

    def __init__(self, backbone: PreTrainedModel, size: int, pad: int) -> None:
        device = backbone.device
        self._ids = torch.full((1, size), pad, dtype=torch.int64, device=device)
        self._positions = torch.full((1, size), pad, dtype=torch.int64, device=device)
        self._offsets = torch.tensor([0, size // 2, size], dtype=torch.int32, device=device)
        runs = VariableLengths(self._offsets, size)
        arguments = row_arguments(backbone, self._ids, self._positions, runs)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                backbone(**arguments)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._hidden: Tensor = backbone(**arguments).last_hidden_state[0]

    def run(self, inputs: Inputs) -> Tensor:
        count = len(inputs.ids)
        self._ids[0, :count] = inputs.ids
        self._positions[0, :count] = inputs.arguments["position_ids"][0]
        self._offsets[1] = count
        self._graph.replay()
        return self._hidden[:count].clone()

"""PyTorch backend: packed sequences on a CPU and on CUDA in half precision, else padded batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from m3_integrations.core.encoded import Modes
from m3_integrations.models import packing
from m3_integrations.models.backends.cpu_threads import limit_threads
from m3_integrations.models.backends.cuda_graphs import CapturedForwards
from m3_integrations.models.backends.states import PendingStates
from m3_integrations.models.conventions import Pooling
from m3_integrations.models.cpu_layers import optimize_for_cpu
from m3_integrations.models.tokenization import TokenSequence
from m3_integrations.models.transformer import Heads, M3Model, States

_BATCHES_AHEAD = 2  # one computes, one is being copied, while the host places the states of a third


class TorchBackend:
    """Runs a model in PyTorch.

    Args:
        backbone: The transformer.
        heads: Its heads; both are moved to the device and precision.
        device: Device to run on.
        dtype: Precision of the weights.
        pooling: Pooling of dense vectors; None without a dense mode.
        pad: Id of the padding token.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        heads: Heads,
        *,
        device: torch.device,
        dtype: torch.dtype,
        pooling: Pooling | None,
        pad: int,
    ) -> None:
        self._device, self._dtype, self._pooling, self._pad = device, dtype, pooling, pad
        on_cpu = device.type == "cpu"
        if on_cpu:
            limit_threads()
        can_pack = packing.supports_packing(backbone)
        self.is_padded = not (can_pack and (on_cpu or packing.has_variable_length_attention(backbone, device, dtype)))
        self.batches_ahead = 0 if on_cpu else _BATCHES_AHEAD
        self.model = M3Model(backbone, heads).to(device, dtype).eval()
        if not self.is_padded:
            packing.enable_packing(backbone)
        if not self.is_padded and on_cpu:
            optimize_for_cpu(self.model)
        is_captured = device.type == "cuda" and not self.is_padded
        self._short_texts = CapturedForwards(backbone, pad) if is_captured else None

    def start(self, batch: Sequence[TokenSequence], modes: Modes) -> PendingStates:
        """Start to compute the states of a batch, token after token; dense states are one per sequence."""
        with torch.inference_mode():
            return PendingStates(self._states(batch, modes).by_mode(), self._dtype)

    def _states(self, batch: Sequence[TokenSequence], modes: Modes) -> States:
        is_row = not self.is_padded and not any(each.unattended for each in batch)
        if not is_row:
            inputs = packing.pad(self.model.backbone, batch, self._pad)
        else:
            inputs = packing.pack(self.model.backbone, batch)
        pool = packing.pool_of(batch, self._pooling, self._device)
        if is_row and self._short_texts is not None and self._short_texts.accepts(batch):
            return self.model.read(self._short_texts.hidden(inputs), inputs, pool, modes)
        return self.model.encode(inputs, pool, modes)


def best_device() -> str:
    """Return the name of the fastest kind of device that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

"""Faster CPU layers: oneDNN linear, in-place GELU, chunked feed-forward.

In float32, torch calls MKL for linear layers, which on AMD is half as fast as oneDNN. The oneDNN operator is private to
torch (its compiler calls it), so it is probed before use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation

_DTYPES = (torch.float32, torch.bfloat16)
_TOKENS = 1024


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a linear layer, through oneDNN under inference mode on a CPU."""
    if inputs.device.type == "cpu" and torch.is_inference_mode_enabled() and has_onednn_linear(inputs.dtype):
        return _linear(inputs, weight, bias)
    return functional.linear(inputs, weight, bias)


class OneDnnLinear(nn.Linear):
    """A linear layer that runs through oneDNN under inference mode on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class InPlaceGelu(GELUActivation):
    """GELU that overwrites its input under inference mode to save memory."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            return torch.ops.aten.gelu_(input)  # type: ignore[no-any-return]  # operators are untyped
        return functional.gelu(input)


class FeedForwardInChunks:
    """A feed-forward layer that runs over chunks of tokens under inference mode.

    Its states are four times as wide as the others: chunks stay in the processor's cache, and a long text takes less
    memory. Results overwrite their inputs.
    """

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        return _in_place(super().feed_forward_chunk, attention_output)  # type: ignore[misc]  # of BERT-like layers


class AttentionOutputInChunks:
    """The layer after attention, in chunks that overwrite their inputs."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return _in_place(super().forward, hidden_states, input_tensor)  # type: ignore[misc]


def _in_place(whole: Callable[..., Tensor], states: Tensor, *others: Tensor) -> Tensor:
    """Apply a function to states (texts, tokens, dim), overwriting long ones in chunks."""
    if not torch.is_inference_mode_enabled() or states.shape[1] <= _TOKENS:
        return whole(states, *others)
    for parts in zip(*(torch.split(each, _TOKENS, dim=1) for each in (states, *others)), strict=True):
        parts[0].copy_(whole(*parts))
    return states


def optimize_for_cpu(model: nn.Module) -> None:
    """Replace layers by faster ones for `torch.inference_mode`; weights are unchanged."""
    for module in model.modules():
        if type(module) is nn.Linear and has_onednn_linear():
            module.__class__ = OneDnnLinear
        elif type(module) is GELUActivation and module.act is functional.gelu:
            module.__class__ = InPlaceGelu
        elif hasattr(module, "feed_forward_chunk"):
            _add_mixin(module, FeedForwardInChunks)
        elif type(module).__name__.endswith("SelfOutput"):
            _add_mixin(module, AttentionOutputInChunks)


def _add_mixin(module: nn.Module, mixin: type) -> None:
    """Add a mixin to the class of a module."""
    if not isinstance(module, mixin):
        kind: Any = type(module)
        module.__class__ = _mixin_class(kind, mixin)


@cache
def _mixin_class(kind: Any, mixin: type) -> Any:
    """Return a subclass of `kind` with a mixin."""
    return type(kind.__name__, (mixin, kind), {})


@cache
def has_onednn_linear(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether torch's oneDNN linear operator works in this precision on this processor."""
    if dtype not in _DTYPES:
        return False
    inputs, weight = torch.ones(2, 3, dtype=dtype), torch.arange(6, dtype=dtype).reshape(2, 3)
    bias = torch.tensor([0.5, -0.5], dtype=dtype)
    try:
        with torch.inference_mode():
            result = _linear(inputs, weight, bias)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(result, functional.linear(inputs, weight, bias)))


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")  # type: ignore[no-any-return]

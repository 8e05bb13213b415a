"""Layers as a CPU computes them fast. Linear ones through oneDNN: torch asks MKL, on AMD half as fast in float32.

The operator is one that torch keeps to itself (its compiler calls it), so it is asked for and tried before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation

_TAKEN = (torch.float32, torch.bfloat16)
_TOKENS = 1024


class OneDnnLinear(nn.Linear):
    """A linear layer that a CPU computes through oneDNN, where nothing is to be learned."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.dtype in _TAKEN and torch.is_inference_mode_enabled():
            return _linear(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias)


class InPlaceGelu(GELUActivation):
    """GELU written over what it reads, where nothing is to be learned: a batch's widest tensor is there once."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            return torch.ops.aten.gelu_(input)  # type: ignore[no-any-return]  # operators are untyped
        return functional.gelu(input)


class FeedForwardInChunks:
    """A layer whose widest states are computed for some tokens at a time, where nothing is to be learned.

    They are four times as wide as the others: so they stay in a processor's cache, and a long text takes less memory.
    What they make of a token's state, which nobody reads again, takes its place.
    """

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        return _in_place(super().feed_forward_chunk, attention_output)  # type: ignore[misc]  # of BERT's kin


class AttentionOutputInChunks:
    """What follows attention in a layer, likewise: its answers are read here alone."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return _in_place(super().forward, hidden_states, input_tensor)  # type: ignore[misc]


def _in_place(whole: Callable[..., Tensor], states: Tensor, *others: Tensor) -> Tensor:
    """What `whole` makes of states (texts, tokens, width); many are written over them, where nothing is learned."""
    if not torch.is_inference_mode_enabled() or states.shape[1] <= _TOKENS:
        return whole(states, *others)
    for parts in zip(*(torch.split(each, _TOKENS, dim=1) for each in (states, *others)), strict=True):
        parts[0].copy_(whole(*parts))
    return states


def quicken(model: nn.Module) -> None:
    """Let the layers of a model take the fast ways under `torch.inference_mode`; its weights stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear and is_to_be_had():
            module.__class__ = OneDnnLinear
        elif type(module) is GELUActivation and module.act is functional.gelu:
            module.__class__ = InPlaceGelu
        elif hasattr(module, "feed_forward_chunk"):
            _let(module, FeedForwardInChunks)
        elif type(module).__name__.endswith("SelfOutput"):
            _let(module, AttentionOutputInChunks)


def _let(module: nn.Module, way: type) -> None:
    """Let a module go that way."""
    if not isinstance(module, way):
        kind: Any = type(module)
        module.__class__ = _going(kind, way)


@cache
def _going(kind: Any, way: type) -> Any:
    """That kind of module, going that way."""
    return type(kind.__name__, (way, kind), {})


@cache
def is_to_be_had() -> bool:
    """Whether this torch has the operator, and it computes a linear layer."""
    inputs, weight, bias = torch.ones(2, 3), torch.arange(6.0).reshape(2, 3), torch.tensor([0.5, -0.5])
    try:
        with torch.inference_mode():
            found = _linear(inputs, weight, bias)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(found, functional.linear(inputs, weight, bias)))


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")  # type: ignore[no-any-return]

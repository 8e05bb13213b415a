"""Preparation of a model for training: new heads, selected parts, LoRA, dropout."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from m3_integrations.core.encoded import MODES, Modes
from m3_integrations.core.optional import import_optional
from m3_integrations.models.checkpoint import Checkpoint
from m3_integrations.models.transformer import Heads
from m3_integrations.training.objective.model import Part, TrainableM3

ENCODER_PARTS: frozenset[Part] = frozenset({"encoder", "layers"})

_INITIAL_LEXICAL_WEIGHT = 0.1
_SUB_BATCH = 8192
# Activations that the backward pass needs, per layer and value of a hidden state: about 34 in half precision without
# attention scores (Korthikanti et al., arXiv 2205.05198); 46 were measured with a low-rank update under autocast.
_BYTES_PER_VALUE = 60


def add_heads(checkpoint: Checkpoint, multi_vector_dim: int | None = None, modes: Modes = MODES) -> Checkpoint:
    """Add missing linear sparse and multi-vector heads to a checkpoint.

    Initial multi-vectors are the hidden states; initial token weights are constant or follow the token prior. A
    randomly initialized lexical head would give most tokens the weight 0, where a ReLU has no gradient.

    Args:
        checkpoint: Checkpoint; trainable heads are left unchanged.
        multi_vector_dim: Dimensions of a new multi-vector head, the first of the hidden state; None for all.
        modes: Modes that get heads.

    Returns:
        A checkpoint with heads for these modes.
    """
    heads, hidden = checkpoint.heads, int(checkpoint.backbone.config.hidden_size)
    sparse, vectors = heads.sparse, heads.multi_vector
    if sparse is None and "sparse" in modes:
        sparse = _constant_linear(hidden, 0.0 if heads.token_prior is not None else _INITIAL_LEXICAL_WEIGHT)
    if not isinstance(vectors, nn.Linear) and "multi_vector" in modes:
        vectors = _identity_linear(hidden, multi_vector_dim or hidden)
    return replace(checkpoint, heads=Heads(sparse, heads.token_prior, vectors))


def select_parts(modes: Modes, requested: Collection[Part], model: TrainableM3) -> tuple[Part, ...]:
    """Select the parts to train: those requested, used by the modes and present in the model.

    Raises:
        ValueError: If no part is left.
    """
    used: set[Part] = {*ENCODER_PARTS}
    if "sparse" in modes:
        used |= {"sparse", "token_prior"}
    if "multi_vector" in modes:
        used |= {"multi_vector"}
    selected = tuple(part for part in requested if part in used and part in model.parts)
    if not selected:
        raise ValueError(
            f"nothing to train: parts={tuple(requested)} and modes={tuple(modes)} have no part in common with "
            f"{model.parts}, the parts of this model"
        )
    return selected


class LoRA:
    """Low-rank update of an encoder's frozen linear layers (LoRA, arXiv 2106.09685)."""

    def __init__(self, model: TrainableM3, rank: int) -> None:
        peft = import_optional("peft", extra="train")
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        self._model = model
        self._peft_model: Any = peft.get_peft_model(model.model.backbone, config)  # replaces layers in place

    def merge(self) -> None:
        """Merge the update into the encoder's weights."""
        self._model.model.backbone = self._peft_model.merge_and_unload()


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Set the probability of every dropout of a model; None leaves them unchanged."""
    for module in model.modules() if probability is not None else ():
        if isinstance(module, nn.Dropout):
            module.p = float(probability or 0.0)


def default_sub_batch(model: TrainableM3) -> int:
    """Return how many padded tokens to encode at once with a graph: 8192, or half of the free memory of a GPU."""
    config, device = model.model.backbone.config, next(model.parameters()).device
    if device.type != "cuda":
        return _SUB_BATCH
    per_token = _BYTES_PER_VALUE * config.num_hidden_layers * config.hidden_size
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(_SUB_BATCH, int(free / 2 / per_token))


def _constant_linear(hidden: int, weight: float) -> nn.Linear:
    """Map every hidden state to the same number."""
    linear = nn.Linear(hidden, 1)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.fill_(weight)
    return linear


def _identity_linear(hidden: int, dim: int) -> nn.Linear:
    """Map a hidden state to its first `dim` numbers."""
    linear = nn.Linear(hidden, dim)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(dim, hidden))
        linear.bias.zero_()
    return linear

"""What of a model learns: heads that a checkpoint lacks, a low-rank update of its encoder, its dropout."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from m3_integrations.core.checkpoint import Checkpoint
from m3_integrations.core.encoded import Mode
from m3_integrations.core.extras import need
from m3_integrations.core.model import Heads
from m3_integrations.training.model import Part, TrainableM3

ENCODERS: frozenset[Part] = frozenset({"encoder", "layers"})  # the parts that are of the encoder

_FIRST_LEXICAL_WEIGHT = 0.1


def with_heads(checkpoint: Checkpoint, width: int | None = None) -> Checkpoint:
    """The checkpoint with linear heads for every mode, where it has none or only what cannot learn.

    Both begin where nothing is yet learned and nothing is lost: multi-vectors are the hidden states themselves (the
    first `width` of them; None is all), and every token weighs alike, or as its token prior says.
    A lexical head of random weights would begin with most tokens at 0, where a relu learns nothing.
    """
    heads, hidden = checkpoint.heads, int(checkpoint.backbone.config.hidden_size)
    sparse = heads.sparse or _flat(hidden, 0.0 if heads.token_prior is not None else _FIRST_LEXICAL_WEIGHT)
    vectors = heads.multi_vector if isinstance(heads.multi_vector, nn.Linear) else _straight(hidden, width or hidden)
    return replace(checkpoint, heads=Heads(sparse, heads.token_prior, vectors))


def parts_of(modes: Collection[Mode], asked: Collection[Part], model: TrainableM3) -> tuple[Part, ...]:
    """The parts that learn: those asked for that these modes use and the model has."""
    used: set[Part] = {*ENCODERS}
    if "sparse" in modes:
        used |= {"sparse", "token_prior"}
    if "multi_vector" in modes:
        used |= {"multi_vector"}
    there = model.parts
    found = tuple(part for part in asked if part in used and part in there)
    if not found:
        raise ValueError(f"nothing would learn: {tuple(asked)} in the modes {tuple(modes)}; the model has {there}")
    return found


class LowRank:
    """A low-rank update of an encoder's linear layers, which learns while these rest (LoRA, arXiv 2106.09685)."""

    def __init__(self, model: TrainableM3, rank: int) -> None:
        peft = need("peft", extra="train")
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        self._model = model
        self._wrapped: Any = peft.get_peft_model(model.model.backbone, config)  # replaces layers where they stand

    def merge(self) -> None:
        """Put the update into the encoder's own weights, as if these had learned."""
        self._model.model.backbone = self._wrapped.merge_and_unload()


def set_dropout(model: nn.Module, share: float | None) -> None:
    """Every dropout of a model at this share; None leaves each as it is."""
    for module in model.modules() if share is not None else ():
        if isinstance(module, nn.Dropout):
            module.p = float(share or 0.0)


def _flat(hidden: int, weight: float) -> nn.Linear:
    """hidden -> 1: the same for every state."""
    linear = nn.Linear(hidden, 1)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.fill_(weight)
    return linear


def _straight(hidden: int, width: int) -> nn.Linear:
    """hidden -> width: the state itself, or its first numbers."""
    linear = nn.Linear(hidden, width)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(width, hidden))
        linear.bias.zero_()
    return linear

"""The transformer and its three heads, on a batch of token ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from m3_integrations.core.encoded import MODES, Mode

Pooling = Literal["cls", "mean"]


class States(NamedTuple):
    """What one forward pass gives, float32 (float64 of a model that is so); a mode that was not asked for is None.

    dense: (texts, dim), pooled and not yet normalised. sparse: (texts, length), a weight a token, >= 0; (tokens,) of
    texts in a row. multi_vector: (texts, length, width) or (tokens, width), each vector of length 1.
    """

    dense: Tensor | None
    sparse: Tensor | None
    multi_vector: Tensor | None


class Inputs(NamedTuple):
    """Texts as a transformer takes them.

    arguments: what it is called with. ids: (tokens,), the tokens of the texts, one text after the other. mask:
    (texts, length), where those stand in a padded batch; None where they are one row.
    """

    arguments: Mapping[str, Any]
    ids: Tensor
    mask: Tensor | None


class Pool(NamedTuple):
    """Which states make the dense vector of each text: state `places[i]` gives `shares[i]` to text `texts[i]`."""

    size: int
    places: Tensor
    texts: Tensor
    shares: Tensor

    def of(self, hidden: Tensor) -> Tensor:
        """(tokens, hidden) -> (size, hidden), summed in float32."""
        parts = _widened(hidden[self.places]) * self.shares[:, None]
        return parts.new_zeros(self.size, hidden.shape[1]).index_add_(0, self.texts, parts)


@dataclass(frozen=True)
class Heads:
    """What reads lexical weights and token vectors off the hidden states; None where the checkpoint has no such head.

    sparse: hidden -> 1. token_prior: (vocab,), a weight a token id, added to what `sparse` gives.
    multi_vector: hidden -> width, or the identity.
    """

    sparse: nn.Linear | None = None
    token_prior: Tensor | None = None
    multi_vector: nn.Linear | nn.Identity | None = None

    @property
    def modes(self) -> frozenset[Mode]:
        lexical = self.sparse is not None or self.token_prior is not None
        there = {"dense": True, "sparse": lexical, "multi_vector": self.multi_vector is not None}
        return frozenset(mode for mode in MODES if there[mode])


class M3Model(nn.Module):
    """Last hidden states, and what the heads of arXiv 2402.03216 (section 3.2) make of them."""

    def __init__(self, backbone: PreTrainedModel, heads: Heads) -> None:
        super().__init__()
        self.backbone = backbone
        self.sparse = heads.sparse
        self.multi_vector = heads.multi_vector
        self.token_prior: Tensor | None
        self.register_buffer("token_prior", heads.token_prior)

    def forward(self, ids: Tensor, mask: Tensor | None, pool: Tensor | None, modes: Collection[Mode]) -> States:
        """One pass over (texts, length) token ids.

        mask: (texts, length), 0 where padding stands; None where there is none. pool: (texts, length), the share of
        each position in the pooled state; None pools the first.
        """
        hidden: Tensor = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        return self._read(hidden, ids, modes, _pooled(hidden, pool) if "dense" in modes else None)

    def read(self, inputs: Inputs, pool: Pool, modes: Collection[Mode]) -> States:
        """One pass over texts whose states come token by token, padding left out: (tokens,) and (tokens, width)."""
        hidden: Tensor = self.backbone(**inputs.arguments).last_hidden_state
        hidden = hidden[0] if inputs.mask is None else hidden[inputs.mask]
        return self._read(hidden, inputs.ids, modes, pool.of(hidden) if "dense" in modes else None)

    def _read(self, hidden: Tensor, ids: Tensor, modes: Collection[Mode], dense: Tensor | None) -> States:
        return States(
            dense=None if dense is None else _widened(dense),
            sparse=_widened(self._lexical(hidden, ids)) if "sparse" in modes else None,
            multi_vector=_widened(self._vectors(hidden)) if "multi_vector" in modes else None,
        )

    def _lexical(self, hidden: Tensor, ids: Tensor) -> Tensor:
        weights = hidden.new_zeros(ids.shape)
        if self.sparse is not None:
            weights = weights + self.sparse(hidden).squeeze(-1)
        if self.token_prior is not None:
            weights = weights + self.token_prior[ids]
        return torch.relu(weights)

    def _vectors(self, hidden: Tensor) -> Tensor:
        assert self.multi_vector is not None  # the encoder asks for modes that the checkpoint has
        return functional.normalize(self.multi_vector(hidden), dim=-1)


def _widened(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _pooled(hidden: Tensor, pool: Tensor | None) -> Tensor:
    if pool is None:
        return hidden[:, 0]
    return torch.bmm(pool.unsqueeze(1).to(hidden.dtype), hidden).squeeze(1)

"""The transformer with its three heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from m3_integrations.core.encoded import MODES, Mode, Modes
from m3_integrations.models.heads.term_expansion import TermExpansion


class States(NamedTuple):
    """Outputs of one forward pass; None for modes that were not requested.

    Values are float32 (float64 for a float64 model).

    Attributes:
        dense: Pooled, not normalized; shape (texts, dim).
        sparse: Non-negative weight per token; shape (texts, length), or (tokens,) for texts in a row. With term
            expansion, weight per term; shape (texts, vocabulary).
        multi_vector: Unit vectors; shape (texts, length, dim) or (tokens, dim).
    """

    dense: Tensor | None
    sparse: Tensor | None
    multi_vector: Tensor | None

    def by_mode(self) -> dict[Mode, Tensor]:
        """Return the states of the requested modes."""
        return {mode: part for mode in MODES if (part := getattr(self, mode)) is not None}


class Inputs(NamedTuple):
    """Texts as a transformer takes them.

    Attributes:
        arguments: Keyword arguments of the backbone.
        ids: Tokens of the texts one after the other, shape (tokens,).
        mask: Positions of these tokens in a padded batch, shape (texts, length); None if texts are one row.
        lengths: Number of tokens of each text.
    """

    arguments: Mapping[str, Any]
    ids: Tensor
    mask: Tensor | None
    lengths: Sequence[int]


class PoolingWeights(NamedTuple):
    """Pooling of states into dense vectors.

    State `places[i]` adds `shares[i]` of itself to text `texts[i]`.
    """

    size: int
    places: Tensor
    texts: Tensor
    shares: Tensor

    def of(self, hidden: Tensor) -> Tensor:
        """Pool states of shape (tokens, hidden) to (size, hidden), summed in float32."""
        parts = _widened(hidden[self.places]) * self.shares[:, None]
        return parts.new_zeros(self.size, hidden.shape[1]).index_add_(0, self.texts, parts)


@dataclass(frozen=True)
class Heads:
    """Heads that compute lexical weights and token vectors; None for a missing head.

    Attributes:
        sparse: Linear layer hidden -> 1.
        token_prior: Weight of each token id, added to the output of `sparse`; shape (vocabulary,).
        multi_vector: Linear layer hidden -> dim, or the identity.
        dense: Whether states are pooled to a dense vector.
        expansion: Head that weighs every term of the vocabulary (SPLADE), in place of `sparse`.
        query_weights: Weight of each token id in queries, which then need no forward pass for the sparse mode; shape
            (vocabulary,).
    """

    sparse: nn.Linear | None = None
    token_prior: Tensor | None = None
    multi_vector: nn.Linear | nn.Identity | None = None
    dense: bool = True
    expansion: TermExpansion | None = None
    query_weights: Tensor | None = None

    @property
    def modes(self) -> frozenset[Mode]:
        lexical = any(each is not None for each in (self.sparse, self.token_prior, self.expansion))
        available = {"dense": self.dense, "sparse": lexical, "multi_vector": self.multi_vector is not None}
        return frozenset(mode for mode in MODES if available[mode])


class M3Model(nn.Module):
    """A transformer with the heads of arXiv 2402.03216, section 3.2."""

    def __init__(self, backbone: PreTrainedModel, heads: Heads) -> None:
        super().__init__()
        self.backbone = backbone
        self.sparse = heads.sparse
        self.multi_vector = heads.multi_vector
        self.expansion = heads.expansion
        self.token_prior: Tensor | None
        self.register_buffer("token_prior", heads.token_prior)

    def forward(self, ids: Tensor, mask: Tensor | None, pool: Tensor | None, modes: Modes) -> States:
        """Run one pass over padded texts.

        Args:
            ids: Token ids, shape (texts, length).
            mask: 0 at padding, shape (texts, length); None without padding.
            pool: Share of each position in the pooled state, shape (texts, length); None pools the first position.
            modes: Modes to compute.
        """
        hidden: Tensor = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        return self._read(hidden, ids, modes, _pooled(hidden, pool) if "dense" in modes else None)

    def encode(self, inputs: Inputs, pool: PoolingWeights, modes: Modes) -> States:
        """Run one pass and return states without padding: (tokens,) and (tokens, dim)."""
        hidden: Tensor = self.backbone(**inputs.arguments).last_hidden_state
        return self.read(hidden[0] if inputs.mask is None else hidden[inputs.mask], inputs, pool, modes)

    def read(self, hidden: Tensor, inputs: Inputs, pool: PoolingWeights, modes: Modes) -> States:
        """Return the states of texts by the backbone's last hidden states, shape (tokens, hidden)."""
        states = self._read(hidden, inputs.ids, modes, pool.of(hidden) if "dense" in modes else None)
        if self.expansion is None or "sparse" not in modes:
            return states
        return states._replace(sparse=self.expansion(hidden, inputs.lengths))

    def _read(self, hidden: Tensor, ids: Tensor, modes: Modes, dense: Tensor | None) -> States:
        has_token_weights = "sparse" in modes and self.expansion is None
        return States(
            dense=None if dense is None else _widened(dense),
            sparse=_widened(self._lexical(hidden, ids)) if has_token_weights else None,
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
        assert self.multi_vector is not None  # callers request available modes only
        return functional.normalize(self.multi_vector(hidden), dim=-1)


def _widened(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _pooled(hidden: Tensor, pool: Tensor | None) -> Tensor:
    if pool is None:
        return hidden[:, 0]
    return torch.bmm(pool.unsqueeze(1).to(hidden.dtype), hidden).squeeze(1)

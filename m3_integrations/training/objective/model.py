"""Differentiable encoder: padded token batches in, representations of all modes out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from m3_integrations.core.encoded import MODES, Mode, Modes, check_modes
from m3_integrations.core.errors import MissingMode
from m3_integrations.models.checkpoint import Checkpoint
from m3_integrations.models.conventions import PivotedLengthNormalization, Pooling
from m3_integrations.models.tokenization import TokenSequence
from m3_integrations.models.transformer import Heads, M3Model

Part = Literal["encoder", "layers", "sparse", "token_prior", "multi_vector"]
PARTS: tuple[Part, ...] = get_args(Part)


class TokenBatch(NamedTuple):
    """Token sequences of a batch of texts, padded at the end.

    Attributes:
        ids: Token ids, shape (texts, length), int64.
        mask: True at tokens, False at padding, shape (texts, length).
        content: True at tokens with a vector of their own, shape (texts, length): not padding, cls or prefix; the final
            eos included.
    """

    ids: Tensor
    mask: Tensor
    content: Tensor

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], pad: int) -> TokenBatch:
        """Pad sequences to the longest.

        Args:
            sequences: At least one sequence, one per text.
            pad: Token id of the padding.

        Raises:
            ValueError: If there is no sequence.
        """
        if not sequences:
            raise ValueError("a batch needs at least one sequence, got none")
        length = max(len(each.ids) for each in sequences)
        ids = torch.full((len(sequences), length), pad, dtype=torch.int64)
        mask, content = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for row, each in enumerate(sequences):
            ids[row, : len(each.ids)] = torch.from_numpy(each.ids).long()
            mask[row, : len(each.ids)] = True
            content[row, torch.from_numpy(each.content_positions())] = True
        return cls(ids, mask, content)

    def rows(self, start: int, stop: int) -> TokenBatch:
        """Slice texts start to stop - 1, without columns of padding only."""
        length = int(self.mask[start:stop].sum(1).max())
        return TokenBatch(*(tensor[start:stop, :length] for tensor in self))

    def take(self, rows: Tensor) -> TokenBatch:
        """Select texts by position, in this order, without columns of padding only."""
        length = int(self.mask[rows].sum(1).max())
        return TokenBatch(*(tensor[rows, :length] for tensor in self))

    def to(self, device: torch.device | str) -> TokenBatch:
        """Move the tensors to a device."""
        return TokenBatch(*(tensor.to(device) for tensor in self))


class Representations(NamedTuple):
    """Differentiable embeddings of a batch of texts; None for modes not encoded.

    Attributes:
        dense: Vectors, shape (texts, dim); of unit length if the model normalizes.
        sparse: Token weights, at least 0, shape (texts, length); 0 for padding, prefix and special tokens.
        multi_vector: Unit vectors, shape (texts, length, dim); valid only where `content` is True.
        ids: Token ids, shape (texts, length).
        content: True at tokens with a vector of their own, shape (texts, length).
    """

    dense: Tensor | None
    sparse: Tensor | None
    multi_vector: Tensor | None
    ids: Tensor
    content: Tensor

    @property
    def modes(self) -> frozenset[Mode]:
        """Encoded modes."""
        return frozenset(mode for mode in MODES if getattr(self, mode) is not None)

    def tensor(self, mode: Mode) -> Tensor:
        """Return the tensor of one mode; raise MissingMode if it was not encoded."""
        tensor: Tensor | None = getattr(self, mode)
        if tensor is None:
            raise MissingMode(
                f"mode {mode!r} is not available: these texts were encoded in {sorted(self.modes)}; encode {mode!r} too"
            )
        return tensor

    def take(self, rows: Tensor) -> Representations:
        """Select texts by position, in this order."""
        tensors = {mode: self.tensor(mode)[rows] for mode in self.modes}
        return Representations.of(tensors, self.ids[rows], self.content[rows])

    @classmethod
    def of(cls, tensors: Mapping[Mode, Tensor], ids: Tensor, content: Tensor) -> Representations:
        """Build representations from the tensors of some modes."""
        return cls(tensors.get("dense"), tensors.get("sparse"), tensors.get("multi_vector"), ids, content)


def concatenate(batches: Sequence[Representations]) -> Representations:
    """Concatenate batches of the same modes, padded to the longest; differentiable."""
    length = max(each.ids.shape[1] for each in batches)

    def join(tensors: Iterable[Tensor], padded: bool = True) -> Tensor:
        return torch.cat([_pad_to(tensor, length) if padded else tensor for tensor in tensors])

    tensors = {mode: join((each.tensor(mode) for each in batches), mode != "dense") for mode in batches[0].modes}
    return Representations.of(tensors, join(each.ids for each in batches), join(each.content for each in batches))


def _pad_to(tensor: Tensor, length: int) -> Tensor:
    """Pad the second dimension with zeros."""
    return functional.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, length - tensor.shape[1]))


def has_lexical_weight(ids: Tensor, content: Tensor, special_ids: Tensor) -> Tensor:
    """Mask the content tokens without special ones, shape (texts, length)."""
    return content & ~torch.isin(ids, special_ids)


def max_weight_per_token(weights: Tensor, ids: Tensor, columns: Tensor) -> Tensor:
    """Compute each token's largest weight in each text.

    Args:
        weights: Token weights, at least 0, shape (texts, length).
        ids: Token ids, same shape.
        columns: Token ids to look up, ascending.

    Returns:
        Largest weights, shape (texts, columns); 0 if the token is not in the text.
    """
    index = torch.searchsorted(columns, ids)
    nearest = columns[index.clamp(max=max(0, len(columns) - 1))] if len(columns) else torch.full_like(ids, -1)
    # Tokens without a column are collected in an extra last one, which is cut off.
    index = torch.where(nearest == ids, index, len(columns))
    table = weights.new_zeros(len(weights), len(columns) + 1)
    return table.scatter_reduce(1, index, weights, "amax")[:, :-1]


def length_normalized(weights: Tensor, ids: Tensor, length: PivotedLengthNormalization) -> Tensor:
    """Apply the encoder's pivoted length normalization to weights of shape (texts, length)."""
    columns = torch.unique(ids[weights.detach() > 0])
    # The norm of a text without weights is 0, and torch defines its gradient there as 0.
    norms: Tensor = torch.linalg.vector_norm(max_weight_per_token(weights, ids, columns), dim=1)
    return weights * length.scale(norms)[:, None]


class TrainableM3(nn.Module):
    """Trainable model of a checkpoint, with its pooling and normalization.

    It shares the checkpoint's tensors, so that an encoder over the same checkpoint sees every update. Parts are trained
    once `train_only` has named them.
    """

    special_ids: Tensor

    def __init__(
        self,
        model: M3Model,
        *,
        pooling: Pooling,
        normalize: bool,
        special_ids: Sequence[int],
        lexical_length: PivotedLengthNormalization | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize
        self.lexical_length = lexical_length
        self.truncate_dim = truncate_dim
        self.register_buffer("special_ids", torch.tensor(special_ids, dtype=torch.int64), persistent=False)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> TrainableM3:
        """Build the model of a checkpoint, sharing its tensors.

        Raises:
            ValueError: If it is a SPLADE or a ColBERT checkpoint, whose heads are not trained here.
        """
        pooling = checkpoint.conventions.pooling
        if checkpoint.heads.expansion is not None or pooling is None:
            raise ValueError(
                f"{checkpoint.name!r} has heads that this package does not train; pass a checkpoint with a dense mode, "
                "such as BGE-M3, GTE or a sentence-transformers encoder"
            )
        conventions = checkpoint.conventions
        return cls(
            M3Model(checkpoint.backbone, checkpoint.heads),
            pooling=pooling,
            normalize=conventions.normalise,
            special_ids=checkpoint.special.unweighted,
            lexical_length=conventions.lexical_length,
            truncate_dim=conventions.truncate_dim,
        )

    @property
    def heads(self) -> Heads:
        """Current heads."""
        prior, vectors = self.model.token_prior, self.model.multi_vector
        assert vectors is None or isinstance(vectors, nn.Linear | nn.Identity)
        return Heads(self.model.sparse, None if prior is None else prior.detach(), vectors)

    def to_checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return a copy of the original checkpoint with the current weights."""
        return replace(checkpoint, backbone=self.model.backbone, heads=self.heads)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Trainable parts of this model."""
        return tuple(part for part, tensors in self._part_tensors().items() if tensors)

    def train_only(self, parts: Collection[Part]) -> None:
        """Unfreeze these parts and freeze all others.

        Raises:
            ValueError: If the model lacks one of the parts.
        """
        available = {part: tensors for part, tensors in self._part_tensors().items() if tensors}
        for part in parts:
            if part not in available:
                raise ValueError(f"this model has no part {part!r}; it has {list(available)}")
        trained = {id(tensor) for part in parts for tensor in available[part]}
        for tensors in available.values():
            for tensor in tensors:
                tensor.requires_grad_(id(tensor) in trained)

    def _part_tensors(self) -> dict[Part, list[nn.Parameter]]:
        """Parameters of each part; a token prior becomes a parameter."""
        model = self.model
        if model.token_prior is not None and not isinstance(model.token_prior, nn.Parameter):
            prior = model.token_prior
            del model.token_prior
            model.token_prior = nn.Parameter(prior, requires_grad=False)
        encoder = list(model.backbone.parameters())
        vocabulary = {id(tensor) for tensor in model.backbone.get_input_embeddings().parameters()}
        return {
            "encoder": encoder,
            "layers": [tensor for tensor in encoder if id(tensor) not in vocabulary],
            "sparse": [] if model.sparse is None else list(model.sparse.parameters()),
            "token_prior": [model.token_prior] if isinstance(model.token_prior, nn.Parameter) else [],
            "multi_vector": [] if model.multi_vector is None else list(model.multi_vector.parameters()),
        }

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass; effective in `train()` mode."""
        backbone, options = self.model.backbone, {"use_reentrant": False}
        # renamed in transformers 5
        enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
        enable(options)

    def forward(self, batch: TokenBatch, modes: Modes | None = None) -> Representations:
        """Encode a batch.

        Args:
            batch: Token batch on the model's device.
            modes: Modes to compute; None for all modes of the model.

        Returns:
            Representations of the texts.

        Raises:
            MissingMode: If the model lacks one of the modes.
        """
        checked = self.heads.modes if modes is None else check_modes(modes, self.heads.modes)
        states = self.model(batch.ids, batch.mask.long(), self._pooling_weights(batch.mask), checked)
        dense = states.dense if states.dense is None else states.dense[:, : self.truncate_dim]
        if dense is not None and self.normalize:
            dense = functional.normalize(dense, dim=-1)
        sparse = (
            None
            if states.sparse is None
            else states.sparse * has_lexical_weight(batch.ids, batch.content, self.special_ids)
        )
        if sparse is not None and self.lexical_length is not None:
            sparse = length_normalized(sparse, batch.ids, self.lexical_length)
        return Representations(dense, sparse, states.multi_vector, batch.ids, batch.content)

    def _pooling_weights(self, mask: Tensor) -> Tensor | None:
        return None if self.pooling == "cls" else mask / mask.sum(1, keepdim=True)

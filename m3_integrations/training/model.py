"""The model as training sees it: batches of token sequences in, representations with masks out, differentiable."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from m3_integrations.core.checkpoint import Checkpoint
from m3_integrations.core.encoded import MODES, Mode, check_modes
from m3_integrations.core.errors import MissingMode
from m3_integrations.core.lexical import LexicalLength
from m3_integrations.core.model import Heads, M3Model, Pooling
from m3_integrations.core.sequences import TokenSequence

Part = Literal["encoder", "layers", "sparse", "token_prior", "multi_vector"]
PARTS: tuple[Part, ...] = get_args(Part)


class TokenBatch(NamedTuple):
    """Texts as the model reads them, one sequence a text, padded at the end.

    ids: (texts, length), int64. mask: (texts, length), True where a token stands. kept: (texts, length), True where it
    stands for the text itself: padding, cls and prefix left out, the ending eos kept.
    """

    ids: Tensor
    mask: Tensor
    kept: Tensor

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], pad: int) -> TokenBatch:
        """Pad sequences with the token `pad`, up to the longest. Raises ValueError where there are none."""
        if not sequences:
            raise ValueError("a batch needs at least one sequence; leave empty batches out")
        length = max(len(each.ids) for each in sequences)
        ids = torch.full((len(sequences), length), pad, dtype=torch.int64)
        mask, kept = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for row, each in enumerate(sequences):
            ids[row, : len(each.ids)] = torch.from_numpy(each.ids).long()
            mask[row, : len(each.ids)] = True
            kept[row, torch.from_numpy(each.kept())] = True
        return cls(ids, mask, kept)

    def rows(self, start: int, stop: int) -> TokenBatch:
        """These texts alone, without the columns that are padding in all of them."""
        length = int(self.mask[start:stop].sum(1).max())
        return TokenBatch(*(part[start:stop, :length] for part in self))

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(*(part.to(device) for part in self))


class Representations(NamedTuple):
    """n texts in some modes, as tensors; a mode that was not asked for is None.

    dense: (texts, dim), of length 1 where the model normalises. sparse: (texts, length), a weight a token, >= 0, and 0
    for padding, prefix and special tokens. multi_vector: (texts, length, width), each of length 1; those where `kept`
    is False are no vectors of the text. ids: (texts, length). kept: (texts, length), bool.
    """

    dense: Tensor | None
    sparse: Tensor | None
    multi_vector: Tensor | None
    ids: Tensor
    kept: Tensor

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(mode for mode in MODES if getattr(self, mode) is not None)

    def part(self, mode: Mode) -> Tensor:
        """The tensor of one mode. Raises MissingMode where it is not there."""
        tensor: Tensor | None = getattr(self, mode)
        if tensor is None:
            raise MissingMode(f"{mode!r} was asked for, but these are {sorted(self.modes)}; encode that mode too")
        return tensor

    def take(self, rows: Tensor) -> Representations:
        """These texts, in this order."""
        found = {mode: self.part(mode)[rows] for mode in self.modes}
        return Representations.of(found, self.ids[rows], self.kept[rows])

    @classmethod
    def of(cls, parts: Mapping[Mode, Tensor], ids: Tensor, kept: Tensor) -> Representations:
        return cls(parts.get("dense"), parts.get("sparse"), parts.get("multi_vector"), ids, kept)


def join(some: Sequence[Representations]) -> Representations:
    """The texts of all of these, in order and in the same modes, padded to the longest; differentiable."""
    length = max(each.ids.shape[1] for each in some)
    parts = {mode: torch.cat([_padded(mode, each.part(mode), length) for each in some]) for mode in some[0].modes}
    ids, kept = (torch.cat([_to_length(getattr(each, name), length) for each in some]) for name in ("ids", "kept"))
    return Representations.of(parts, ids, kept)


def _padded(mode: Mode, part: Tensor, length: int) -> Tensor:
    return part if mode == "dense" else _to_length(part, length)


def _to_length(part: Tensor, length: int) -> Tensor:
    """(texts, length, ...) with zeros where there was nothing."""
    return functional.pad(part, (0, 0) * (part.ndim - 2) + (0, length - part.shape[1]))


def speaking(ids: Tensor, kept: Tensor, silent: Tensor) -> Tensor:
    """(texts, length): True where a token can have a lexical weight: it stands for the text, and is not special."""
    return kept & ~torch.isin(ids, silent)


def by_token(weights: Tensor, ids: Tensor, columns: Tensor) -> Tensor:
    """(texts, columns): the largest weight of each of these token ids, which rise, in each text; 0 where it is not.

    weights: (texts, length), >= 0, of the tokens `ids`.
    """
    place = torch.searchsorted(columns, ids)
    column = columns[place.clamp(max=max(0, len(columns) - 1))] if len(columns) else torch.full_like(ids, -1)
    # What is in no column goes to a last one that is cut off.
    place = torch.where(column == ids, place, len(columns))
    table = weights.new_zeros(len(weights), len(columns) + 1)
    return table.scatter_reduce(1, place, weights, "amax")[:, :-1]


def fitted(weights: Tensor, ids: Tensor, length: LexicalLength) -> Tensor:
    """(texts, length): lexical weights fitted to the length of their texts, as the encoder fits them."""
    columns = torch.unique(ids[weights.detach() > 0])
    # Of texts without weights the norm is 0, where its gradient is one too.
    norms: Tensor = torch.linalg.vector_norm(by_token(weights, ids, columns), dim=1)
    return weights * length.share(norms)[:, None]


class TrainableM3(nn.Module):
    """The model of a checkpoint with the conventions that turn its states into scored vectors.

    It holds the checkpoint's own tensors: what it learns, an encoder over the same checkpoint has learned. Nothing
    learns until `train_only` says what.
    """

    silent: Tensor

    def __init__(
        self,
        model: M3Model,
        *,
        pooling: Pooling,
        normalise: bool,
        silent: Sequence[int],
        lexical_length: LexicalLength | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalise = normalise
        self.lexical_length = lexical_length
        self.register_buffer("silent", torch.tensor(silent, dtype=torch.int64), persistent=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> TrainableM3:
        """The model of a checkpoint, which belongs to training from then on."""
        conventions = checkpoint.conventions
        return cls(
            M3Model(checkpoint.backbone, checkpoint.heads),
            pooling=conventions.pooling,
            normalise=conventions.normalise,
            silent=checkpoint.special.silent,
            lexical_length=conventions.lexical_length,
        )

    @property
    def heads(self) -> Heads:
        """The heads as they are now."""
        prior, vectors = self.model.token_prior, self.model.multi_vector
        assert vectors is None or isinstance(vectors, nn.Linear | nn.Identity)
        return Heads(self.model.sparse, None if prior is None else prior.detach(), vectors)

    def into(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint that this came from, with what was learned: to be encoded with, or saved."""
        return replace(checkpoint, backbone=self.model.backbone, heads=self.heads)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What there is to train."""
        return tuple(part for part, tensors in self._parts().items() if tensors)

    def train_only(self, parts: Collection[Part]) -> None:
        """Let these parts learn and freeze the others. Raises ValueError for one that the model has not."""
        there = {part: tensors for part, tensors in self._parts().items() if tensors}
        for part in parts:
            if part not in there:
                raise ValueError(f"this model has no {part!r} to train; it has {list(there)}")
        learning = {id(tensor) for part in parts for tensor in there[part]}
        for tensors in there.values():
            for tensor in tensors:
                tensor.requires_grad_(id(tensor) in learning)

    def _parts(self) -> dict[Part, list[nn.Parameter]]:
        """The tensors of each part that can learn."""
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

    def checkpoint_layers(self) -> None:
        """Keep only the input of each layer for the backward pass, which computes the rest again.

        Takes effect in `train()` mode.
        """
        backbone, options = self.model.backbone, {"use_reentrant": False}
        # transformers 5 renames it
        enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
        enable(options)

    def forward(self, batch: TokenBatch, modes: Collection[Mode] | None = None) -> Representations:
        """One pass. modes: None gives every mode that there is. Raises MissingMode for one that the model has not."""
        wanted = self.heads.modes if modes is None else check_modes(modes, self.heads.modes)
        states = self.model(batch.ids, batch.mask.long(), self._pool(batch.mask), wanted)
        dense = states.dense
        if dense is not None and self.normalise:
            dense = functional.normalize(dense, dim=-1)
        sparse = None if states.sparse is None else states.sparse * speaking(batch.ids, batch.kept, self.silent)
        if sparse is not None and self.lexical_length is not None:
            sparse = fitted(sparse, batch.ids, self.lexical_length)
        return Representations(dense, sparse, states.multi_vector, batch.ids, batch.kept)

    def _pool(self, mask: Tensor) -> Tensor | None:
        return None if self.pooling == "cls" else mask / mask.sum(1, keepdim=True)

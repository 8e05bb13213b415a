"""Texts end to end in one row, so that no padding is computed: attention within each text, all else over the row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from m3_integrations.core.model import Inputs, Pool, Pooling
from m3_integrations.core.sequences import Ids, TokenSequence

# Full attention in every layer, and positions that are looked up: what stands beside a text does not reach it.
_PACKABLE = frozenset({"bert", "camembert", "roberta", "xlm-roberta"})
_ATTENTION = "m3_packed"
_LONG, _HEADS = 1024, 4
_SCORES = 1 << 17  # a head's attention scores at once: those of a dozen heads stay in a processor's cache


class Run(NamedTuple):
    """Texts of one length that follow each other in the row: they are attended at once."""

    start: int
    texts: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.texts * self.length)


def packs(backbone: PreTrainedModel) -> bool:
    """Whether this transformer can read texts packed into one row."""
    config = backbone.config
    looked_up = getattr(config, "position_embedding_type", "absolute") == "absolute"
    takes = getattr(backbone, "_supports_attention_backend", False)
    return bool(takes and looked_up and config.model_type in _PACKABLE and not config.is_decoder)


def prepare(backbone: PreTrainedModel) -> None:
    """Let the transformer take packed rows, beside padded batches, which it attends as before."""
    backbone.set_attn_implementation(_ATTENTION)


def runs_of(lengths: Sequence[int]) -> list[Run]:
    """The texts of a row in runs of one length, short enough that their attention stays in the cache."""
    found, start = [], 0
    for length, some in groupby(lengths):
        left, most = len(list(some)), max(1, _SCORES // length**2)
        while left:
            found.append(Run(start, min(left, most), length))
            start, left = found[-1].tokens.stop, left - found[-1].texts
    return found


def positions(ids: Ids, padding: int | None) -> Ids:
    """The position of each token of a text. padding: the token that RoBERTa's kin count from and pass over, or None."""
    if padding is None:
        return np.arange(len(ids), dtype=ids.dtype)
    counted = ids != padding
    return np.asarray(np.cumsum(counted) * counted + padding, ids.dtype)


def as_row(backbone: PreTrainedModel, sequences: Sequence[TokenSequence]) -> Inputs:
    """These sequences as one row, for a backbone that `packs`."""
    padding = None if backbone.config.model_type == "bert" else backbone.config.pad_token_id
    ids = _row([each.ids for each in sequences]).to(backbone.device)
    places = _row([positions(each.ids, padding) for each in sequences]).to(backbone.device)
    runs = runs_of([len(each.ids) for each in sequences])
    return Inputs({"input_ids": ids[None], "position_ids": places[None], "runs": runs}, ids, mask=None)


def as_batch(backbone: PreTrainedModel, sequences: Sequence[TokenSequence], pad: int) -> Inputs:
    """These sequences as a batch, padded with the token `pad` up to the longest."""
    lengths = np.array([len(each.ids) for each in sequences])
    mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]).to(backbone.device)
    ids = _row([each.ids for each in sequences]).to(backbone.device)
    padded = ids.new_full(mask.shape, pad).masked_scatter_(mask, ids)
    # Without padding there is nothing to mask, and attention takes its fastest path.
    attention_mask = None if lengths.min() == lengths.max() else mask.long()
    return Inputs({"input_ids": padded, "attention_mask": attention_mask}, ids, mask)


def pool_of(sequences: Sequence[TokenSequence], pooling: Pooling, device: torch.device) -> Pool:
    """The states that make the dense vectors of these sequences, which follow each other: cls tokens, or all."""
    starts = np.cumsum([0, *(len(each.ids) for each in sequences[:-1])])
    pooled = [each.cls if pooling == "cls" else np.arange(len(each.ids)) for each in sequences]
    counts = np.array([len(each) for each in pooled])
    places = np.concatenate(pooled) + np.repeat(starts, counts)
    texts = np.repeat(np.arange(len(sequences)), counts)
    shares = np.repeat(1 / counts, counts).astype(np.float32)
    return Pool(len(sequences), *(torch.from_numpy(each).to(device) for each in (places, texts, shares)))


def _row(parts: Sequence[Ids]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    runs: Sequence[Run] | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers asks for it. query, key, value: (1, heads, tokens, width); answers with heads last."""
    if runs is None:
        return cast(  # transformers leaves it unannotated
            "tuple[Tensor, Tensor | None]",
            sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
            ),
        )
    # Nobody reads a text's queries again: under inference its answers take their place, and a long text less memory.
    rows = query.transpose(1, 2)
    mine = torch.is_inference_mode_enabled() and rows.is_contiguous()
    answers = rows if mine else torch.empty_like(rows, memory_format=torch.contiguous_format)
    for run, heads in _parts(runs, query.shape[1]):
        answer = _attention(*(_texts(part, run, heads) for part in (query, key, value)), scaling=scaling)
        answers[0, run.tokens, heads] = answer.transpose(1, 2).flatten(0, 1)
    return answers, None


def _parts(runs: Sequence[Run], heads: int) -> Iterator[tuple[Run, slice]]:
    """What is attended at once: of a long text some heads, since torch copies what it attends; of others all."""
    for run in runs:
        some = _HEADS if run.length > _LONG else heads
        yield from ((run, slice(start, start + some)) for start in range(0, heads, some))


def _texts(row: Tensor, run: Run, heads: slice) -> Tensor:
    """The part of (1, heads, tokens, width) that a run holds, as (texts, heads, length, width)."""
    part = row[0, heads, run.tokens]
    return part.reshape(len(part), run.texts, run.length, -1).transpose(0, 1)


def _attention(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None) -> Tensor:
    """(texts, heads, length, width), all four."""
    if query.dtype is not torch.bfloat16 or query.shape[2] > _LONG:
        return functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    # On a CPU torch's fused attention computes bfloat16 no faster than float32; two products and a softmax do, as long
    # as what they pass on stays in the cache.
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    some = max(1, _SCORES // (query.shape[0] * key.shape[2]))
    parts = [torch.softmax(part @ key.transpose(2, 3), dim=-1) @ value for part in torch.split(query, some, dim=2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)

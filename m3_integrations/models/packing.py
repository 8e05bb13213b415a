"""Texts packed into one row: attention within each text, all other layers over the row."""

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

from m3_integrations.models.conventions import Pooling
from m3_integrations.models.tokenization import Ids, TokenSequence
from m3_integrations.models.transformer import Inputs, PoolingWeights

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

# Positions are arguments, and attention is ours: neighbors in the row do not influence a text.
_PACKABLE = frozenset({"bert", "camembert", "roberta", "xlm-roberta", "gte", "modernbert"})
_COUNT_FROM_PAD = frozenset({"camembert", "roberta", "xlm-roberta"})
_PACKED_ON_CUDA = _COUNT_FROM_PAD | {"bert"}  # rows of rotary positions and local windows were never run there
_ATTENTION = "m3_packed"
_LONG, _HEADS = 1024, 4
_FLASH_DIM, _AMPERE = 256, (8, 0)  # FlashAttention's widest head and oldest card
_BLOCK = 128  # queries that attend at once within local windows
_SCORES = 1 << 17  # a head's attention scores at once: those of a dozen heads stay in a processor's cache


class LengthRun(NamedTuple):
    """Consecutive texts of one length, attended at once."""

    start: int
    texts: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.texts * self.length)


def supports_packing(backbone: PreTrainedModel) -> bool:
    """Return whether a transformer can read texts packed into one row."""
    config = backbone.config
    looked_up = getattr(config, "position_embedding_type", "absolute") == "absolute"
    takes = getattr(backbone, "_supports_attention_backend", False)
    if config.model_type == "modernbert":  # transformers 5.3 fixes its attention when it is loaded
        takes = takes and hasattr(config, "layer_types") and backbone._can_set_attn_implementation()
    return bool(takes and looked_up and config.model_type in _PACKABLE and not getattr(config, "is_decoder", False))


def enable_packing(backbone: PreTrainedModel) -> None:
    """Let a transformer read packed rows as well as padded batches."""
    backbone.set_attn_implementation(_ATTENTION)


class VariableLengths(NamedTuple):
    """Lengths of the texts of a row, for attention on CUDA.

    Attributes:
        offsets: Starts of the texts and the end of the last, on the device; int32.
        longest: An upper bound on the number of tokens of a text.
    """

    offsets: Tensor
    longest: int


def has_variable_length_attention(backbone: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch attends within the texts of a row on this device, by FlashAttention."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or varlen_attn is None:
        return False
    if backbone.config.model_type not in _PACKED_ON_CUDA:
        return False
    dim = backbone.config.hidden_size // backbone.config.num_attention_heads
    return dim % 8 == 0 and dim <= _FLASH_DIM and torch.cuda.get_device_capability(device) >= _AMPERE


def _has_windows(backbone: PreTrainedModel) -> bool:
    return "sliding_attention" in (getattr(backbone.config, "layer_types", None) or ())


def row_arguments(
    backbone: PreTrainedModel, ids: Tensor, positions: Tensor, runs: Sequence[LengthRun] | VariableLengths
) -> dict[str, Any]:
    """Return the arguments of a backbone that reads a row of texts.

    Args:
        backbone: Transformer with packing enabled.
        ids: Token ids, shape (1, tokens).
        positions: Position of each token in its text, shape (1, tokens).
        runs: Lengths of the texts.
    """
    arguments: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "runs": runs}
    if _has_windows(backbone):  # else it would make masks of tokens x tokens, which the attention does not read
        arguments["attention_mask"] = dict.fromkeys(("full_attention", "sliding_attention"))
    return arguments


def runs_of(lengths: Sequence[int]) -> list[LengthRun]:
    """Group the texts of a row into runs of one length whose attention fits the cache."""
    found, start = [], 0
    for length, some in groupby(lengths):
        left, most = len(list(some)), max(1, _SCORES // length**2)
        while left:
            found.append(LengthRun(start, min(left, most), length))
            start, left = found[-1].tokens.stop, left - found[-1].texts
    return found


def positions(ids: Ids, padding: int | None) -> Ids:
    """Return the position ids of a text's tokens.

    Args:
        ids: Token ids.
        padding: Id of the padding token for RoBERTa-like models, which count from it; else None.
    """
    if padding is None:
        return np.arange(len(ids), dtype=ids.dtype)
    counted = ids != padding
    return np.asarray(np.cumsum(counted) * counted + padding, ids.dtype)


def pack(backbone: PreTrainedModel, sequences: Sequence[TokenSequence]) -> Inputs:
    """Return sequences as one row, for a backbone that supports packing."""
    padding = backbone.config.pad_token_id if backbone.config.model_type in _COUNT_FROM_PAD else None
    ids = _row([each.ids for each in sequences], backbone.device)
    places = _row([positions(each.ids, padding) for each in sequences], backbone.device)
    lengths = [len(each.ids) for each in sequences]
    runs = _variable_lengths(lengths, backbone.device) if backbone.device.type == "cuda" else runs_of(lengths)
    return Inputs(row_arguments(backbone, ids[None], places[None], runs), ids, None, lengths)


def pad(backbone: PreTrainedModel, sequences: Sequence[TokenSequence], pad: int) -> Inputs:
    """Return sequences as a batch, padded with the token `pad` to the longest."""
    lengths = np.array([len(each.ids) for each in sequences])
    mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]).to(backbone.device)
    ids = _row([each.ids for each in sequences], backbone.device)
    padded = ids.new_full(mask.shape, pad).masked_scatter_(mask, ids)
    attended = lengths - np.array([each.unattended for each in sequences])
    # Without padding there is nothing to mask, and attention takes its fastest path.
    attention_mask = None if attended.min() == lengths.max() else mask.long()
    if attended.sum() != lengths.sum():
        attention_mask = torch.from_numpy(np.arange(lengths.max()) < attended[:, None]).to(backbone.device).long()
    return Inputs({"input_ids": padded, "attention_mask": attention_mask}, ids, mask, lengths.tolist())


def pool_of(sequences: Sequence[TokenSequence], pooling: Pooling | None, device: torch.device) -> PoolingWeights:
    """Return the weights that pool consecutive sequences: all tokens for "mean", else cls tokens."""
    starts = np.cumsum([0, *(len(each.ids) for each in sequences[:-1])])
    pooled = [np.arange(len(each.ids)) if pooling == "mean" else each.cls for each in sequences]
    counts = np.array([len(each) for each in pooled])
    places = np.concatenate(pooled) + np.repeat(starts, counts)
    texts = np.repeat(np.arange(len(sequences)), counts)
    shares = np.repeat(1 / counts, counts).astype(np.float32)
    return PoolingWeights(len(sequences), *(_moved(torch.from_numpy(each), device) for each in (places, texts, shares)))


def _variable_lengths(lengths: Sequence[int], device: torch.device) -> VariableLengths:
    offsets = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
    return VariableLengths(_moved(offsets, device), max(lengths))


def _row(parts: Sequence[Ids], device: torch.device) -> Tensor:
    return _moved(torch.from_numpy(np.concatenate(parts).astype(np.int64)), device)


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """Move values to a device; to CUDA from page-locked memory, so that the host does not wait."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    runs: Sequence[LengthRun] | VariableLengths | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention by transformers' interface.

    Inputs are (1, heads, tokens, dim); in the output heads come after tokens. Within a sliding window of w, a token
    attends to those less than w away.
    """
    reach = None if sliding_window is None else sliding_window - 1
    if runs is None:
        return cast(  # transformers leaves it unannotated
            "tuple[Tensor, Tensor | None]",
            sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
            ),
        )
    if isinstance(runs, VariableLengths):
        return _attend_on_cuda(query, key, value, runs, scaling)[None], None
    # Under inference, outputs overwrite the queries, which are not read again; long texts then take less memory.
    rows = query.transpose(1, 2)
    overwrite = torch.is_inference_mode_enabled() and rows.is_contiguous()
    output = rows if overwrite else torch.empty_like(rows, memory_format=torch.contiguous_format)
    for run, heads in _parts(runs, query.shape[1]):
        queries, keys, values = (_texts(part, run, heads) for part in (query, key, value))
        if reach is None or run.length <= reach + 1:
            attended = _attention(queries, keys, values, scaling=scaling)
        else:
            attended = _local_attention(queries, keys, values, reach, scaling=scaling)
        output[0, run.tokens, heads] = attended.transpose(1, 2).flatten(0, 1)
    return output, None


def _attend_on_cuda(
    query: Tensor, key: Tensor, value: Tensor, lengths: VariableLengths, scaling: float | None
) -> Tensor:
    """Attend within texts; inputs are (1, heads, tokens, dim), the output is (tokens, heads, dim)."""
    assert varlen_attn is not None  # a row is packed for it only where it exists
    default = query.shape[-1] ** -0.5
    if scaling is not None and scaling != default:
        query = query * (scaling / default)
    offsets, longest = lengths
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    return cast(Tensor, varlen_attn(query, key, value, offsets, offsets, longest, longest))


def _parts(runs: Sequence[LengthRun], heads: int) -> Iterator[tuple[LengthRun, slice]]:
    """Yield what is attended at once: all heads of a run, or some heads of a long text.

    Torch copies its inputs, so fewer heads take less memory.
    """
    for run in runs:
        some = _HEADS if run.length > _LONG else heads
        yield from ((run, slice(start, start + some)) for start in range(0, heads, some))


def _texts(row: Tensor, run: LengthRun, heads: slice) -> Tensor:
    """Return a run's part of (1, heads, tokens, dim) as (texts, heads, length, dim)."""
    part = row[0, heads, run.tokens]
    return part.reshape(len(part), run.texts, run.length, -1).transpose(0, 1)


def _attention(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None) -> Tensor:
    """Attend within texts; all arrays are (texts, heads, length, dim)."""
    if query.dtype is not torch.bfloat16 or query.shape[2] > _LONG:
        return functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    # On a CPU, torch's fused attention is no faster in bfloat16 than in float32; two products and a softmax are, as
    # long as their intermediate values fit the cache.
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    some = max(1, _SCORES // (query.shape[0] * key.shape[2]))
    parts = [torch.softmax(part @ key.transpose(2, 3), dim=-1) @ value for part in torch.split(query, some, dim=2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _local_attention(query: Tensor, key: Tensor, value: Tensor, reach: int, *, scaling: float | None) -> Tensor:
    """Attend within texts to the tokens at most `reach` away; all arrays are (texts, heads, length, dim)."""
    parts, length = [], query.shape[2]
    places = torch.arange(length, device=query.device)
    for start in range(0, length, _BLOCK):
        stop = min(length, start + _BLOCK)
        near = slice(max(0, start - reach), min(length, stop + reach))
        mask = (places[start:stop, None] - places[near]).abs() <= reach
        block = (query[:, :, start:stop], key[:, :, near], value[:, :, near])
        parts.append(functional.scaled_dot_product_attention(*block, attn_mask=mask, scale=scaling))
    return torch.cat(parts, dim=2)


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)

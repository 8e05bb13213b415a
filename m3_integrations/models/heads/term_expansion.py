"""Term expansion by a masked-language-model head (SPLADE, arXiv 2107.05720 and 2109.10086)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from m3_integrations.models.cpu_layers import linear

TermPooling = Literal["max", "sum"]
_LOGITS = 1 << 21  # logits at once: 8 MiB in float32
_TOKENS = 512  # tokens of a block


@dataclass(frozen=True)
class ExpansionOptions:
    """What turns the logits of a masked language model into weights of terms.

    Attributes:
        activation: Activation of the head's first layer, as transformers names it.
        eps: Epsilon of its layer norm.
        pooling: Pooling of log(1 + relu(logit)) over the tokens of a text.
        log_twice: Apply log(1 + x) once more, as OpenSearch's models do (arXiv 2504.14839).

    Raises:
        ValueError: If a value is invalid.
    """

    activation: str
    eps: float
    pooling: TermPooling = "max"
    log_twice: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACT2FN:
            raise ValueError(f"activation is one that transformers names, got {self.activation!r}")
        if self.pooling not in ("max", "sum"):
            raise ValueError(f"pooling of terms is 'max' or 'sum', got {self.pooling!r}")
        if not isinstance(self.log_twice, bool) or not 0 <= self.eps < 1:
            raise ValueError(f"log_twice is true or false and eps from 0 to 1, got {self.log_twice!r} and {self.eps!r}")


class TermExpansion(nn.Module):
    """The weight of every term of the vocabulary for each text.

    Logits are computed for blocks of tokens and terms, so that memory grows with texts x vocabulary, never with
    tokens x vocabulary.

    Args:
        options: Options of the head.
        dense: First layer, hidden -> hidden.
        norm: Layer norm after its activation.
        decoder: Weight of each term, shape (vocabulary, hidden).
        bias: Bias of each term, shape (vocabulary,).
    """

    def __init__(
        self, options: ExpansionOptions, dense: nn.Linear, norm: nn.LayerNorm, decoder: nn.Parameter, bias: Tensor
    ) -> None:
        super().__init__()
        self.options = options
        self.dense = dense
        self.norm = norm
        self.activation: nn.Module = ACT2FN[options.activation]
        self.decoder = decoder
        self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def terms(self) -> int:
        """Number of terms."""
        return len(self.decoder)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Weigh the terms of texts.

        Args:
            hidden: Last hidden states of texts one after the other, shape (tokens, hidden).
            lengths: Tokens of each text.

        Returns:
            Weights, at least 0, shape (texts, vocabulary), in float32.
        """
        features = self.norm(self.activation(self.dense(hidden)))
        if self.options.pooling == "sum":
            return torch.stack([self._summed(part) for part in torch.split(features, list(lengths))])
        best = features.new_zeros(len(lengths), self.terms)
        for first, parts, rows in _blocks(lengths):
            width = max(1, _LOGITS // rows)
            block = features[first : first + rows]
            for start in range(0, self.terms, width):
                columns = slice(start, start + width)
                logits = linear(block, self.decoder[columns], self.bias[columns])
                row = 0
                for text, count in parts:
                    best[text, columns] = torch.maximum(best[text, columns], logits[row : row + count].amax(0))
                    row += count
        return self._activated(best)

    def _summed(self, features: Tensor) -> Tensor:
        """Sum the weights over the tokens of one text."""
        total = torch.zeros(self.terms, device=features.device)
        step = max(1, _LOGITS // self.terms)
        for part in torch.split(features, step):
            total += self._activated(torch.relu(linear(part, self.decoder, self.bias))).sum(0)
        return total

    def _activated(self, logits: Tensor) -> Tensor:
        """Apply the logarithm, which keeps the order, to logits of at least 0."""
        weights = torch.log1p(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return torch.log1p(weights) if self.options.log_twice else weights


def _blocks(lengths: Sequence[int]) -> Iterator[tuple[int, list[tuple[int, int]], int]]:
    """Divide texts into blocks of at most `_TOKENS` tokens; long texts go on in the next block.

    Yields:
        The first token, the texts with the number of their tokens in the block, and the number of tokens.
    """
    first, rows, parts = 0, 0, []
    for text, length in enumerate(lengths):
        while length:
            count = min(length, _TOKENS - rows)
            parts.append((text, count))
            rows, length = rows + count, length - count
            if rows == _TOKENS:
                yield first, parts, rows
                first, rows, parts = first + rows, 0, []
    if rows:
        yield first, parts, rows

"""Length of passages in tokens of an encoder, for the text splitters of both frameworks."""

from __future__ import annotations

from m3_integrations.encoders.base import Encoder
from m3_integrations.encoders.composed import ComposedEncoder
from m3_integrations.encoders.m3 import M3Encoder


def count_tokens(encoder: Encoder, text: str) -> int:
    """Return the number of tokens of a passage, without prefix and special tokens.

    Raises:
        ValueError: If the encoder has no tokenizer.
    """
    encoder = _require_tokenizer(encoder)
    return encoder.token_count([text])[0] - encoder.overhead_tokens


def max_tokens(encoder: Encoder) -> int:
    """Return the most tokens of a passage, as `count_tokens` counts, that one forward pass reads.

    Raises:
        ValueError: If the encoder has no tokenizer.
    """
    encoder = _require_tokenizer(encoder)
    return encoder.sequencer.max_content_tokens + 2 - encoder.overhead_tokens


def resolve_chunk_size(encoder: Encoder, chunk_size: int | None) -> int:
    """Return a chunk size that the encoder reads completely.

    Args:
        encoder: The encoder.
        chunk_size: Tokens per chunk; None is the largest that one forward pass reads.

    Raises:
        ValueError: If the encoder has no tokenizer, or would truncate such a chunk.
    """
    most = max_tokens(encoder)
    if chunk_size is None:
        return most
    is_truncated = chunk_size > most and _require_tokenizer(encoder).sequencer.window_overlap is None
    if chunk_size < 1 or is_truncated:
        raise ValueError(
            f"chunk_size must be from 1 to {most} tokens, which {encoder!r} reads of a passage, got {chunk_size}; "
            "leave it out, or set window_overlap=64 to read longer passages in windows"
        )
    return chunk_size


def _require_tokenizer(encoder: Encoder) -> M3Encoder:
    if isinstance(encoder, ComposedEncoder) and isinstance(encoder.shortest, M3Encoder):
        return encoder.shortest
    if not isinstance(encoder, M3Encoder):
        raise ValueError(
            f"{encoder!r} has no tokenizer to count tokens with; pass an M3Encoder, or a model by its name"
        )
    return encoder

"""Low-rank update of m3-mini's encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from m3_integrations.core.encoded import Array

UPDATE = Path(__file__).parents[1] / "m3_mini" / "low_rank.safetensors"
Half = npt.NDArray[np.float16]
_EXACT_BITS = 24  # of a float32's significand
_SMALLEST = 2.0**-12  # has 11 bits above the smallest float16


@cache
def read_update() -> Mapping[str, Half]:
    """Return the factors "<layer>.lora_A", shape (rank, in), and "<layer>.lora_B", shape (out, rank)."""
    return load_file(UPDATE)


def merged(name: str, weight: Array) -> Array:
    """Return a tensor of the weight file with its update, W + B A.

    Args:
        name: Name in BertModel, such as "encoder.layer.3.attention.self.query.weight".
        weight: The tensor, flat; changed in place.

    Returns:
        The tensor of the model, flat; `weight` itself if there is no update of it.
    """
    update, layer = read_update(), name.removesuffix(".weight")
    if f"{layer}.lora_A" in update:
        up, down = (update[f"{layer}.{factor}"].astype(np.float32) for factor in ("lora_B", "lora_A"))
        weight += (up @ down).ravel()  # an exact product, see `round_factors`
    return weight


def round_factors(up: Array, down: Array) -> tuple[Half, Half]:
    """Round the factors of an update to float16 such that float32 computes their product exactly.

    The merged weights, and with them the fingerprint, then depend neither on the processor nor on the order of sums.
    For this, each row of `up` and each column of `down` holds multiples of one power of two.

    Args:
        up: B, shape (out, rank).
        down: A, shape (rank, in).

    Returns:
        B and A.
    """
    bits = min(11, (_EXACT_BITS - (len(down) - 1).bit_length()) // 2)
    return _fixed_point(up, 1, bits), _fixed_point(down, 0, bits)


def _fixed_point(values: Array, axis: int, bits: int) -> Half:
    largest = np.maximum(np.abs(values).max(axis=axis, keepdims=True), _SMALLEST).astype(np.float64)
    unit = np.exp2(np.ceil(np.log2(largest)) - bits)
    return np.ascontiguousarray(np.round(values / unit) * unit, np.float16)

"""int8 copy of multi-vectors with error bounds.

Multi-vectors stored as int8 are such a copy themselves; only a bound of their norms is stored with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array, Arrays
from m3_integrations.index.quantization.codecs import MAX_VALUE, Codes, Int8Codec
from m3_integrations.index.quantization.dense_int8 import max_norm
from m3_integrations.index.quantization.int8_matmul import MAX_DIM, MIN_DIM

CODE_ARRAYS = {"numbers": ("|i1", 2), "scales": ("<u2", 1)}
NORM_ARRAYS = {"reach": ("<f8", 1)}
ERROR_ARRAYS = {"left_out": ("<f8", 1)}
_BLOCK_ROWS = 512

Norms = npt.NDArray[np.float64]


class ErrorBounds(NamedTuple):
    """Bounds over int8 codes.

    Attributes:
        max_norm: Largest distance of a decoded vector from the center.
        quantization_error: Largest distance of a decoded vector from the stored one.
    """

    max_norm: float
    quantization_error: float


def quantize_multi_vector(values: Array) -> Arrays:
    """Quantize vectors to int8 around 0.

    Args:
        values: Shape (vectors, dim).

    Returns:
        `numbers` and `scales`: Codes of `Int8Codec`.
        `reach`: Largest norm of a decoded vector, shape (1,).
        `left_out`: Largest norm of a quantization error, shape (1,).
        No arrays if `int8_matmul` does not support the dimension or the values are too large.
    """
    if not MIN_DIM <= values.shape[1] <= MAX_DIM or np.abs(values).max(initial=0) > MAX_VALUE:
        return {}
    codec = _codec(values.shape[1])
    codes = codec.encode(values)
    errors = (max_norm(values[block] - codec.decode(codes.take(block))) for block in _blocks(codes))
    return {**codes._asdict(), **norm_bound(codes), "left_out": np.array([max(errors, default=0.0)])}


def norm_bound(codes: Codes) -> Arrays:
    """Return the array `reach` of int8 codes: largest distance from the center, (1,)."""
    codec = _codec(codes.numbers.shape[1])
    return {"reach": np.array([max((max_norm(codec.decode(codes.take(b))) for b in _blocks(codes)), default=0.0)])}


def are_valid_bounds(arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Return whether the bounds among the arrays can be bounds."""
    bounds = [arrays[name] for name in (*NORM_ARRAYS, *ERROR_ARRAYS) if name in arrays]
    return all(bound.shape == (1,) and bound[0] >= 0 for bound in bounds)


def error_bounds(segments: Collection[Mapping[str, npt.NDArray[Any]]]) -> ErrorBounds | None:
    """Return bounds over all multi-vectors of some segments.

    Returns:
        The bounds; None if a segment has no int8 codes: written before format 5, in int4, or with a dimension or values
        that `quantize_multi_vector` does not support.
    """
    if not all("reach" in arrays for arrays in segments):
        return None
    bounds = ([arrays[name][0] for arrays in segments if name in arrays] for name in (*NORM_ARRAYS, *ERROR_ARRAYS))
    return ErrorBounds(*(float(max(values, default=0.0)) for values in bounds))


def norms(vectors: Norms) -> Norms:
    """Return the norm of each row; in float64, since float32 overflows when squaring."""
    squares: Norms = np.einsum("nd,nd->n", vectors, vectors)
    return np.sqrt(squares)


def _codec(dim: int) -> Int8Codec:
    return Int8Codec(np.zeros(dim, np.float32))


def _blocks(codes: Codes) -> Iterator[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, len(codes.numbers), _BLOCK_ROWS))

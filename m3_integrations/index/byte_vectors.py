"""Multi-vectors in bytes: what is kept beside float32 ones, and how far it is from them.

Those that are kept as int8 are such bytes themselves; only how long they are at most is kept beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.byte_products import NARROWEST, WIDEST
from m3_integrations.core.encoded import Array
from m3_integrations.index.arrays import Arrays
from m3_integrations.index.coarse import longest_of
from m3_integrations.index.codes import LARGEST, Bytes, Codes

BYTES = {"numbers": ("|i1", 2), "scales": ("<u2", 1)}
REACH = {"reach": ("<f8", 1)}
LEFT_OUT = {"left_out": ("<f8", 1)}
_ROWS_AT_ONCE = 512

Lengths = npt.NDArray[np.float64]


class Limits(NamedTuple):
    """How long at most what the bytes add to their centre is, and what they leave out."""

    reach: float
    left_out: float


def byte_vectors(values: Array) -> Arrays:
    """The arrays to keep beside (vectors, width) values; none where bytes cannot count them.

    numbers, scales: int8's codes around 0. reach: (1,) how long at most one of them is. left_out: (1,) how long at most
    is what they leave out.
    """
    if not NARROWEST <= values.shape[1] <= WIDEST or np.abs(values).max(initial=0) > LARGEST:
        return {}
    coding = _around_zero(values.shape[1])
    codes = coding.encode(values)
    left_out = max((longest_of(values[some] - coding.decode(codes.some(some))) for some in _steps(codes)), default=0.0)
    return {**codes._asdict(), **reach_of(codes), "left_out": np.array([left_out])}


def reach_of(codes: Codes) -> Arrays:
    """reach: (1,) how long at most is what int8 adds to its centre."""
    coding = _around_zero(codes.numbers.shape[1])
    reach = max((longest_of(coding.decode(codes.some(some))) for some in _steps(codes)), default=0.0)
    return {"reach": np.array([reach])}


def are_limits(arrays: Arrays) -> bool:
    """Whether what a search is to trust can be limits."""
    limits = [arrays[name] for name in (*REACH, *LEFT_OUT) if name in arrays]
    return all(limit.shape == (1,) and limit[0] >= 0 for limit in limits)


def limits_of(segments: Collection[Arrays]) -> Limits | None:
    """The limits of all multi-vectors of these segments; None where some have no bytes: before format 5, in
    int4, and where vectors are too narrow, too wide or too large."""
    if not all("reach" in arrays for arrays in segments):
        return None
    most = {name: [arrays[name][0] for arrays in segments if name in arrays] for name in (*REACH, *LEFT_OUT)}
    return Limits(*(float(max(each, default=0.0)) for each in most.values()))


def lengths(vectors: Lengths) -> Lengths:
    """(vectors,). In float64, because float32 cannot square what it can hold."""
    found: Lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return found


def _around_zero(width: int) -> Bytes:
    return Bytes(np.zeros(width, np.float32))


def _steps(codes: Codes) -> Iterator[slice]:
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(codes.numbers), _ROWS_AT_ONCE))

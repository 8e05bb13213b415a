"""Exact integer matrix product of int8 vectors, on processors with AVX-512 VNNI."""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.int8]
Counts = npt.NDArray[np.int32]

MIN_DIM = 16  # torch 2.13 returns wrong numbers for a dimension of 1, and narrow vectors are fast in float32
MAX_DIM = 133_000  # times 127 times 127 is below 2**31


@cache
def has_int8_matmul() -> bool:
    """Return whether `int8_matmul` is available, faster than float32, and exact.

    torch's operation is private, so that it may disappear; it is slower than float32 without AVX-512 VNNI, and on some
    processors it adds pairs of products in 16 bits, which products of the largest numbers reveal.
    """
    import torch  # not at the top: it takes seconds

    if torch.backends.cpu.get_cpu_capability() != "AVX512" or _openmp() is None:
        return False
    extremes = np.where(np.arange(40)[:, None] % 2, 127, -127).astype(np.int8).repeat(406, axis=1)
    try:
        return all(
            np.array_equal(int8_matmul(left, right), left.astype(np.int64) @ right.T.astype(np.int64))
            for dim in (MIN_DIM, 33, 406)
            for left, right in product(*2 * [[extremes[:rows, :dim].copy() for rows in (1, 3, 40)]])
        )
    except (AttributeError, TypeError, RuntimeError):
        return False


def int8_matmul(queries: Bytes, passages: Bytes) -> Counts:
    """Compute `queries @ passages.T` in int32, exactly.

    It runs on the calling thread alone: OpenMP threads spin for milliseconds after their work, and do not exist in a
    forked process.

    Args:
        queries: Shape (queries, dim), values from -127 to 127, dim from `MIN_DIM` to `MAX_DIM`; writable, since torch
            accepts no read-only arrays.
        passages: Shape (passages, dim), likewise.

    Returns:
        Shape (queries, passages). Only meaningful if `has_int8_matmul()`.
    """
    import torch

    openmp = _openmp()
    threads = openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(1)  # of this thread only; torch's own setting is for the whole process
    try:
        products: Counts = torch._int_mm(torch.from_numpy(queries), torch.from_numpy(passages).T).numpy()
    finally:
        openmp.omp_set_num_threads(threads)
    return products


@cache
def _openmp() -> Any:
    """Return torch's OpenMP library; None if it cannot be found."""
    import torch

    library = ctypes.CDLL(torch._C.__file__)
    return library if hasattr(library, "omp_set_num_threads") else None

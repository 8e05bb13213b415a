"""Inner products of vectors of bytes in whole numbers: for processors that multiply four bytes at once."""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.int8]
Counts = npt.NDArray[np.int32]

NARROWEST = 16  # torch's 2.13 answers nonsense for a width of 1, and narrow vectors are quick as they are
WIDEST = 133_000  # times 127 times 127 is below 2**31


@cache
def has_byte_products() -> bool:
    """Whether `byte_products` is quick here, and right.

    torch's operation is a private one: it may go, is slower than float32 where there are no such instructions, and on
    some processors adds pairs of products in 16 bits, which the largest numbers show.
    """
    import torch  # not before it is needed: it takes seconds

    if torch.backends.cpu.get_cpu_capability() != "AVX512" or _openmp() is None:
        return False
    extremes = np.where(np.arange(40)[:, None] % 2, 127, -127).astype(np.int8).repeat(406, axis=1)
    try:
        return all(
            np.array_equal(byte_products(few, many), few.astype(np.int64) @ many.T.astype(np.int64))
            for width in (NARROWEST, 33, 406)
            for few, many in product(*2 * [[extremes[:rows, :width].copy() for rows in (1, 3, 40)]])
        )
    except (AttributeError, TypeError, RuntimeError):
        return False


def byte_products(queries: Bytes, passages: Bytes) -> Counts:
    """(queries, passages): the inner products of (queries, width) and (passages, width), from -127 to 127, exactly.

    Only where `has_byte_products`. width: from `NARROWEST` to `WIDEST`. The arrays must be writable, since torch has no
    others. Computed on the thread that asks: others that are woken spin for milliseconds after they have done their
    part, and a forked process has them no more.
    """
    import torch

    openmp = _openmp()
    before = openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(1)  # of this thread, not of the process, as torch's own setting is
    try:
        products: Counts = torch._int_mm(torch.from_numpy(queries), torch.from_numpy(passages).T).numpy()
    finally:
        openmp.omp_set_num_threads(before)
    return products


@cache
def _openmp() -> Any:
    """The OpenMP that torch computes with; None where it cannot be found."""
    import torch

    library = ctypes.CDLL(torch._C.__file__)
    return library if hasattr(library, "omp_set_num_threads") else None

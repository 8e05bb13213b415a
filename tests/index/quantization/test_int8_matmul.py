from __future__ import annotations

from time import process_time, sleep, thread_time

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from m3_integrations.index.quantization.int8_matmul import has_int8_matmul, int8_matmul

pytestmark = pytest.mark.skipif(not has_int8_matmul(), reason="this processor has no fast int8 products")


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 40), st.sampled_from([16, 17, 63, 384, 1041]))
def test_int8_products_are_exact(seed, queries, passages, width):
    random = np.random.default_rng(seed)
    few, many = (random.integers(-127, 128, (rows, width)).astype(np.int8) for rows in (queries, passages))
    assert np.array_equal(int8_matmul(few, many), few.astype(np.int64) @ many.T.astype(np.int64))


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, -1)])
def test_the_largest_products_do_not_overflow(signs):
    few, many = (np.full((3, 133_000), 127 * sign, np.int8) for sign in signs)
    assert (int8_matmul(few, many) == signs[0] * signs[1] * 127 * 127 * 133_000).all()


def test_a_small_product_runs_on_the_calling_thread():
    few, many = np.ones((12, 384), np.int8), np.ones((3200, 384), np.int8)
    before, here = process_time(), thread_time()
    for _ in range(50):
        int8_matmul(few, many)
        sleep(0.005)  # other threads would spin in this time
    assert process_time() - before < 1.5 * (thread_time() - here) + 0.05


def test_the_number_of_threads_is_restored():
    before = torch.get_num_threads()
    int8_matmul(np.ones((1, 16), np.int8), np.ones((1, 16), np.int8))
    assert torch.get_num_threads() == before

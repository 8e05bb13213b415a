from __future__ import annotations

from time import process_time, sleep, thread_time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3_integrations.core.byte_products import byte_products, has_byte_products

pytestmark = pytest.mark.skipif(not has_byte_products(), reason="this processor has no quick products of bytes")


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 40), st.sampled_from([16, 17, 63, 384, 1041]))
def test_products_of_bytes_are_those_of_whole_numbers(seed, queries, passages, width):
    random = np.random.default_rng(seed)
    few, many = (random.integers(-127, 128, (rows, width)).astype(np.int8) for rows in (queries, passages))
    assert np.array_equal(byte_products(few, many), few.astype(np.int64) @ many.T.astype(np.int64))


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, -1)])
def test_the_largest_products_do_not_run_over(signs):
    few, many = (np.full((3, 133_000), 127 * sign, np.int8) for sign in signs)
    assert (byte_products(few, many) == signs[0] * signs[1] * 127 * 127 * 133_000).all()


def test_a_small_product_wakes_no_other_threads():
    few, many = np.ones((12, 384), np.int8), np.ones((3200, 384), np.int8)
    before, here = process_time(), thread_time()
    for _ in range(50):
        byte_products(few, many)
        sleep(0.005)  # in which threads that were woken would spin
    assert process_time() - before < 1.5 * (thread_time() - here) + 0.05


def test_how_many_threads_compute_is_left_as_it_was():
    before = torch.get_num_threads()
    byte_products(np.ones((1, 16), np.int8), np.ones((1, 16), np.int8))
    assert torch.get_num_threads() == before

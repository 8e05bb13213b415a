from __future__ import annotations

import numpy as np
import pytest
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

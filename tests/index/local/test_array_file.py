from __future__ import annotations

import numpy as np
import pytest

from m3_integrations.index.local.array_file import map_arrays, write_arrays


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "arrays"
    many = np.arange(30_000, dtype=np.float32).reshape(-1, 3)
    written = write_arrays(path, {"one": np.ones((1, 3)), "many": many, "none": np.ones((0, 3))})
    return map_arrays(path, written.length)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(4000, 4001), slice(9990, 10_000), slice(7, 7), slice(0, 10_000)])
def test_reading_ahead_does_not_change_values(mapped, rows):
    mapped.read_ahead("many", rows)
    assert np.array_equal(mapped["many"][rows].ravel(), np.arange(3 * rows.start, 3 * rows.stop))


@pytest.mark.parametrize(("name", "rows"), [("none", slice(0, 0)), ("one", slice(0, 1)), ("one", slice(1, 1))])
def test_one_row_or_none_can_be_read_ahead(mapped, name, rows):
    mapped.read_ahead(name, rows)
    assert np.array_equal(mapped[name], np.ones((len(mapped[name]), 3)))

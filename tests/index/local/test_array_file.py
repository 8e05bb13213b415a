from __future__ import annotations

import numpy as np
import pytest
import xxhash

from m3_integrations.core.errors import DamagedFolder, IndexFolderError
from m3_integrations.index.local.array_file import map_arrays, write_arrays


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "arrays"
    many = np.arange(30_000, dtype=np.float32).reshape(-1, 3)
    written = write_arrays(path, {"steps": np.ones((1, 3)), "values": many, "common": np.ones((0, 3))})
    return map_arrays(path, written.length)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(4000, 4001), slice(9990, 10_000), slice(7, 7), slice(0, 10_000)])
def test_reading_ahead_does_not_change_values(mapped, rows):
    mapped.read_ahead("values", rows)
    assert np.array_equal(mapped["values"][rows].ravel(), np.arange(3 * rows.start, 3 * rows.stop))


@pytest.mark.parametrize(("name", "rows"), [("common", slice(0, 0)), ("steps", slice(0, 1)), ("steps", slice(1, 1))])
def test_one_row_or_none_can_be_read_ahead(mapped, name, rows):
    mapped.read_ahead(name, rows)
    assert np.array_equal(mapped[name], np.ones((len(mapped[name]), 3)))


# Sections and checksums


ARRAYS = {"slots": np.arange(5), "values": np.arange(60_000, dtype=np.float32).reshape(-1, 3), "steps": np.ones(3)}


@pytest.fixture
def path(tmp_path):
    write_arrays(tmp_path / "arrays", ARRAYS)
    return tmp_path / "arrays"


def opened(path, **options):
    return map_arrays(path, path.stat().st_size, **options)


def with_section(path, old, new):
    """Change the entry of a section in the table, which keeps its length, and in its copy."""
    data = path.read_bytes()
    length = int.from_bytes(data[8:16], "little")
    table = data[24 : 24 + length]
    changed = table.replace(old, new)
    assert len(changed) == length
    assert changed != table
    digests = (xxhash.xxh3_64_intdigest(each).to_bytes(8, "little") for each in (table, changed))
    path.unlink()
    path.write_bytes(data.replace(table, changed).replace(*digests))


def test_an_unknown_section_is_skipped_if_it_is_optional(path):
    with_section(path, b"[13,1,", b"[99,0,")
    arrays = opened(path)
    assert set(arrays) == {"slots", "values"}
    assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in arrays)


def test_an_unknown_section_is_refused_by_its_number_if_it_is_required(path):
    with_section(path, b"[13,1,", b"[99,1,")
    with pytest.raises(IndexFolderError, match="a file with section 99, which this version cannot read"):
        opened(path)


def test_a_table_of_a_later_version_is_refused(path):
    with_section(path, b'"version":1', b'"version":2')
    with pytest.raises(IndexFolderError, match="a table of version 2, which this version cannot read"):
        opened(path)


def flip(path, offset, bit=0):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("bit", [0, 7])
def test_a_block_is_verified_before_the_first_use_of_its_values_and_not_before(path, bit):
    flip(path, 200_000, bit)
    for use in (lambda arrays: arrays["values"], lambda arrays: arrays.rows("values", np.array([0, 16_550]))):
        with pytest.raises(DamagedFolder, match=r"arrays differs .* in bytes 19\d+ to 21\d+.*m3 repair"):
            use(opened(path))
    arrays = opened(path)
    assert np.array_equal(arrays.rows("values", np.arange(1000)), ARRAYS["values"][:1000])
    assert not arrays.is_verified("values")
    assert [arrays.damaged_blocks(name) == [] for name in arrays] == [True, False, True]


def test_a_row_across_two_blocks_needs_both(tmp_path):
    wide = np.arange(90_000, dtype=np.float32).reshape(3, -1)
    write_arrays(tmp_path / "wide", {"values": wide})
    flip(tmp_path / "wide", 150_000)
    arrays = opened(tmp_path / "wide")
    assert np.array_equal(arrays.rows("values", np.array([2])), wide[[2]])
    with pytest.raises(DamagedFolder):
        arrays.rows("values", np.array([1]))


@pytest.mark.parametrize("offset", [0, 10, 20, 60, -20, -3])
def test_a_damaged_table_is_read_from_its_copy_on_request(path, offset):
    size = path.stat().st_size
    flip(path, offset % size)
    is_copy = offset < 0
    with pytest.raises(DamagedFolder, match="is not a file of arrays"):
        opened(path, by_copy=is_copy)
    assert np.array_equal(opened(path, by_copy=not is_copy)["values"], ARRAYS["values"])


def test_rows_that_are_used_often_are_verified_with_the_rest_and_damage_there_is_an_error_when_it_is_used(tmp_path):
    path = tmp_path / "a"
    values = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
    write_arrays(path, {"values": values})
    data = bytearray(path.read_bytes())
    data[map_arrays(path, len(data)).offset("values") + 100_000] ^= 1
    for content, is_damaged in ((path.read_bytes(), False), (bytes(data), True)):
        path.write_bytes(content)
        arrays = map_arrays(path, len(content))
        for row in range(40):
            assert np.array_equal(arrays.rows("values", np.array([row])), values[[row]])
        assert arrays.is_verified("values") != is_damaged
    with pytest.raises(DamagedFolder):
        arrays.rows("values", np.array([100_000 // 16]))

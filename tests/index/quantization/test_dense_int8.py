from __future__ import annotations

import sqlite3

import faiss
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from m3_integrations.core.encoded import Encoded
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.core.types import Passage
from m3_integrations.index.filters import Field
from m3_integrations.index.local.array_file import map_arrays, write_arrays
from m3_integrations.index.local.catalog import FILE_NAME
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.quantization.dense_int8 import (
    DENSE_INT8_ARRAYS,
    NO_CANDIDATES,
    find_candidates,
    quantize_dense,
)
from tests.hard_vectors import KINDS, drawn
from tests.index.formats import remove_checks

ROWS = 5000  # more than the number of rows that are always scored exactly


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 300),
    st.sampled_from([1, 3, 16, 31, 64, 384]),
    st.sampled_from(KINDS),
    st.integers(1, 400),
    st.floats(0, 1),
)
def test_no_score_is_outside_the_bounds_of_the_copy(seed, rows, width, kind, count, threshold):
    vectors, (query,) = drawn(seed, rows, width, kind), drawn(seed + 1, 1, width, "plain")
    true = vectors.astype(np.float64) @ query.astype(np.float64)
    min_score = float(np.quantile(true, threshold)) if threshold else -np.inf
    found = find_candidates(quantize_dense(vectors), query, count, min_score)
    assert len(found.rows) == len(set(found.rows.tolist())) <= min(count, rows)
    assert (found.lower <= true[found.rows]).all()
    assert (true[found.rows] <= found.upper).all()
    assert (np.delete(true, found.rows) <= found.others_upper).all()


def test_the_bounds_are_tight():
    vectors = drawn(0, 2000, 384, "plain")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = find_candidates(quantize_dense(vectors), vectors[7], 100, -np.inf)
    assert found.rows[np.argmax(found.lower)] == 7
    # A step is 2 · 4 deviations / 255; uniform errors have a deviation of 1 / √12 of it, in both vectors.
    assert (found.upper - found.lower).max() < 2 * 3 * (8 / 255 / 12**0.5)


def test_the_same_rows_are_found_by_integer_and_by_floating_loops():
    # FAISS has integer loops for dimensions that are multiples of 16, 32 or 64, and floating-point loops for others.
    narrow, query = drawn(0, 500, 48, "plain"), drawn(1, 1, 48, "plain")[0]
    padding = np.zeros((500, 16), np.float32)
    wide, wide_query = np.hstack([narrow, padding]), np.append(query, padding[0])
    one, other = (find_candidates(quantize_dense(v), q, 50, -np.inf) for v, q in ((narrow, query), (wide, wide_query)))
    assert set(one.rows.tolist()) == set(other.rows.tolist())
    scores = [np.sort(each.lower + each.upper) for each in (one, other)]
    np.testing.assert_allclose(*scores, rtol=1e-12)


def test_a_scan_leaks_no_memory():
    arrays, query = quantize_dense(drawn(0, 16, 16, "plain")), np.ones(16, np.float32)
    before = resident()
    for _ in range(50_000):
        find_candidates(arrays, query, 4, -np.inf)
    assert resident() - before < 2 << 20  # a leaked scanner takes 200 bytes: 10 MB


def resident():
    return faiss.get_mem_usage_kb() << 10


def test_no_candidates_have_no_upper_bound():
    assert NO_CANDIDATES.kth_lower(1) == -np.inf == NO_CANDIDATES.join(NO_CANDIDATES).others_upper


def both(folder, vectors, **options):
    """Return a folder to which the vectors were added in four parts, and a MemoryIndex with the same."""
    reference, index = MemoryIndex(), LocalIndex.open(folder, **options)
    for part in np.array_split(np.arange(len(vectors)), 4):
        passages = [Passage(f"p{i:05d}", "", {"third": int(i) % 3}) for i in part]
        for each in (index, reference):
            each.add(passages, Encoded(dense=vectors[part]))
    return index, reference


def assert_same_hits(index, reference, queries, where=None):
    many = np.resize(
        queries, (6, queries.shape[1])
    )  # so many queries are scored without the copy, by one matrix product
    for k in (1, 10, 100, 1000):
        expected = reference.search("dense", Encoded(dense=many), k, where)
        alone = [index.search("dense", Encoded(dense=query[None]), k, where)[0] for query in queries]
        assert alone == expected[: len(queries)]
        assert index.search("dense", Encoded(dense=many), k, where) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_query_gives_exactly_the_hits_of_memory(tmp_path, kind):
    index, reference = both(tmp_path, drawn(0, ROWS, 24, kind))
    with index:
        assert_same_hits(index, reference, drawn(1, 3, 24, "plain"))
        assert_same_hits(index, reference, drawn(0, 3, 24, kind))
        assert_same_hits(index, reference, np.zeros((1, 24), np.float32))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e36])
def test_numbers_whose_squares_leave_float32_give_exact_hits(tmp_path, size):
    vectors = drawn(0, ROWS, 8, "plain")
    vectors[0] = 100
    vectors[-ROWS // 4 :] *= np.float32(size)  # the last of four segments
    index, reference = both(tmp_path, vectors)
    with index:
        for length in (0.0, 1e-30, 1e-10, 1.0):
            assert_same_hits(index, reference, drawn(1, 2, 8, "plain") * np.float32(length))


def test_the_largest_float32_numbers_are_stored_and_found(tmp_path):
    vectors = np.full((ROWS, 4), 3e38, np.float32)
    vectors[1:] *= 0.5 / 127
    index, reference = both(tmp_path, vectors)
    index.close()
    with LocalIndex.open(tmp_path) as index:
        assert_same_hits(index, reference, np.full((1, 4), 1e-10, np.float32))


def test_k_may_be_a_numpy_integer(tmp_path):
    index, reference = both(tmp_path, drawn(0, ROWS, 8, "plain"))
    query = Encoded(dense=drawn(1, 1, 8, "plain"))
    with index:
        assert index.search("dense", query, np.int16(10)) == reference.search("dense", query, 10)


def test_deleted_replaced_updated_or_filtered_passages_are_not_found_by_their_copies(tmp_path):
    vectors, queries = drawn(0, ROWS + 1000, 24, "plain"), drawn(1, 3, 24, "plain")
    index, reference = both(tmp_path, vectors[:ROWS])
    best = [hit.id for hit in reference.search("dense", Encoded(dense=queries[:1]), 300)[0]]
    with index:
        for each in (index, reference):
            each.delete(best[:100])
            each.set_vectors(best[100:200], Encoded(dense=vectors[ROWS : ROWS + 100]))
            each.add([Passage(id, "replacement", {"third": 0}) for id in best[200:]], Encoded(dense=vectors[-100:]))
        assert_same_hits(index, reference, queries)
        for where in (Field("third", "!=", 1), Field("third", "==", 0)):
            assert_same_hits(index, reference, queries, where)


def without_copies(folder):
    """Convert a folder to format 3."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        remove_checks(connection, 3)
        for path in folder.glob("dense-*.segment"):
            arrays = {name: np.array(array) for name, array in map_arrays(path, path.stat().st_size).items()}
            path.unlink()
            written = write_arrays(
                path, {name: array for name, array in arrays.items() if name not in DENSE_INT8_ARRAYS}
            )
            connection.execute("UPDATE segments SET length = ?, checksum = ? WHERE file = ?", (*written, path.name))


def test_a_folder_of_format_3_can_be_searched_and_written(tmp_path):
    vectors, queries = drawn(0, ROWS, 24, "plain"), drawn(1, 2, 24, "plain")
    index, reference = both(tmp_path, vectors)
    index.close()
    without_copies(tmp_path)
    with LocalIndex.open(tmp_path) as index:
        index.verify()
        assert_same_hits(index, reference, queries)
        for each in (index, reference):
            each.add([Passage("new", "")], Encoded(dense=queries[:1]))
        assert_same_hits(index, reference, queries)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:  # so that older versions report it
        assert connection.execute("PRAGMA user_version").fetchone() == (6,)


@pytest.mark.parametrize("name", ["longest", "left_out", "reach", "steps"])
def test_a_segment_with_invalid_bounds_is_damaged(tmp_path, name):
    index, _ = both(tmp_path, drawn(0, 8, 4, "plain"))
    index.close()
    path = next(tmp_path.glob("dense-*.segment"))
    stored = map_arrays(path, path.stat().st_size)
    arrays = {name: np.array(array) for name, array in stored.items()}
    arrays[name][0] = np.nan
    path.unlink()
    write_arrays(path, arrays, stored.about)
    with pytest.raises(DamagedFolder, match="dense vectors"):
        LocalIndex.open(tmp_path)

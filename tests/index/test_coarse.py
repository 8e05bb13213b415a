from __future__ import annotations

import sqlite3

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_integrations.core.encoded import Encoded
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.core.texts import Passage
from m3_integrations.index.arrays import map_arrays, write_arrays
from m3_integrations.index.catalogue import FILE_NAME
from m3_integrations.index.coarse import COARSE, NOBODY, coarse_copy, likely
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.where import Field
from tests.hard_vectors import KINDS, drawn

ROWS = 5000  # more than are always scored exactly


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 300),
    st.sampled_from([1, 3, 16, 31, 64, 384]),
    st.sampled_from(KINDS),
    st.integers(1, 400),
    st.floats(0, 1),
)
def test_no_score_is_outside_the_bounds_that_the_copy_gives(seed, rows, width, kind, count, threshold):
    vectors, (query,) = drawn(seed, rows, width, kind), drawn(seed + 1, 1, width, "plain")
    true = vectors.astype(np.float64) @ query.astype(np.float64)
    least = float(np.quantile(true, threshold)) if threshold else -np.inf
    found = likely(coarse_copy(vectors), query, count, least)
    assert len(found.rows) == len(set(found.rows.tolist())) <= min(count, rows)
    assert (found.lowest <= true[found.rows]).all()
    assert (true[found.rows] <= found.highest).all()
    assert (np.delete(true, found.rows) <= found.rest).all()


def test_the_bounds_are_close():
    vectors = drawn(0, 2000, 384, "plain")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = likely(coarse_copy(vectors), vectors[7], 100, -np.inf)
    assert found.rows[np.argmax(found.lowest)] == 7
    # A dimension's step is 2 · 4 deviations / 255; even errors are its 1 / √12, and both vectors have them.
    assert (found.highest - found.lowest).max() < 2 * 3 * (8 / 255 / 12**0.5)


def test_the_same_rows_are_found_by_integer_and_by_floating_loops():
    # FAISS has loops for whole numbers where a width is a multiple of 16, 32 or 64, and floating ones for the others.
    narrow, query = drawn(0, 500, 48, "plain"), drawn(1, 1, 48, "plain")[0]
    beside = np.zeros((500, 16), np.float32)
    wide, wide_query = np.hstack([narrow, beside]), np.append(query, beside[0])
    one, other = (likely(coarse_copy(v), q, 50, -np.inf) for v, q in ((narrow, query), (wide, wide_query)))
    assert set(one.rows.tolist()) == set(other.rows.tolist())
    scores = [np.sort(each.lowest + each.highest) for each in (one, other)]
    np.testing.assert_allclose(*scores, rtol=1e-12)


def test_nothing_is_left_behind_by_a_scan():
    arrays, query = coarse_copy(drawn(0, 16, 16, "plain")), np.ones(16, np.float32)
    before = resident()
    for _ in range(50_000):
        likely(arrays, query, 4, -np.inf)
    assert resident() - before < 2 << 20  # a scanner that nobody frees takes 200 bytes: 10 MB


def resident():
    return faiss.get_mem_usage_kb() << 10


def test_nobody_scores_above_nothing():
    assert NOBODY.kth(1) == -np.inf == NOBODY.join(NOBODY).rest


def both(folder, vectors, **options):
    """A folder that got these vectors in four parts, and memory that got them too."""
    judge, index = MemoryIndex(), LocalIndex.open(folder, **options)
    for part in np.array_split(np.arange(len(vectors)), 4):
        passages = [Passage(f"p{i:05d}", "", {"third": int(i) % 3}) for i in part]
        for each in (index, judge):
            each.add(passages, Encoded(dense=vectors[part]))
    return index, judge


def assert_the_same(index, judge, queries, where=None):
    many = np.resize(queries, (6, queries.shape[1]))  # so many are scored by the vectors, in one product
    for k in (1, 10, 100, 1000):
        right = judge.search("dense", Encoded(dense=many), k, where)
        alone = [index.search("dense", Encoded(dense=query[None]), k, where)[0] for query in queries]
        assert alone == right[: len(queries)]
        assert index.search("dense", Encoded(dense=many), k, where) == right


@pytest.mark.parametrize("kind", KINDS)
def test_one_query_alone_finds_what_memory_finds_to_the_bit(tmp_path, kind):
    index, judge = both(tmp_path, drawn(0, ROWS, 24, kind))
    with index:
        assert_the_same(index, judge, drawn(1, 3, 24, "plain"))
        assert_the_same(index, judge, drawn(0, 3, 24, kind))
        assert_the_same(index, judge, np.zeros((1, 24), np.float32))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e36])
def test_numbers_beyond_what_float32_can_square_are_searched_alike(tmp_path, size):
    vectors = drawn(0, ROWS, 8, "plain")
    vectors[0] = 100
    vectors[-ROWS // 4 :] *= np.float32(size)  # the last of four segments
    index, judge = both(tmp_path, vectors)
    with index:
        for length in (0.0, 1e-30, 1e-10, 1.0):
            assert_the_same(index, judge, drawn(1, 2, 8, "plain") * np.float32(length))


def test_numbers_at_the_end_of_float32_are_kept_and_found(tmp_path):
    vectors = np.full((ROWS, 4), 3e38, np.float32)
    vectors[1:] *= 0.5 / 127
    index, judge = both(tmp_path, vectors)
    index.close()
    with LocalIndex.open(tmp_path) as index:
        assert_the_same(index, judge, np.full((1, 4), 1e-10, np.float32))


def test_k_may_be_a_number_of_numpy(tmp_path):
    index, judge = both(tmp_path, drawn(0, ROWS, 8, "plain"))
    asked = Encoded(dense=drawn(1, 1, 8, "plain"))
    with index:
        assert index.search("dense", asked, np.int16(10)) == judge.search("dense", asked, 10)


def test_what_was_deleted_replaced_moved_or_filtered_out_is_not_found_by_its_copy(tmp_path):
    vectors, queries = drawn(0, ROWS + 1000, 24, "plain"), drawn(1, 3, 24, "plain")
    index, judge = both(tmp_path, vectors[:ROWS])
    best = [hit.id for hit in judge.search("dense", Encoded(dense=queries[:1]), 300)[0]]
    with index:
        for each in (index, judge):
            each.delete(best[:100])
            each.set_vectors(best[100:200], Encoded(dense=vectors[ROWS : ROWS + 100]))
            each.add([Passage(id, "anew", {"third": 0}) for id in best[200:]], Encoded(dense=vectors[-100:]))
        assert_the_same(index, judge, queries)
        for where in (Field("third", "!=", 1), Field("third", "==", 0)):
            assert_the_same(index, judge, queries, where)


def without_copies(folder):
    """The folder as format 3 had it."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 3")
        for path in folder.glob("dense-*.segment"):
            arrays = {name: np.array(array) for name, array in map_arrays(path, path.stat().st_size).items()}
            path.unlink()
            stamp = write_arrays(path, {name: array for name, array in arrays.items() if name not in COARSE})
            connection.execute("UPDATE segments SET length = ?, checksum = ? WHERE file = ?", (*stamp, path.name))


def test_a_folder_of_format_3_is_searched_and_goes_on(tmp_path):
    vectors, queries = drawn(0, ROWS, 24, "plain"), drawn(1, 2, 24, "plain")
    index, judge = both(tmp_path, vectors)
    index.close()
    without_copies(tmp_path)
    with LocalIndex.open(tmp_path) as index:
        index.verify()
        assert_the_same(index, judge, queries)
        for each in (index, judge):
            each.add([Passage("new", "")], Encoded(dense=queries[:1]))
        assert_the_same(index, judge, queries)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:  # so that a version before says what it is
        assert connection.execute("PRAGMA user_version").fetchone() == (5,)


@pytest.mark.parametrize("name", ["longest", "left_out", "reach", "steps"])
def test_a_segment_whose_bounds_are_none_is_told_of(tmp_path, name):
    index, _ = both(tmp_path, drawn(0, 8, 4, "plain"))
    index.close()
    path = next(tmp_path.glob("dense-*.segment"))
    arrays = {each: np.array(array) for each, array in map_arrays(path, path.stat().st_size).items()}
    arrays[name][0] = np.nan
    path.unlink()
    write_arrays(path, arrays)
    with pytest.raises(DamagedFolder, match="dense vectors"):
        LocalIndex.open(tmp_path)

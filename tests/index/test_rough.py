"""Late interaction by bytes: what it says is within what it says it may be off, and nothing is missed by it."""

from __future__ import annotations

import sqlite3
import tracemalloc
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m3_integrations.core.byte_products import has_byte_products
from m3_integrations.core.encoded import Encoded, MultiVectors, multi_vector_scores
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.core.plan import SearchPlan
from m3_integrations.core.texts import Passage
from m3_integrations.index.arrays import map_arrays, write_arrays
from m3_integrations.index.byte_vectors import byte_vectors, limits_of, reach_of
from m3_integrations.index.catalogue import FILE_NAME
from m3_integrations.index.codes import centre_of, coding_of
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.rough import rough_scores
from m3_integrations.index.segments import Ragged, Segment
from m3_integrations.index.where import Field
from m3_integrations.retrieval.retriever import Retriever
from tests.hard_vectors import KINDS, drawn

quick = pytest.mark.skipif(not has_byte_products(), reason="this processor has no quick products of bytes")


def late(seed, texts, width, kind="plain", least=0):
    """Multi-vectors of texts with `least` to 6 vectors each."""
    counts = np.random.default_rng(seed).integers(least, 7, texts)
    return MultiVectors(drawn(seed, int(counts.sum()), width, kind), np.cumsum([0, *counts]))


def segment(passages, precision):
    """The passages as a segment has them, and as it says that they are."""
    coding = coding_of(precision, centre_of(passages.values))
    if coding is None:
        kept = {"values": passages.values, **byte_vectors(passages.values)}
    else:
        codes = coding.encode(passages.values)
        kept = {**codes._asdict(), **reach_of(codes)}
        passages = MultiVectors(coding.decode(codes), passages.offsets)
    return Segment(
        "multi_vector", passages.width, Path("none"), {"offsets": passages.offsets, **kept}, coding
    ), passages


@quick
@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.sampled_from([16, 31, 384]),
    st.sampled_from(KINDS),
    st.sampled_from(["float32", "int8"]),
)
def test_no_score_is_farther_off_than_is_said(seed, rows, width, kind, precision):
    one, passages = segment(late(seed, rows, width, kind), precision)
    queries = late(seed + 1, 5, width, "plain" if seed % 2 else kind)
    assume(len(passages.values) and len(queries.values))
    every = np.random.default_rng(seed).permutation(rows)
    places = Ragged({7: one}, np.full(rows, 7), passages.offsets[:-1][every], passages.offsets[1:][every])
    found = rough_scores(places, limits_of([one.arrays]), one.coding, queries)
    exact = multi_vector_scores(queries, passages)[:, every]
    assert found.scores.shape == exact.shape
    assert (np.abs(found.scores - exact.astype(np.float64)) <= found.slack[:, None]).all()


@quick
def test_the_bounds_are_close():
    passages, queries = (
        MultiVectors(each / np.linalg.norm(each, axis=1, keepdims=True), np.arange(0, len(each) + 1, 10))
        for each in (drawn(0, 1000, 384, "plain"), drawn(1, 100, 384, "plain"))
    )
    one, _ = segment(passages, "float32")
    places = Ragged({1: one}, np.ones(100, int), passages.offsets[:-1], passages.offsets[1:])
    slack = rough_scores(places, limits_of([one.arrays]), None, queries).slack
    # A vector's step is 4 deviations / 127 or less; even errors are its 1 / √12, and both vectors have them.
    assert (slack < 2 * 4 / 127 / 12**0.5).all()


def both(folder, vectors, **options):
    """A folder that got these multi-vectors in four parts, and memory that got what the folder then held."""
    index, judge = LocalIndex.open(folder, **options), MemoryIndex()
    for part in np.array_split(np.arange(len(vectors)), 4):
        passages = [Passage(f"p{i:05d}", "", {"third": int(i) % 3}) for i in part]
        index.add(passages, Encoded(multi_vector=vectors.take(part)))
        judge.add(passages, index.vectors([each.id for each in passages]))
    return index, judge


def assert_the_same(index, judge, queries, where=None):
    asked = Encoded(multi_vector=queries)
    for k in (1, 10, np.int16(100)):
        right = judge.search("multi_vector", asked, k, where)
        assert index.search("multi_vector", asked, k, where) == right
        assert index.search("multi_vector", asked.take([1]), k, where) == right[1:2]


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_late_interaction_finds_what_memory_finds_to_the_bit(tmp_path, kind, precision):
    index, judge = both(tmp_path, late(0, 300, 24, kind), precision={"multi_vector": precision})
    with index:
        assert_the_same(index, judge, late(1, 3, 24))
        assert_the_same(index, judge, late(0, 3, 24, kind, least=1))
        assert_the_same(index, judge, MultiVectors.of([np.zeros((2, 24)), np.zeros((0, 24)), np.ones((1, 24))]))


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e20, 1e33, 3e36])
def test_numbers_beyond_what_bytes_can_tell_are_searched_alike(tmp_path, size):
    vectors = late(0, 300, 16)
    values = vectors.values.copy()
    values[-200:] *= np.float32(size)
    index, judge = both(tmp_path, MultiVectors(values, vectors.offsets))
    with index:
        for length in (0.0, 1e-30, 1e-5, 1.0):
            asked = late(1, 2, 16, least=1)
            assert_the_same(index, judge, MultiVectors(asked.values * np.float32(length), asked.offsets))


def test_what_was_deleted_replaced_moved_or_filtered_out_is_not_found_by_its_bytes(tmp_path):
    vectors, queries = late(0, 500, 24), late(1, 3, 24, least=1)
    index, judge = both(tmp_path, vectors.take(range(400)))
    best = [hit.id for hit in judge.search("multi_vector", Encoded(multi_vector=queries.take([0])), 60)[0]]
    with index:
        for each in (index, judge):
            each.delete(best[:20])
            each.set_vectors(best[20:40], Encoded(multi_vector=vectors.take(range(400, 420))))
            anew = [Passage(id, "anew", {"third": 0}) for id in best[40:]]
            each.add(anew, Encoded(multi_vector=vectors.take(range(480, 500))))
        assert_the_same(index, judge, queries)
        for where in (Field("third", "!=", 1), Field("third", "==", 0)):
            assert_the_same(index, judge, queries, where)


def in_all_modes(seed, texts, kind="plain", least=0):
    random = np.random.default_rng(seed)
    kept = random.random((texts, 40)) * (random.random((texts, 40)) < random.random(40) ** 2)
    return Encoded(
        drawn(seed, texts, 24, kind),
        scipy.sparse.csr_array(kept.astype(np.float32)),
        late(seed, texts, 24, kind, least),
    )


class Told:
    """An encoder whose questions come encoded, as a retriever needs one."""

    modes = frozenset(("dense", "sparse", "multi_vector"))

    def __init__(self, weights):
        self.weights = weights


WEIGHTS = [(1, 0.3, 1), (1, 0, 1e-3), (1e6, 1, 1), (0, 0, 1), (1, 0.3, 1e39), (1, 0, 1e300), (1e-45, 0, 1e-46)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_hybrid_question_finds_what_memory_finds_to_the_bit(tmp_path, weights, kind):
    encoded, asked = in_all_modes(0, 400, kind, least=int(kind == "near")), in_all_modes(1, 6, kind)
    passages = [Passage(f"p{i:03d}", "") for i in range(400)]
    weighted = dict(zip(("dense", "sparse", "multi_vector"), weights, strict=True))
    with LocalIndex.open(tmp_path) as index, MemoryIndex() as judge:
        for each in (index, judge):
            for part in np.array_split(np.arange(400), 5):
                each.add([passages[i] for i in part], encoded.take(part))
        for propose in (("dense", "sparse"), ("dense", "sparse", "multi_vector"), ("sparse",)):
            plan = SearchPlan(propose=propose, weights=weighted, candidates=100)
            mine, right = (Retriever(Told(weighted), each, plan).retrieve_encoded(asked, 10) for each in (index, judge))
            assert mine == right


ADDED = {  # by format 5
    "dense": set(),
    "sparse": {"common", "common_weights"},
    "multi_vector": {"numbers", "scales", "reach", "left_out"},
}


@pytest.mark.parametrize("size", [1e20, 1e33, 1e35])
def test_a_hybrid_question_over_very_large_vectors_finds_what_memory_finds(tmp_path, size):
    encoded, asked = in_all_modes(0, 400), in_all_modes(1, 3, least=1)
    late = MultiVectors(encoded.multi_vector.values * np.float32(size), encoded.multi_vector.offsets)
    with LocalIndex.open(tmp_path) as index, MemoryIndex() as judge:
        for each in (index, judge):
            each.add([Passage(f"p{i:03d}", "") for i in range(400)], encoded.with_multi_vector(late))
        told = Told({"dense": 1.0, "sparse": 0.3, "multi_vector": 1e5})
        mine, right = (Retriever(told, each).retrieve_encoded(asked, 10) for each in (index, judge))
        assert mine == right


@quick
def test_one_question_without_vectors_leaves_the_bytes_to_the_others():
    one, passages = segment(late(0, 50, 16, least=1), "float32")
    places = Ragged({1: one}, np.ones(50, int), passages.offsets[:-1], passages.offsets[1:])
    asked = MultiVectors.of([drawn(1, 3, 16, "plain"), np.zeros((0, 16)), drawn(2, 2, 16, "plain")])
    found = rough_scores(places, limits_of([one.arrays]), None, asked)
    assert (found.scores[1] == 0).all()
    assert found.slack[1] == 0
    assert np.isfinite(found.slack).all()


@quick
def test_a_question_of_thousands_of_vectors_takes_no_more_memory_than_its_passages():
    one, passages = segment(late(0, 4000, 16, least=1), "float32")
    places = Ragged({1: one}, np.ones(4000, int), passages.offsets[:-1], passages.offsets[1:])
    asked = MultiVectors(drawn(1, 8192, 16, "plain"), [0, 8192])
    tracemalloc.start()
    rough_scores(places, limits_of([one.arrays]), None, asked)
    assert tracemalloc.get_traced_memory()[1] < 150e6  # all similarities at once: 8,192 · 14,000 · 8 bytes
    tracemalloc.stop()


@quick
def test_a_forked_process_goes_on_searching(tmp_path):
    index, _ = both(tmp_path, late(0, 3000, 64, least=5))
    asked = Encoded(multi_vector=MultiVectors(drawn(1, 64, 64, "plain"), [0, 64]))
    with index:
        right = index.search("multi_vector", asked, 5)
        child = get_context("fork").Process(target=_search_again, args=(index, asked, right))
        child.start()
        child.join(60)
        assert child.exitcode == 0


def _search_again(index, asked, right):
    raise SystemExit(0 if index.search("multi_vector", asked, 5) == right else 1)


def as_format_4(folder):
    """The folder as format 4 had it."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 4")
        for path in folder.glob("*.segment"):
            arrays = {name: np.array(array) for name, array in map_arrays(path, path.stat().st_size).items()}
            mode = path.name.partition("-")[0]
            if mode == "sparse":
                arrays |= lists_of_all(arrays)
            path.unlink()
            stamp = write_arrays(path, {name: array for name, array in arrays.items() if name not in ADDED[mode]})
            connection.execute("UPDATE segments SET length = ?, checksum = ? WHERE file = ?", (*stamp, path.name))


def lists_of_all(arrays):
    width = int(arrays["columns"].max()) + 1
    rows = scipy.sparse.csr_array(
        (arrays["weights"], arrays["columns"], arrays["offsets"]), shape=(len(arrays["slots"]), width)
    )
    columns = rows.tocsc()
    terms = np.flatnonzero(np.diff(columns.indptr))
    return {
        "terms": terms.astype("<i4"),
        "term_offsets": columns.indptr[[*terms, -1]].astype("<i8"),
        "posted": columns.indices.astype("<i4"),
        "posted_weights": columns.data,
    }


def test_a_folder_of_format_4_is_searched_and_goes_on(tmp_path):
    encoded, asked = in_all_modes(0, 200), in_all_modes(1, 3, least=1)
    passages = [Passage(f"p{i:03d}", "") for i in range(200)]
    with LocalIndex.open(tmp_path) as index:
        index.add(passages, encoded)
    as_format_4(tmp_path)
    judge = MemoryIndex()
    judge.add(passages, encoded)
    with LocalIndex.open(tmp_path) as index:
        index.verify()
        for _ in range(2):
            for mode in ("dense", "sparse", "multi_vector"):
                assert index.search(mode, asked, 10) == judge.search(mode, asked, 10)
            for each in (index, judge):
                each.add([Passage("new", "")], asked.take([0]))
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:  # so that a version before says what it is
        assert connection.execute("PRAGMA user_version").fetchone() == (5,)


@pytest.mark.parametrize(
    ("precision", "name"),
    [*(("float32", name) for name in ("reach", "left_out", "scales", "numbers")), ("int8", "reach")],
)
def test_bytes_that_cannot_be_are_told_of(tmp_path, precision, name):
    index, _ = both(tmp_path, late(0, 8, 16, least=1), precision={"multi_vector": precision})
    index.close()
    path = next(tmp_path.glob("multi_vector-*.segment"))
    arrays = {each: np.array(array) for each, array in map_arrays(path, path.stat().st_size).items()}
    arrays[name] = np.full(1, np.nan) if arrays[name].dtype == np.float64 else arrays[name][1:]
    path.unlink()
    write_arrays(path, arrays)
    with pytest.raises(DamagedFolder, match="multi-vectors that do not add up"):
        LocalIndex.open(tmp_path)

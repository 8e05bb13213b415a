"""Approximate MaxSim: scores are within their error bounds, and searches by it are exact."""

from __future__ import annotations

import sqlite3
import tracemalloc
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import assume, given, settings, strategies as st

from m3_integrations.core.encoded import Encoded, MultiVectors
from m3_integrations.core.errors import DamagedFolder
from m3_integrations.core.scoring import multi_vector_scores
from m3_integrations.core.types import Passage, SearchPlan
from m3_integrations.index.filters import Field
from m3_integrations.index.local.array_file import MappedArrays, map_arrays, write_arrays
from m3_integrations.index.local.candidates.approximate_maxsim import approximate_maxsim
from m3_integrations.index.local.catalog import FILE_NAME
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.local.segments import RaggedRows, Segment
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.quantization.codecs import make_codec, mean_vector
from m3_integrations.index.quantization.int8_matmul import has_int8_matmul
from m3_integrations.index.quantization.multi_vector_int8 import error_bounds, norm_bound, quantize_multi_vector
from m3_integrations.retrieval.retriever import Retriever
from tests.hard_vectors import KINDS, drawn
from tests.index.formats import remove_checks

needs_int8_matmul = pytest.mark.skipif(not has_int8_matmul(), reason="this processor has no fast int8 products")


def late(seed, texts, width, kind="plain", min_vectors=0):
    """Multi-vectors of texts with `min_vectors` to 6 vectors each."""
    counts = np.random.default_rng(seed).integers(min_vectors, 7, texts)
    return MultiVectors(drawn(seed, int(counts.sum()), width, kind), np.cumsum([0, *counts]))


def segment(passages, precision):
    """Return a segment of the passages, and the passages as it decodes them."""
    codec = make_codec(precision, mean_vector(passages.values))
    if codec is None:
        stored = {"values": passages.values, **quantize_multi_vector(passages.values)}
    else:
        codes = codec.encode(passages.values)
        stored = {**codes._asdict(), **norm_bound(codes)}
        passages = MultiVectors(codec.decode(codes), passages.offsets)
    arrays = MappedArrays(Path("none"), b"")
    for name, array in {"offsets": passages.offsets, **stored}.items():
        arrays.add(name, array, 0, None)
    return Segment("multi_vector", passages.width, Path("none"), arrays, codec), passages


@needs_int8_matmul
@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.sampled_from([16, 31, 384]),
    st.sampled_from(KINDS),
    st.sampled_from(["float32", "int8"]),
)
def test_no_error_exceeds_its_bound(seed, rows, width, kind, precision):
    one, passages = segment(late(seed, rows, width, kind), precision)
    queries = late(seed + 1, 5, width, "plain" if seed % 2 else kind)
    assume(len(passages.values) and len(queries.values))
    every = np.random.default_rng(seed).permutation(rows)
    located = RaggedRows({7: one}, np.full(rows, 7), passages.offsets[:-1][every], passages.offsets[1:][every])
    found = approximate_maxsim(located, error_bounds([one.arrays]), one.codec, queries)
    exact = multi_vector_scores(queries, passages)[:, every]
    assert found.scores.shape == exact.shape
    assert (np.abs(found.scores - exact.astype(np.float64)) <= found.error_bound[:, None]).all()


@needs_int8_matmul
def test_the_bounds_are_tight():
    passages, queries = (
        MultiVectors(each / np.linalg.norm(each, axis=1, keepdims=True), np.arange(0, len(each) + 1, 10))
        for each in (drawn(0, 1000, 384, "plain"), drawn(1, 100, 384, "plain"))
    )
    one, _ = segment(passages, "float32")
    located = RaggedRows({1: one}, np.ones(100, int), passages.offsets[:-1], passages.offsets[1:])
    error_bound = approximate_maxsim(located, error_bounds([one.arrays]), None, queries).error_bound
    # A step is at most 4 deviations / 127; uniform errors have a deviation of 1 / √12 of it, in both vectors.
    assert (error_bound < 2 * 4 / 127 / 12**0.5).all()


def both(folder, vectors, **options):
    """Return a folder to which multi-vectors were added in four parts, and a MemoryIndex with its vectors."""
    index, reference = LocalIndex.open(folder, **options), MemoryIndex()
    for part in np.array_split(np.arange(len(vectors)), 4):
        passages = [Passage(f"p{i:05d}", "", {"third": int(i) % 3}) for i in part]
        index.add(passages, Encoded(multi_vector=vectors.take(part)))
        reference.add(passages, index.vectors([each.id for each in passages]))
    return index, reference


def assert_same_hits(index, reference, queries, where=None):
    queries = Encoded(multi_vector=queries)
    for k in (1, 10, np.int16(100)):
        expected = reference.search("multi_vector", queries, k, where)
        assert index.search("multi_vector", queries, k, where) == expected
        assert index.search("multi_vector", queries.take([1]), k, where) == expected[1:2]


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_maxsim_gives_exactly_the_hits_of_memory(tmp_path, kind, precision):
    index, reference = both(tmp_path, late(0, 300, 24, kind), precision={"multi_vector": precision})
    with index:
        assert_same_hits(index, reference, late(1, 3, 24))
        assert_same_hits(index, reference, late(0, 3, 24, kind, min_vectors=1))
        assert_same_hits(index, reference, MultiVectors.of([np.zeros((2, 24)), np.zeros((0, 24)), np.ones((1, 24))]))


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e20, 1e33, 3e36])
def test_numbers_beyond_the_range_of_int8_give_exact_hits(tmp_path, size):
    vectors = late(0, 300, 16)
    values = vectors.values.copy()
    values[-200:] *= np.float32(size)
    index, reference = both(tmp_path, MultiVectors(values, vectors.offsets))
    with index:
        for length in (0.0, 1e-30, 1e-5, 1.0):
            queries = late(1, 2, 16, min_vectors=1)
            assert_same_hits(index, reference, MultiVectors(queries.values * np.float32(length), queries.offsets))


def test_deleted_replaced_updated_or_filtered_passages_are_not_found_by_their_copies(tmp_path):
    vectors, queries = late(0, 500, 24), late(1, 3, 24, min_vectors=1)
    index, reference = both(tmp_path, vectors.take(range(400)))
    best = [hit.id for hit in reference.search("multi_vector", Encoded(multi_vector=queries.take([0])), 60)[0]]
    with index:
        for each in (index, reference):
            each.delete(best[:20])
            each.set_vectors(best[20:40], Encoded(multi_vector=vectors.take(range(400, 420))))
            replacements = [Passage(id, "new", {"third": 0}) for id in best[40:]]
            each.add(replacements, Encoded(multi_vector=vectors.take(range(480, 500))))
        assert_same_hits(index, reference, queries)
        for where in (Field("third", "!=", 1), Field("third", "==", 0)):
            assert_same_hits(index, reference, queries, where)


def encoded_in_all_modes(seed, texts, kind="plain", min_vectors=0):
    random = np.random.default_rng(seed)
    stored = random.random((texts, 40)) * (random.random((texts, 40)) < random.random(40) ** 2)
    return Encoded(
        drawn(seed, texts, 24, kind),
        scipy.sparse.csr_array(stored.astype(np.float32)),
        late(seed, texts, 24, kind, min_vectors),
    )


class QueriesEncoded:
    """The encoder of a retriever whose queries are encoded already."""

    modes = frozenset(("dense", "sparse", "multi_vector"))

    def __init__(self, weights):
        self.weights = weights

    def weights_for(self, modes):
        return {mode: weight for mode, weight in self.weights.items() if mode in modes}


WEIGHTS = [(1, 0.3, 1), (1, 0, 1e-3), (1e6, 1, 1), (0, 0, 1), (1, 0.3, 1e39), (1, 0, 1e300), (1e-45, 0, 1e-46)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_hybrid_query_gives_exactly_the_hits_of_memory(tmp_path, weights, kind):
    encoded, queries = (
        encoded_in_all_modes(0, 400, kind, min_vectors=int(kind == "near")),
        encoded_in_all_modes(1, 6, kind),
    )
    passages = [Passage(f"p{i:03d}", "") for i in range(400)]
    weighted = dict(zip(("dense", "sparse", "multi_vector"), weights, strict=True))
    with LocalIndex.open(tmp_path) as index, MemoryIndex() as reference:
        for each in (index, reference):
            for part in np.array_split(np.arange(400), 5):
                each.add([passages[i] for i in part], encoded.take(part))
        for propose in (("dense", "sparse"), ("dense", "sparse", "multi_vector"), ("sparse",)):
            plan = SearchPlan(propose=propose, weights=weighted, candidates=100)
            mine, expected = (
                Retriever(QueriesEncoded(weighted), each, plan).retrieve_encoded(queries, 10)
                for each in (index, reference)
            )
            assert mine == expected


ADDED = {  # by format 5
    "dense": set(),
    "sparse": {"common", "common_weights"},
    "multi_vector": {"numbers", "scales", "reach", "left_out"},
}


@pytest.mark.parametrize("size", [1e20, 1e33, 1e35])
def test_a_hybrid_query_over_very_large_vectors_gives_the_hits_of_memory(tmp_path, size):
    encoded, queries = encoded_in_all_modes(0, 400), encoded_in_all_modes(1, 3, min_vectors=1)
    late = MultiVectors(encoded.multi_vector.values * np.float32(size), encoded.multi_vector.offsets)
    with LocalIndex.open(tmp_path) as index, MemoryIndex() as reference:
        for each in (index, reference):
            each.add([Passage(f"p{i:03d}", "") for i in range(400)], encoded.with_multi_vector(late))
        encoder = QueriesEncoded({"dense": 1.0, "sparse": 0.3, "multi_vector": 1e5})
        mine, expected = (Retriever(encoder, each).retrieve_encoded(queries, 10) for each in (index, reference))
        assert mine == expected


@needs_int8_matmul
def test_a_query_without_vectors_does_not_affect_the_others():
    one, passages = segment(late(0, 50, 16, min_vectors=1), "float32")
    located = RaggedRows({1: one}, np.ones(50, int), passages.offsets[:-1], passages.offsets[1:])
    queries = MultiVectors.of([drawn(1, 3, 16, "plain"), np.zeros((0, 16)), drawn(2, 2, 16, "plain")])
    found = approximate_maxsim(located, error_bounds([one.arrays]), None, queries)
    assert (found.scores[1] == 0).all()
    assert found.error_bound[1] == 0
    assert np.isfinite(found.error_bound).all()


@needs_int8_matmul
def test_a_query_of_thousands_of_vectors_takes_little_memory():
    one, passages = segment(late(0, 4000, 16, min_vectors=1), "float32")
    located = RaggedRows({1: one}, np.ones(4000, int), passages.offsets[:-1], passages.offsets[1:])
    queries = MultiVectors(drawn(1, 8192, 16, "plain"), [0, 8192])
    tracemalloc.start()
    approximate_maxsim(located, error_bounds([one.arrays]), None, queries)
    assert tracemalloc.get_traced_memory()[1] < 150e6  # all similarities at once: 8,192 · 14,000 · 8 bytes
    tracemalloc.stop()


@needs_int8_matmul
def test_a_forked_process_can_search(tmp_path):
    index, _ = both(tmp_path, late(0, 3000, 64, min_vectors=5))
    queries = Encoded(multi_vector=MultiVectors(drawn(1, 64, 64, "plain"), [0, 64]))
    with index:
        expected = index.search("multi_vector", queries, 5)
        child = get_context("fork").Process(target=_search_again, args=(index, queries, expected))
        child.start()
        child.join(60)
        assert child.exitcode == 0


def _search_again(index, queries, expected):
    raise SystemExit(0 if index.search("multi_vector", queries, 5) == expected else 1)


def as_format_4(folder):
    """Convert a folder to format 4."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        remove_checks(connection, 4)
        for path in folder.glob("*.segment"):
            arrays = {name: np.array(array) for name, array in map_arrays(path, path.stat().st_size).items()}
            mode = path.name.partition("-")[0]
            if mode == "sparse":
                arrays |= all_lists(arrays)
            path.unlink()
            written = write_arrays(path, {name: array for name, array in arrays.items() if name not in ADDED[mode]})
            connection.execute("UPDATE segments SET length = ?, checksum = ? WHERE file = ?", (*written, path.name))


def all_lists(arrays):
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


def test_a_folder_of_format_4_can_be_searched_and_written(tmp_path):
    encoded, queries = encoded_in_all_modes(0, 200), encoded_in_all_modes(1, 3, min_vectors=1)
    passages = [Passage(f"p{i:03d}", "") for i in range(200)]
    with LocalIndex.open(tmp_path) as index:
        index.add(passages, encoded)
    as_format_4(tmp_path)
    reference = MemoryIndex()
    reference.add(passages, encoded)
    with LocalIndex.open(tmp_path) as index:
        index.verify()
        for _ in range(2):
            for mode in ("dense", "sparse", "multi_vector"):
                assert index.search(mode, queries, 10) == reference.search(mode, queries, 10)
            for each in (index, reference):
                each.add([Passage("new", "")], queries.take([0]))
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:  # so that older versions report it
        assert connection.execute("PRAGMA user_version").fetchone() == (6,)


@pytest.mark.parametrize(
    ("precision", "name"),
    [*(("float32", name) for name in ("reach", "left_out", "scales", "numbers")), ("int8", "reach")],
)
def test_an_invalid_int8_copy_is_damage(tmp_path, precision, name):
    index, _ = both(tmp_path, late(0, 8, 16, min_vectors=1), precision={"multi_vector": precision})
    index.close()
    path = next(tmp_path.glob("multi_vector-*.segment"))
    stored = map_arrays(path, path.stat().st_size)
    arrays = {each: np.array(array) for each, array in stored.items()}
    arrays[name] = np.full(1, np.nan) if arrays[name].dtype == np.float64 else arrays[name][1:]
    path.unlink()
    write_arrays(path, arrays, stored.about)
    with pytest.raises(DamagedFolder, match="inconsistent multi-vectors"):
        LocalIndex.open(tmp_path)

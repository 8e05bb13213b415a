"""Codecs, and folders with coded multi-vectors: every call returns and scores the decoded values."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import suppress

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from m3_integrations.core.encoded import MODES, Encoded, MultiVectors
from m3_integrations.core.errors import DamagedFolder, IndexFolderError, M3Error, MissingMode
from m3_integrations.core.types import Passage, Query
from m3_integrations.index.copying import copy_index
from m3_integrations.index.filters import Field
from m3_integrations.index.local.array_file import map_arrays
from m3_integrations.index.local.catalog import FILE_NAME
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.quantization.codecs import make_codec, mean_vector, rotate, rotate_back
from m3_integrations.nudging.nudger import Nudger
from m3_integrations.testing import HashEncoder, IndexContract
from m3_integrations.testing.sample_data import add, encode, same_vectors
from tests.index.formats import remove_checks

CODED = ("int8", "int4")
WIDTHS = (1, 2, 3, 4, 5, 17, 64, 384)


def drawn(width, count=200, seed=0):
    """Unit vectors around a common direction, and some that are 0, tiny, huge, or the center itself."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, width)) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:4] *= [[0], [1e-9], [1e-4], [1e6]]
    vectors[4] = vectors.mean(axis=0)
    return vectors.astype(np.float32)


def late(*counts, width=384, seed=0):
    """Multi-vectors with these numbers of vectors."""
    vectors = drawn(width, sum(counts) + 5, seed)[5:]
    return Encoded(multi_vector=MultiVectors(vectors, np.cumsum([0, *counts])))


def in_codes(precision):
    return {"multi_vector": precision}


def filled(folder, precision, encoded):
    index = LocalIndex.open(folder, precision=in_codes(precision))
    index.add([Passage(f"p{i:03d}", "", {"i": i}) for i in range(len(encoded))], encoded)
    return index


def files(folder):
    """The content of the multi-vector segments, without generations."""
    paths = sorted(folder.glob("multi_vector-*.segment"))
    arrays = [map_arrays(path, path.stat().st_size) for path in paths]
    return [
        [each[name].tobytes() for name in each if name not in ("slots", "written", "row_checks", "slots_copy")]
        for each in arrays
    ]


EXACT = (
    "test_after_any_writes_it_returns_the_same_as_the_exact_index",
    "test_if_an_id_occurs_twice_the_last_passage_is_stored",
    "test_random_vectors_are_ranked_as_the_exact_index_ranks_them",
    "test_passages_and_vectors_are_in_the_order_of_the_ids",
    "test_set_vectors_replaces_one_mode_and_leaves_the_others",
    "test_set_vectors_stores_the_last_row_if_an_id_occurs_twice",
)


class TestCodedIndex(IndexContract):
    @pytest.fixture(params=CODED)
    def index(self, request, tmp_path):
        if request.node.originalname in EXACT:
            reason = "it compares with the encoded values, bit for bit"
            request.applymarker(pytest.mark.xfail(reason=reason, run=False))
        with LocalIndex.open(tmp_path / "index", precision=in_codes(request.param)) as index:
            yield index

    def reopen(self, index):
        index.close()
        return LocalIndex.open(index.folder)


# Codecs


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("precision", CODED)
@pytest.mark.parametrize("around", ["mean", "zero", "one of them"])
def test_decoded_vectors_are_encoded_to_the_same_bytes(width, precision, around):
    vectors = drawn(width)
    centers = {"mean": mean_vector(vectors), "zero": np.zeros(width, np.float32), "one of them": vectors[9].copy()}
    codec = make_codec(precision, centers[around])
    codes = codec.encode(vectors)
    decoded = codec.decode(codes)
    again = codec.encode(decoded)
    assert np.array_equal(codes.numbers, again.numbers)
    assert np.array_equal(codes.scales, again.scales)
    assert np.array_equal(codec.decode(again), decoded)


@given(st.integers(0, 10**9), st.sampled_from(CODED), st.integers(1, 40), st.floats(1e-6, 1e6))
def test_decoded_vectors_are_encoded_the_same_for_any_spread(seed, precision, width, spread):
    random = np.random.default_rng(seed)
    vectors = (random.standard_cauchy((20, width)) * spread + random.standard_normal(width)).astype(np.float32)
    codec = make_codec(precision, mean_vector(vectors[:3]))
    decoded = codec.decode(codec.encode(vectors))
    assert np.array_equal(codec.decode(codec.encode(decoded)), decoded)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("precision", "bits"), [("int8", 12), ("int4", 9)])
def test_decoded_vectors_near_the_center_are_encoded_the_same(seed, precision, bits):
    # A vector nearer to the center than so many bits becomes the center: the stored scale decides.
    random = np.random.default_rng(seed)
    center = random.standard_normal(17).astype(np.float32)
    codec = make_codec(precision, center)
    apart = random.uniform(-1, 1, (20_000, 17)) * np.linspace(0.8, 2.5, 20_000)[:, None] * 2.0**-bits
    decoded = codec.decode(codec.encode((center + apart * np.abs(center).max()).astype(np.float32)))
    assert np.array_equal(codec.decode(codec.encode(decoded)), decoded)


@pytest.mark.parametrize("precision", CODED)
def test_the_code_of_a_vector_does_not_depend_on_other_vectors(precision):
    vectors = drawn(384, 1300)
    codec = make_codec(precision, mean_vector(vectors))
    codes = codec.encode(vectors)
    decoded = codec.decode(codes)
    for rows in ([7], [1200, 3], range(500, 600)):
        some = codec.encode(vectors[rows])
        assert np.array_equal(some.numbers, codes.numbers[rows])
        assert np.array_equal(codec.decode(some), decoded[rows])


@pytest.mark.parametrize(("precision", "largest"), [("int8", 0.008), ("int4", 0.12)])
def test_a_decoded_vector_is_near_the_encoded_one(precision, largest):
    vectors = drawn(384)[5:]
    codec = make_codec(precision, mean_vector(vectors))
    assert np.linalg.norm(codec.decode(codec.encode(vectors)) - vectors, axis=1).max() < largest


def test_int4_keeps_the_scores_of_similar_vectors():
    vectors = drawn(384)[5:]
    codec = make_codec("int4", mean_vector(vectors))
    squares = np.sum(vectors * codec.decode(codec.encode(vectors)), axis=1)
    assert np.abs(squares - 1).max() < 4e-3  # a scale has 8 bits
    assert abs(squares.mean() - 1) < 1e-3


@pytest.mark.parametrize("width", WIDTHS)
def test_a_rotation_keeps_norms_can_be_inverted_and_does_not_change_its_argument(width):
    for count in (1, 9):
        vectors = drawn(width)[5 : 5 + count]
        before = vectors.copy()
        rotated = rotate(vectors)
        assert np.allclose(np.linalg.norm(rotated, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-5)
        assert np.allclose(rotate_back(rotated), vectors, atol=1e-6)
        assert np.array_equal(vectors, before)


def test_the_rotation_never_changes():
    # Stored codes depend on it. The first four bits of SHAKE-256 of b"m3 rotation" are 0011: signs + + - -.
    hadamard = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    assert np.array_equal(2 * rotate(np.eye(4, dtype=np.float32)), np.array([[1], [1], [-1], [-1]]) * hadamard)


@pytest.mark.parametrize("precision", CODED)
def test_inner_products_of_rotated_vectors_are_those_of_decoded_ones(precision):
    vectors, queries = drawn(100)[5:], drawn(100, seed=1)[5:]
    codec = make_codec(precision, mean_vector(vectors))
    codes = codec.encode(vectors)
    assert np.allclose(
        codec.rotate_query(queries) @ codec.decode_rotated(codes).T, queries @ codec.decode(codes).T, atol=2e-6
    )


@pytest.mark.parametrize("precision", CODED)
def test_no_vectors_can_be_encoded_and_too_large_values_are_an_error(precision):
    codec = make_codec(precision, np.zeros(6, np.float32))
    assert codec.decode(codec.encode(np.zeros((0, 6), np.float32))).shape == (0, 6)
    with pytest.raises(ValueError, match="use float32"):
        codec.encode(np.full((1, 6), 3e38, np.float32))


# Folders


@pytest.mark.parametrize(("precision", "smaller"), [("int8", 3.9), ("int4", 7.5)])
def test_a_coded_folder_is_smaller(tmp_path, precision, smaller):
    sizes = {}
    for each in ("float32", precision):
        with filled(tmp_path / each, each, late(*[200] * 12)):
            sizes[each] = sum(path.stat().st_size for path in (tmp_path / each).glob("multi_vector-*.segment"))
    assert sizes["float32"] / sizes[precision] >= smaller


@pytest.mark.parametrize("precision", CODED)
def test_a_coded_folder_returns_the_same_as_an_exact_index_with_its_vectors(tmp_path, precision):
    queries = late(7, 1, 0, 30, seed=1)
    reference = MemoryIndex()
    with filled(tmp_path, precision, late(*[3, 0, 40, 200, 1] * 8)) as index:
        copy_index(index, reference)
        ids = index.ids()
        for where in (None, Field("i", "<", 20)):
            for mine, exact in zip(
                index.search("multi_vector", queries, 9, where),
                reference.search("multi_vector", queries, 9, where),
                strict=True,
            ):
                assert [hit.id for hit in mine] == [hit.id for hit in exact]
                assert np.allclose([hit.score for hit in mine], [hit.score for hit in exact], atol=1e-6)
        scores = [each.score("multi_vector", queries, [ids] * 4) for each in (index, reference)]
        # int4 rotates the query instead of the vectors.
        assert np.allclose(*scores, atol=1e-6) if precision == "int4" else np.array_equal(*scores)


@pytest.mark.parametrize("precision", CODED)
def test_decoded_vectors_do_not_change_by_merges_and_reopening(tmp_path, precision):
    with filled(tmp_path, precision, late(5, 0, 9)) as index:
        stored = index.vectors(index.ids())
        for i in range(40):
            index.add([Passage(f"q{i:03d}", "")], late(6, seed=2 + i))
        assert len(list(tmp_path.glob("multi_vector-*.segment"))) < 20
        assert same_vectors(index.vectors(["p000", "p001", "p002"]), stored)
        index.verify()
    with LocalIndex.open(tmp_path) as index:
        assert same_vectors(index.vectors(["p000", "p001", "p002"]), stored)


@pytest.mark.parametrize("precision", CODED)
def test_replaced_vectors_can_be_restored_to_the_same_bytes(tmp_path, precision):
    with filled(tmp_path / "one", precision, late(5, 300, 9)) as index:
        ids = index.ids()
        before, bytes_before = index.vectors(ids), files(tmp_path / "one")
        index.set_vectors(ids, late(5, 300, 9, seed=3))
        assert not same_vectors(index.vectors(ids), before)
        index.set_vectors(ids, before)
        assert same_vectors(index.vectors(ids), before)
        assert files(tmp_path / "one")[-1] == bytes_before[0]


@pytest.mark.parametrize("precision", CODED)
def test_equal_coded_passages_tie_by_id(tmp_path, precision):
    with filled(tmp_path, precision, late(33).take([0] * 50)) as index:
        hits = index.search("multi_vector", late(5, seed=1), 50)[0]
        assert [hit.id for hit in hits] == index.ids()
        assert len({hit.score for hit in hits}) == 1


@pytest.mark.parametrize("precision", CODED)
def test_a_nudge_of_multi_vectors_is_reverted_exactly(tmp_path, precision):
    encoder, random = HashEncoder(), np.random.default_rng(0)
    topics = [random.choice(200, 5, replace=False) for _ in range(60)]
    texts = [" ".join(f"w{word}" for word in topic) for topic in topics]
    which = random.integers(0, 60, 240).tolist()
    # Queries of one word of their passage, and of three synonyms that occur in no passage.
    words = [random.permutation(topics[i])[:4] for i in which]
    questions = [f"w{first} " + " ".join(f"s{word}" for word in rest) for first, *rest in words]
    queries = [Query(str(n), text, {f"p{i}": 1.0}) for n, (i, text) in enumerate(zip(which, questions, strict=True))]
    with LocalIndex.open(tmp_path, encoder, precision=in_codes(precision)) as index:
        index.add([Passage(f"p{i}", text) for i, text in enumerate(texts)], encoder.encode_passages(texts))
        before = index.vectors(index.ids())
        nudger = Nudger(encoder, index)
        nudger.fit(queries[:160], queries[160:200], modes=("multi_vector",))
        assert not same_vectors(index.vectors(index.ids()), before)
        nudger.add_queries(queries[200:])
        nudger.refit()
        nudger.revert()
        assert same_vectors(index.vectors(index.ids()), before)


# Precision and format


@pytest.mark.parametrize("precision", ["float32", *CODED])
def test_an_empty_folder_has_a_precision(tmp_path, precision):
    other = {"float32": "int8", "int8": "int4", "int4": "float32"}[precision]
    LocalIndex.open(tmp_path, precision=in_codes(precision)).close()
    with pytest.raises(IndexFolderError, match=rf"as {precision}.*{other}.*open it without precision="):
        LocalIndex.open(tmp_path, precision=in_codes(other))
    with LocalIndex.open(tmp_path) as index, LocalIndex.open(tmp_path, precision=in_codes(precision)):
        add(index, Passage("a", "red"))
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        stored = dict(connection.execute("SELECT mode, precision FROM modes"))
    connection.close()
    assert stored == {"dense": "float32", "sparse": "float32", "multi_vector": precision}


def test_a_folder_of_format_1_is_float32(tmp_path):
    with LocalIndex.open(tmp_path, precision=in_codes("float32")) as index:
        add(index, Passage("a", "red"))
        stored = index.vectors(["a"])
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        remove_checks(connection, 1)
        connection.executescript("ALTER TABLE state DROP COLUMN precision; ALTER TABLE modes DROP COLUMN centre")
    connection.close()
    with pytest.raises(IndexFolderError, match="as float32"):
        LocalIndex.open(tmp_path, precision=in_codes("int8"))
    with LocalIndex.open(tmp_path, precision=in_codes("float32")) as index:
        add(index, Passage("b", "blue"))
        assert same_vectors(index.vectors(["a", "b"]), stored.join(encode(["blue"])))
    with LocalIndex.open(tmp_path, precision=in_codes("float32")) as index:  # of the newest format after the write
        assert same_vectors(index.vectors(["a", "b"]), stored.join(encode(["blue"])))


def test_an_empty_folder_of_format_1_is_filled_as_float32(tmp_path):
    LocalIndex.open(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        remove_checks(connection, 1)
        connection.executescript("ALTER TABLE state DROP COLUMN precision; ALTER TABLE modes DROP COLUMN centre")
    connection.close()
    with LocalIndex.open(tmp_path) as index:
        add(index, Passage("a", "red"))
        assert same_vectors(index.vectors(["a"]), encode(["red"]))


@pytest.mark.parametrize("precision", ["float32", *CODED])
def test_a_folder_of_format_2_can_be_read_unless_it_is_int4(tmp_path, precision):
    with LocalIndex.open(tmp_path, precision=in_codes(precision)) as index:
        add(index, Passage("a", "red"))
        stored = index.vectors(["a"])
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        remove_checks(connection, 2)
    connection.close()
    if precision == "int4":
        with pytest.raises(IndexFolderError, match="ingest the passages into a new folder"):
            LocalIndex.open(tmp_path)
        return
    with LocalIndex.open(tmp_path) as index:
        assert same_vectors(index.vectors(["a"]), stored)


def test_an_invalid_precision_is_an_error_with_a_fix(tmp_path):
    with pytest.raises(ValueError, match="dense vectors are always float32; write precision="):
        LocalIndex.open(tmp_path / "a", precision={"dense": "int8"})
    with pytest.raises(ValueError, match=r"as 'int2'; write precision=.*'float32', 'int8', 'int4'"):
        LocalIndex.open(tmp_path / "a", precision=in_codes("int2"))
    with pytest.raises(MissingMode, match="'colour' is not a mode"):
        LocalIndex.open(tmp_path / "a", precision={"colour": "int8"})
    with pytest.raises(ValueError, match=r"write precision=\{'multi_vector': 'int8'\}"):
        LocalIndex.open(tmp_path / "a", precision="int8")
    assert not (tmp_path / "a").exists()
    LocalIndex.open(tmp_path / "a", precision={"dense": "float32"}).close()


# Damage


@pytest.fixture(scope="module", params=CODED)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "index"
    with LocalIndex.open(folder, precision=in_codes(request.param)) as index:
        for i in range(12):
            add(index, Passage(f"p{i % 9}", f"red {'cat ' * (i % 3)}{i}", {"i": i}))
    return folder


@pytest.fixture
def copied(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("seed", range(25))
def test_a_corrupt_coded_folder_raises_at_worst(copied, seed):
    random = np.random.default_rng(seed)
    for path in copied.glob("multi_vector-*.segment"):
        corrupt = bytearray(path.read_bytes())
        for position in random.integers(0, len(corrupt), 1 + 2 * seed):
            corrupt[position] = random.integers(256)
        path.write_bytes(corrupt)
    with suppress(M3Error):
        _use(copied)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE modes SET centre = NULL WHERE mode = 'multi_vector'",
        "UPDATE modes SET centre = 'middle' WHERE mode = 'multi_vector'",
        "UPDATE modes SET centre = zeroblob(8) WHERE mode = 'multi_vector'",
        "UPDATE modes SET centre = X'0000c07f0000c07f0000c07f0000c07f' WHERE mode = 'multi_vector'",
        "UPDATE modes SET precision = 'float32' WHERE mode = 'multi_vector'",
    ],
)
def test_a_catalog_with_impossible_codecs_is_damaged(copied, statement):
    with sqlite3.connect(copied / FILE_NAME) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(DamagedFolder, match="put back a copy of the whole folder"):
        _use(copied)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE state SET precision = 'int2'", "UPDATE state SET precision = 7"],
)
def test_an_unknown_precision_asks_for_a_newer_version(copied, statement):
    with sqlite3.connect(copied / FILE_NAME) as connection:
        connection.execute(statement)
        connection.execute("UPDATE state SET checks = NULL")
    connection.close()
    with pytest.raises(IndexFolderError, match="install a newer m3-integrations"):
        LocalIndex.open(copied, precision=in_codes("int8"))
    with sqlite3.connect(copied / FILE_NAME) as connection:
        connection.execute("UPDATE modes SET precision = 'int2'")
        connection.execute("UPDATE state SET checks = NULL")
    connection.close()
    with pytest.raises(IndexFolderError, match=r"vectors stored as int2.*install a newer m3-integrations"):
        LocalIndex.open(copied)


def test_scales_that_are_not_finite_are_damage(tmp_path):
    with filled(tmp_path, "int8", late(5, 9)) as index:
        len(index)
        (view,) = index._latest._views.values()
        view.segment.arrays.add("scales", np.full(14, 0x7FC0, np.uint16), 0, None)
        for call in (
            lambda: index.score("multi_vector", late(3), [["p000"]]),
            lambda: index.vectors(["p000"]),
            lambda: index.search("multi_vector", late(3), 1),
        ):
            with pytest.raises(DamagedFolder, match="contains invalid vectors"):
                call()


def _use(folder):
    with LocalIndex.open(folder) as index:
        for mode in MODES:
            index.search(mode, encode(["red cat", "blue"]), 3, Field("i", ">", 1))
        index.passages()
        index.vectors(index.ids())
        index.verify()

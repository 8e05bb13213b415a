"""QdrantIndex meets the index contract, on the embedded engine and on the in-memory client."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from uuid import uuid4

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from m3_integrations import MemoryIndex, Nudger, Passage, QdrantIndex, Query, Retriever, SearchPlan
from m3_integrations.core.encoded import MODES, Encoded, MultiVectors
from m3_integrations.core.errors import IndexFolderError, MissingMode, UnknownId, WrongEncoder
from m3_integrations.index.base import HybridRequest
from m3_integrations.index.copying import copy_index
from m3_integrations.index.filters import Field
from m3_integrations.index.qdrant import CollectionConfig, PartlyWritten, QdrantUnreachable, WrongCollection
from m3_integrations.testing import HashEncoder, IndexContract
from m3_integrations.testing.sample_data import ENCODER, add, encode, fill, hit_ids, random_encoded, same_vectors

SERVER, KEY = os.environ.get("M3_QDRANT_URL"), os.environ.get("M3_QDRANT_KEY")


class TestOverTheEngine(IndexContract):
    @pytest.fixture
    def index(self, tmp_path):
        with QdrantIndex.open(tmp_path, "contract") as index:
            yield index

    def reopen(self, index):
        index.close()
        return QdrantIndex.open(index.folder.parent, index.folder.name)


class TestOverTheStandIn(IndexContract):
    @pytest.fixture
    def index(self):
        with QdrantIndex.open(":memory:", "contract") as index:
            yield index


class TestOverAServer(IndexContract):
    __test__ = SERVER is not None

    @pytest.fixture
    def index(self):
        with QdrantIndex.open(SERVER, f"contract-{uuid4()}", api_key=KEY) as index:
            yield index


@pytest.mark.skipif(SERVER is None, reason="M3_QDRANT_URL names no Qdrant server: the contract over one was not run")
def test_a_server_is_reachable():
    with QdrantIndex.open(SERVER, f"there-{uuid4()}", api_key=KEY) as index:
        assert len(index) == 0


@pytest.fixture(params=["engine", "in-memory"])
def opened(request, tmp_path):
    """Return a function that opens the same collection with any options."""
    client = QdrantClient(":memory:")

    def index(**options):
        if request.param == "engine":
            return QdrantIndex.open(tmp_path, "c", **options)
        return QdrantIndex.from_client(client, "c", **options)

    return index


@pytest.fixture
def pair(opened):
    """Return a collection that counts as large, so that the engine scores, the reference index, and queries."""
    random, index, reference = np.random.default_rng(0), opened(exact_below=0), MemoryIndex()
    encoded = random_encoded(random, 600)
    for each in (index, reference):
        each.add([Passage(f"p{i}", f"text {i}", {"i": i}) for i in range(600)], encoded)
    with index:
        yield index, reference, random_encoded(random, 12)


# Scores of the engine


@pytest.mark.parametrize("mode", MODES)
def test_a_large_collection_ranks_like_the_reference_index(pair, mode):
    index, reference, queries = pair
    for where in (None, Field("i", "<", 250)):
        lists = zip(index.search(mode, queries, 10, where), reference.search(mode, queries, 10, where), strict=True)
        for hits, expected in lists:
            assert hit_ids(hits) == hit_ids(expected)
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_scores_of_a_large_collection_are_exact_up_to_rounding(pair, mode):
    index, reference, queries = pair
    ids = [[f"p{j}" for j in range(i, 600, 50)] for i in range(len(queries))]
    ids[3] = ["p7", "p5", "p7"]
    ids[4] = []
    for scores, expected in zip(index.score(mode, queries, ids), reference.score(mode, queries, ids), strict=True):
        assert scores == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UnknownId, match="unknown"):
        index.score(mode, queries.take([0]), [["p1", "unknown"]])


@pytest.mark.parametrize("mode", MODES)
def test_ties_break_by_id_if_the_engine_scores(opened, mode):
    with opened(exact_below=0) as index:
        add(index, *(Passage(f"{i:03d}", "red") for i in reversed(range(200))))
        assert hit_ids(index.search(mode, encode(["red"]), 5)[0]) == ["000", "001", "002", "003", "004"]


def test_an_empty_query_finds_the_same_as_in_memory(opened):
    empty = Encoded(multi_vector=MultiVectors.of([np.zeros((0, 4))]))
    with opened(exact_below=0) as index:
        fill(index, ["red", "blue"])
        assert hit_ids(index.search("multi_vector", empty, 5)[0]) == ["p0", "p1"]
        assert index.search("sparse", encode([""]), 5) == [[]]
        assert index.score("multi_vector", empty, [["p1"]])[0].tolist() == [0]
        with pytest.raises(UnknownId):
            index.score("multi_vector", empty, [["unknown"]])


# Hybrid search


def hybrid(index, queries, weights, k=10, where=None, propose=("dense", "sparse"), candidates=100):
    """Search without scores by mode."""
    request = HybridRequest(dict.fromkeys(propose, max(k, candidates)), weights)
    return index.search_hybrid(queries, request, k, where, by_mode=False)


class Counting:
    """A backend that records the number of requests per round trip."""

    def __init__(self, engine):
        self.engine, self.trips, self.counts = engine, [], 0

    def count(self):
        self.counts += 1
        return self.engine.count()

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def query(self, requests):
        self.trips.append(len(requests))
        return self.engine.query(requests)


@pytest.mark.parametrize("weights", [{"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}, {"sparse": 2.0}])
@pytest.mark.parametrize("where", [None, Field("i", "<", 250)])
def test_the_engine_computes_the_same_sums_as_the_retriever(pair, weights, where):
    index, reference, queries = pair
    plan = SearchPlan(candidates=30, weights=weights)
    expected = Retriever(ENCODER, reference, plan).retrieve_encoded(queries, 10, where)
    results = hybrid(index, queries, weights, 10, where, candidates=30)
    for fused, matches in zip(results, expected, strict=True):
        assert [each.passage for each in fused] == [match.passage for match in matches]
        assert [each.score for each in fused] == pytest.approx([match.score for match in matches], abs=1e-5)


def test_hybrid_search_without_scores_by_mode_is_one_round_trip_for_all_queries(pair):
    index, _, queries = pair
    counting = Counting(index._backend)
    hybrid(QdrantIndex(counting, CollectionConfig(), 0), queries, {"dense": 1, "sparse": 0.3, "multi_vector": 1})
    assert counting.trips == [len(queries)]


@pytest.mark.parametrize(
    "plan",
    [
        SearchPlan(candidates=30),
        SearchPlan(candidates=30, weights={"sparse": 2.0}),
        SearchPlan(("dense", "sparse", "multi_vector"), 7, {"dense": 0.5, "multi_vector": 1.0}),
        SearchPlan(("multi_vector",), 40, {"dense": 1.0}),
    ],
)
@pytest.mark.parametrize("where", [None, Field("i", "<", 250)])
def test_a_retriever_runs_any_plan_in_two_round_trips(pair, plan, where):
    index, reference, queries = pair
    counting = Counting(index._backend)
    results = Retriever(ENCODER, QdrantIndex(counting, CollectionConfig(), 0), plan).retrieve_encoded(
        queries, 10, where
    )
    assert (len(counting.trips), counting.counts) == (2, 1)  # a large collection is not counted again
    for matches, expected in zip(
        results, Retriever(ENCODER, reference, plan).retrieve_encoded(queries, 10, where), strict=True
    ):
        assert [match.passage for match in matches] == [match.passage for match in expected]
        for match, other in zip(matches, expected, strict=True):
            assert match.by_mode == pytest.approx(other.by_mode, abs=1e-5)
            assert match.score == sum(match.by_mode.values())


async def test_aretrieve_equals_retrieve(opened):
    with opened(exact_below=0) as index:
        fill(index, ["red cat", "blue dog", ""])
        retriever = Retriever(ENCODER, index)
        assert await retriever.aretrieve("a red dog", 2) == retriever.retrieve("a red dog", 2)


def test_a_retriever_searches_mode_by_mode_for_an_empty_query(opened):
    empty = Encoded(multi_vector=MultiVectors.of([np.zeros((0, 4))]))
    plan = SearchPlan(("multi_vector",), weights={"multi_vector": 1.0})
    with opened(exact_below=0) as index:
        fill(index, ["red", "blue"])
        found = Retriever(ENCODER, index, plan).retrieve_encoded(empty, 5)[0]
        assert [(match.passage.id, match.score) for match in found] == [("p0", 0.0), ("p1", 0.0)]


def test_hybrid_search_of_an_empty_sparse_query_uses_the_other_modes(opened):
    with opened() as index:
        fill(index, ["red", "blue"])
        results = hybrid(index, encode([""]), {"dense": 1, "sparse": 1, "multi_vector": 1}, 5)
        assert [each.passage.id for each in results[0]] == ["p0", "p1"]
        assert hybrid(index, encode([""]), {"sparse": 1}, 5, propose=["sparse"]) == [[]]


def test_hybrid_search_checks_its_arguments(opened):
    with opened() as index:
        assert hybrid(index, encode(["red"]), {"dense": 1}) == [[]]
        fill(index, ["red"])
        with pytest.raises(ValueError, match="a weight"):
            hybrid(index, encode(["red"]), {"dense": 0})
        with pytest.raises(ValueError, match="k must be at least 1"):
            hybrid(index, encode(["red"]), {"dense": 1}, 0)
        with pytest.raises(MissingMode, match="sparse"):
            hybrid(index, encode(["red"]).only(["dense"]), {"dense": 1})


async def test_async_searches_equal_the_sync_ones(pair):
    index, _, queries = pair
    request = HybridRequest({"dense": 100, "sparse": 100}, {"dense": 1.0, "sparse": 0.3})
    fused, hits = await asyncio.gather(index.asearch_hybrid(queries, request, 3), index.asearch("dense", queries, 3))
    assert fused == index.search_hybrid(queries, request, 3)
    assert hits == index.search("dense", queries, 3)


# Metadata of a collection, and errors


def test_a_collection_records_its_encoder(opened):
    opened(encoder=HashEncoder()).add([Passage("a", "red")], HashEncoder().encode_passages(["red"]))
    opened(encoder=HashEncoder())
    with pytest.raises(WrongEncoder, match=r"was filled by HashEncoder.*seed=1"):
        opened(encoder=HashEncoder(seed=1))


def test_a_collection_filled_without_an_encoder_records_the_first_one(opened):
    opened().add([Passage("a", "red")], HashEncoder().encode_passages(["red"]))
    opened(encoder=HashEncoder())
    with pytest.raises(WrongEncoder):
        opened(encoder=HashEncoder(seed=1))


def test_a_collection_of_another_program_raises():
    client = QdrantClient(":memory:")
    client.create_collection("theirs", models.VectorParams(size=4, distance=models.Distance.COSINE))
    with pytest.raises(WrongCollection, match="was not made by QdrantIndex"):
        QdrantIndex.from_client(client, "theirs")


def test_a_collection_whose_configuration_differs_from_its_metadata_raises():
    client = QdrantClient(":memory:")
    about = {"widths": {"dense": 4}, "fingerprint": None, "label": None}
    cosine = {"dense": models.VectorParams(size=4, distance=models.Distance.COSINE)}
    client.create_collection("c", cosine, metadata={"m3_integrations": about})
    with pytest.raises(WrongCollection, match="dense vectors of 4 by Cosine"):
        QdrantIndex.from_client(client, "c")


def test_a_folder_of_another_program_raises(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.txt").write_text("hello")
    with pytest.raises(WrongCollection, match=r"holds no m3\.json"):
        QdrantIndex.open(tmp_path, "c")
    (tmp_path / "f").write_text("")
    with pytest.raises(WrongCollection, match="is a file"):
        QdrantIndex.open(tmp_path, "f")


def test_a_folder_open_in_another_process_raises(tmp_path):
    with QdrantIndex.open(tmp_path, "c") as index:
        fill(index, ["red"])
        code = "import sys; from m3_integrations import QdrantIndex; print(len(QdrantIndex.open(sys.argv[1], 'c')))"
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
        assert "is open in another process; close it there" in done.stderr


def test_a_damaged_folder_raises(tmp_path):
    with QdrantIndex.open(tmp_path, "c") as index:
        fill(index, ["red"])
    for file in (tmp_path / "c" / "shard").rglob("segment.json"):
        file.write_text("{")
    with pytest.raises(IndexFolderError, match="cannot be opened"), QdrantIndex.open(tmp_path, "c") as index:
        index.ids()


def test_long_and_empty_vectors_are_stored_bit_for_bit(opened):
    dense = np.float32([[3, 1e-38, -0.0, 1 / 3], [1e30, 0, 0, 0]])
    multi_vector = MultiVectors.of([np.zeros((0, 2)), np.float32([[0, 0], [1 / 3, -5]])])
    with opened() as index:
        index.add([Passage("a", ""), Passage("b", "")], Encoded(dense=dense, multi_vector=multi_vector))
        assert same_vectors(index.vectors(["a", "b"]), Encoded(dense=dense, multi_vector=multi_vector))


def test_quantized_late_interaction_is_rescored_exactly(tmp_path):
    random = np.random.default_rng(0)
    with QdrantIndex.open(tmp_path, "c", layout=CollectionConfig(quantized=True, on_disk=True), exact_below=0) as index:
        encoded = random_encoded(random, 300)
        index.add([Passage(str(i), "") for i in range(300)], encoded)
        index.optimize()
        query = random_encoded(random, 1)
        best = index.search("multi_vector", query, 1)[0][0]
        assert index.score("multi_vector", query, [[best.id]])[0][0] == pytest.approx(best.score, abs=1e-5)


# Partial writes


class Failing:
    """A backend in which every write after the first fails."""

    def __init__(self, engine):
        self.engine, self.writes = engine, 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def upsert(self, points):
        self.writes += 1
        if self.writes > 1:
            raise ConnectionResetError("the connection broke")
        self.engine.upsert(points)


def test_a_partial_write_names_what_was_written_and_can_be_repeated(opened):
    passages = [Passage(f"p{i:04d}", "red") for i in range(1000)]
    with opened() as index:
        with pytest.raises(
            PartlyWritten, match="512 of 1000 passages were written before the connection broke"
        ) as caught:
            add(QdrantIndex(Failing(index._backend), CollectionConfig(), 1000), *passages)
        assert (len(caught.value.written), caught.value.left[0]) == (512, "p0512")
        assert index.ids() == caught.value.written
        add(index, *passages)
        assert index.passages() == passages


# Aliases and nudging


def test_an_alias_switches_readers_to_another_collection():
    client = QdrantClient(":memory:")
    old, new = QdrantIndex.from_client(client, "old"), QdrantIndex.from_client(client, "new")
    fill(old, ["red"])
    fill(new, ["blue", "green"])
    old.set_alias("live")
    assert len(QdrantIndex.from_client(client, "live")) == 1
    new.set_alias("live")
    assert len(QdrantIndex.from_client(client, "live")) == 2


def test_readers_of_an_alias_see_no_half_nudged_collection_and_can_switch_back(tmp_path):
    client, encoder = QdrantClient(":memory:"), HashEncoder()
    texts = [f"topic{i} about thing{i}" for i in range(40)]
    queries = [Query(f"q{i}", f"what of matter{i % 40}, case {i // 40}", {f"p{i % 40}": 1.0}) for i in range(80)]
    original, copy = (QdrantIndex.from_client(client, name, encoder) for name in ("plain", "nudged"))
    original.add([Passage(f"p{i}", text) for i, text in enumerate(texts)], encoder.encode_passages(texts))
    original.set_alias("live")
    live = QdrantIndex.from_client(client, "live", encoder)
    before = live.vectors(live.ids())
    copy_index(original, copy)
    Nudger(encoder, copy, ledger=tmp_path / "ledger.sqlite").fit(queries[:40], queries[40:])
    assert same_vectors(live.vectors(live.ids()), before)
    copy.set_alias("live")
    assert not same_vectors(live.vectors(live.ids()), before)
    original.set_alias("live")
    assert same_vectors(live.vectors(live.ids()), before)


def test_a_folder_has_no_aliases_and_no_snapshots(tmp_path):
    with QdrantIndex.open(tmp_path, "c") as index:
        with pytest.raises(WrongCollection, match="a Qdrant server does"):
            index.set_alias("live")
        with pytest.raises(WrongCollection, match="a Qdrant server does"):
            index.snapshot()


def test_a_nudged_collection_reverts_bit_for_bit(opened):
    encoder = HashEncoder()
    texts = [f"topic{i} about thing{i}" for i in range(60)]
    with opened(encoder=encoder) as index, MemoryIndex() as reference:
        for each in (index, reference):
            each.add([Passage(f"p{i}", text) for i, text in enumerate(texts)], encoder.encode_passages(texts))
        before = index.vectors(index.ids())
        queries = [Query(f"q{i}", f"what of matter{i % 60}, case {i // 60}", {f"p{i % 60}": 1.0}) for i in range(120)]
        moved = []
        for each in (index, reference):
            nudger = Nudger(encoder, each)
            report = nudger.fit(queries[:60], queries[60:])
            assert report.after > report.before
            moved.append(each.vectors(each.ids()))
            nudger.revert()
            nudger.close()
        assert same_vectors(*moved)
        assert not same_vectors(moved[0], before)
        assert same_vectors(index.vectors(index.ids()), before)


def test_the_ledger_is_in_the_folder_and_a_later_nudger_reverts(tmp_path):
    encoder, texts = HashEncoder(), [f"topic{i}" for i in range(40)]
    queries = [Query(f"q{i}", f"matter{i % 40} {i // 40}", {f"p{i % 40}": 1.0}) for i in range(80)]
    with QdrantIndex.open(tmp_path, "c", encoder) as index:
        index.add([Passage(f"p{i}", text) for i, text in enumerate(texts)], encoder.encode_passages(texts))
        before = index.vectors(index.ids())
        nudger = Nudger(encoder, index)
        nudger.fit(queries[:40], queries[40:])
        nudger.close()
    with QdrantIndex.open(tmp_path, "c", encoder) as index:
        assert not same_vectors(index.vectors(index.ids()), before)
        Nudger(encoder, index).revert()
        assert same_vectors(index.vectors(index.ids()), before)


# Without a server or the extra


def test_an_unreachable_server_raises():
    with pytest.raises(QdrantUnreachable, match=r"no Qdrant server answers at http://127\.0\.0\.1:9"):
        QdrantIndex.from_client(QdrantClient(url="http://127.0.0.1:9", check_compatibility=False), "c")


def test_without_the_extra_folders_open_and_qdrant_names_the_command_to_install_it(tmp_path):
    code = """
import sys
sys.modules["qdrant_client"] = None
from m3_integrations import *
from m3_integrations.index import open_index
open_index(sys.argv[1]).close()
try:
    from m3_integrations import QdrantIndex
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "index"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "'qdrant-client' is not installed; run: pip install 'm3-integrations[qdrant]'"


def test_the_payload_is_plain_json(opened):
    with opened() as index:
        add(index, Passage("a", "red", {"year": 2020, "tags": ["x"]}))
        (record,) = next(index._backend.pages(None, ["id", "text", "metadata", "facts"]))
    assert {key: record.payload[key] for key in ("id", "text", "metadata")} == {
        "id": "a",
        "text": "red",
        "metadata": {"year": 2020, "tags": ["x"]},
    }
    assert '"year" == 2020' in record.payload["facts"]


def test_a_purge_is_refused_and_deletes_nothing(opened):
    with opened() as index:
        fill(index, ["red"])
        with pytest.raises(WrongCollection, match=r"does not support purge=True.*copy the rest into a new collection"):
            index.delete(["p0"], purge=True)
        assert index.ids() == ["p0"]

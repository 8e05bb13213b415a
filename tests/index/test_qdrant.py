"""QdrantIndex keeps the contract, over the real engine in this process and over the client's stand-in."""

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
from m3_integrations.index.qdrant import Layout, PartlyWritten, QdrantUnreachable, WrongCollection
from m3_integrations.index.qdrant_copying import copy_index
from m3_integrations.index.where import Field
from m3_integrations.testing import HashEncoder, IndexContract
from m3_integrations.testing.contract import ENCODER, _random_encoded, add, encode, fill, found, same_vectors

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
def test_a_server_is_there():
    with QdrantIndex.open(SERVER, f"there-{uuid4()}", api_key=KEY) as index:
        assert len(index) == 0


@pytest.fixture(params=["engine", "stand-in"])
def opened(request, tmp_path):
    """A function that opens the same place, with any options."""
    client = QdrantClient(":memory:")

    def index(**options):
        if request.param == "engine":
            return QdrantIndex.open(tmp_path, "c", **options)
        return QdrantIndex.over(client, "c", **options)

    return index


@pytest.fixture
def pair(opened):
    """A collection that is large enough for the engine's own scores to count, and the judge."""
    random, index, judge = np.random.default_rng(0), opened(exact_below=0), MemoryIndex()
    encoded = _random_encoded(random, 600)
    for each in (index, judge):
        each.add([Passage(f"p{i}", f"text {i}", {"i": i}) for i in range(600)], encoded)
    with index:
        yield index, judge, _random_encoded(random, 12)


# What the engine scores


@pytest.mark.parametrize("mode", MODES)
def test_a_large_collection_is_ranked_as_the_exact_index_ranks_it(pair, mode):
    index, judge, queries = pair
    for where in (None, Field("i", "<", 250)):
        lists = zip(index.search(mode, queries, 10, where), judge.search(mode, queries, 10, where), strict=True)
        for hits, expected in lists:
            assert found(hits) == found(expected)
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_scores_of_a_large_collection_are_exact_but_for_rounding(pair, mode):
    index, judge, queries = pair
    ids = [[f"p{j}" for j in range(i, 600, 50)] for i in range(len(queries))]
    ids[3] = ["p7", "p5", "p7"]
    ids[4] = []
    for scores, expected in zip(index.score(mode, queries, ids), judge.score(mode, queries, ids), strict=True):
        assert scores == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UnknownId, match="nobody"):
        index.score(mode, queries.take([0]), [["p1", "nobody"]])


@pytest.mark.parametrize("mode", MODES)
def test_ties_break_by_id_where_the_engine_scores(opened, mode):
    with opened(exact_below=0) as index:
        add(index, *(Passage(f"{i:03d}", "red") for i in reversed(range(200))))
        assert found(index.search(mode, encode(["red"]), 5)[0]) == ["000", "001", "002", "003", "004"]


def test_a_query_without_tokens_finds_as_little_as_in_memory(opened):
    silent = Encoded(multi_vector=MultiVectors.of([np.zeros((0, 4))]))
    with opened(exact_below=0) as index:
        fill(index, ["red", "blue"])
        assert found(index.search("multi_vector", silent, 5)[0]) == ["p0", "p1"]
        assert index.search("sparse", encode([""]), 5) == [[]]
        assert index.score("multi_vector", silent, [["p1"]])[0].tolist() == [0]
        with pytest.raises(UnknownId):
            index.score("multi_vector", silent, [["nobody"]])


# Hybrid, in one round trip


class Counting:
    """An engine that remembers how many questions each round trip held."""

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
def test_the_engine_fuses_as_the_retriever_does(pair, weights, where):
    index, judge, queries = pair
    plan = SearchPlan(candidates=30, weights=weights)
    expected = Retriever(ENCODER, judge, plan).retrieve_encoded(queries, 10, where)
    answered = index.hybrid(queries, weights, 10, where, candidates=30)
    for fused, matches in zip(answered, expected, strict=True):
        assert [each.passage for each in fused] == [match.passage for match in matches]
        assert [each.score for each in fused] == pytest.approx([match.score for match in matches], abs=1e-5)


def test_hybrid_is_one_round_trip_for_all_queries(pair):
    index, _, queries = pair
    counting = Counting(index._engine)
    QdrantIndex(counting, Layout(), 0).hybrid(queries, {"dense": 1, "sparse": 0.3, "multi_vector": 1})
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
def test_a_retriever_has_the_whole_plan_carried_out_at_once(pair, plan, where):
    index, judge, queries = pair
    counting = Counting(index._engine)
    answered = Retriever(ENCODER, QdrantIndex(counting, Layout(), 0), plan).retrieve_encoded(queries, 10, where)
    assert (len(counting.trips), counting.counts) == (2, 1)  # once seen to be large it is not counted again
    for matches, expected in zip(
        answered, Retriever(ENCODER, judge, plan).retrieve_encoded(queries, 10, where), strict=True
    ):
        assert [match.passage for match in matches] == [match.passage for match in expected]
        for match, other in zip(matches, expected, strict=True):
            assert match.by_mode == pytest.approx(other.by_mode, abs=1e-5)
            assert match.score == sum(match.by_mode.values())


async def test_a_retriever_may_be_awaited_over_it(opened):
    with opened(exact_below=0) as index:
        fill(index, ["red cat", "blue dog", ""])
        retriever = Retriever(ENCODER, index)
        assert await retriever.aretrieve("a red dog", 2) == retriever.retrieve("a red dog", 2)


def test_a_retriever_goes_mode_by_mode_for_a_question_that_says_nothing(opened):
    silent = Encoded(multi_vector=MultiVectors.of([np.zeros((0, 4))]))
    plan = SearchPlan(("multi_vector",), weights={"multi_vector": 1.0})
    with opened(exact_below=0) as index:
        fill(index, ["red", "blue"])
        found = Retriever(ENCODER, index, plan).retrieve_encoded(silent, 5)[0]
        assert [(match.passage.id, match.score) for match in found] == [("p0", 0.0), ("p1", 0.0)]


def test_hybrid_of_a_query_that_shares_no_token_goes_by_the_other_modes(opened):
    with opened() as index:
        fill(index, ["red", "blue"])
        answered = index.hybrid(encode([""]), {"dense": 1, "sparse": 1, "multi_vector": 1}, 5)
        assert [each.passage.id for each in answered[0]] == ["p0", "p1"]
        assert index.hybrid(encode([""]), {"sparse": 1}, 5, propose=["sparse"]) == [[]]


def test_hybrid_says_what_it_lacks(opened):
    with opened() as index:
        assert index.hybrid(encode(["red"]), {"dense": 1}) == [[]]
        fill(index, ["red"])
        with pytest.raises(ValueError, match="a weight"):
            index.hybrid(encode(["red"]), {"dense": 0})
        with pytest.raises(ValueError, match="k must be at least 1"):
            index.hybrid(encode(["red"]), {"dense": 1}, 0)
        with pytest.raises(MissingMode, match="sparse"):
            index.hybrid(encode(["red"]).only(["dense"]), {"dense": 1})


async def test_questions_are_asked_while_the_event_loop_goes_on(pair):
    index, _, queries = pair
    weights = {"dense": 1.0, "sparse": 0.3}
    fused, hits = await asyncio.gather(index.ahybrid(queries, weights, 3), index.asearch("dense", queries, 3))
    assert fused == index.hybrid(queries, weights, 3)
    assert hits == index.search("dense", queries, 3)


# What a collection remembers, and refuses


def test_a_collection_remembers_its_encoder(opened):
    opened(encoder=HashEncoder()).add([Passage("a", "red")], HashEncoder().encode_passages(["red"]))
    opened(encoder=HashEncoder())
    with pytest.raises(WrongEncoder, match=r"was filled by HashEncoder.*seed=1"):
        opened(encoder=HashEncoder(seed=1))


def test_a_collection_filled_without_an_encoder_meets_its_first(opened):
    opened().add([Passage("a", "red")], HashEncoder().encode_passages(["red"]))
    opened(encoder=HashEncoder())
    with pytest.raises(WrongEncoder):
        opened(encoder=HashEncoder(seed=1))


def test_a_collection_of_somebody_else_is_refused():
    client = QdrantClient(":memory:")
    client.create_collection("theirs", models.VectorParams(size=4, distance=models.Distance.COSINE))
    with pytest.raises(WrongCollection, match="was not made by QdrantIndex"):
        QdrantIndex.over(client, "theirs")


def test_a_collection_that_compares_otherwise_than_it_says_is_refused():
    client = QdrantClient(":memory:")
    about = {"widths": {"dense": 4}, "fingerprint": None, "label": None}
    cosine = {"dense": models.VectorParams(size=4, distance=models.Distance.COSINE)}
    client.create_collection("c", cosine, metadata={"m3_integrations": about})
    with pytest.raises(WrongCollection, match="dense vectors of 4 by Cosine"):
        QdrantIndex.over(client, "c")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.txt").write_text("hello")
    with pytest.raises(WrongCollection, match=r"holds no m3\.json"):
        QdrantIndex.open(tmp_path, "c")
    (tmp_path / "f").write_text("")
    with pytest.raises(WrongCollection, match="is a file"):
        QdrantIndex.open(tmp_path, "f")


def test_a_folder_that_another_process_has_open_says_so(tmp_path):
    with QdrantIndex.open(tmp_path, "c") as index:
        fill(index, ["red"])
        code = "import sys; from m3_integrations import QdrantIndex; print(len(QdrantIndex.open(sys.argv[1], 'c')))"
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
        assert "is open in another process; close it there" in done.stderr


def test_a_folder_that_is_damaged_says_so(tmp_path):
    with QdrantIndex.open(tmp_path, "c") as index:
        fill(index, ["red"])
    for file in (tmp_path / "c" / "shard").rglob("segment.json"):
        file.write_text("{")
    with pytest.raises(IndexFolderError, match="cannot be opened"), QdrantIndex.open(tmp_path, "c") as index:
        index.ids()


def test_vectors_are_kept_to_the_bit_longer_than_1_and_empty(opened):
    dense = np.float32([[3, 1e-38, -0.0, 1 / 3], [1e30, 0, 0, 0]])
    late = MultiVectors.of([np.zeros((0, 2)), np.float32([[0, 0], [1 / 3, -5]])])
    with opened() as index:
        index.add([Passage("a", ""), Passage("b", "")], Encoded(dense=dense, multi_vector=late))
        assert same_vectors(index.vectors(["a", "b"]), Encoded(dense=dense, multi_vector=late))


def test_late_interaction_may_be_quantised_and_is_rescored(tmp_path):
    random = np.random.default_rng(0)
    with QdrantIndex.open(tmp_path, "c", layout=Layout(quantised=True, on_disk=True), exact_below=0) as index:
        encoded = _random_encoded(random, 300)
        index.add([Passage(str(i), "") for i in range(300)], encoded)
        index.optimise()
        query = _random_encoded(random, 1)
        best = index.search("multi_vector", query, 1)[0][0]
        assert index.score("multi_vector", query, [[best.id]])[0][0] == pytest.approx(best.score, abs=1e-5)


# Writing in parts


class Failing:
    """An engine whose every write after the first fails."""

    def __init__(self, engine):
        self.engine, self.writes = engine, 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def upsert(self, points):
        self.writes += 1
        if self.writes > 1:
            raise ConnectionResetError("the line is dead")
        self.engine.upsert(points)


def test_a_write_that_fails_half_way_says_what_is_written_and_can_be_written_again(opened):
    passages = [Passage(f"p{i:04d}", "red") for i in range(1000)]
    with opened() as index:
        with pytest.raises(PartlyWritten, match="512 of 1000 passages were written before the line is dead") as caught:
            add(QdrantIndex(Failing(index._engine), Layout(), 1000), *passages)
        assert (len(caught.value.written), caught.value.left[0]) == (512, "p0512")
        assert index.ids() == caught.value.written
        add(index, *passages)
        assert index.passages() == passages


# Aliases, and nudging


def test_an_alias_switches_readers_to_another_collection_at_once():
    client = QdrantClient(":memory:")
    old, new = QdrantIndex.over(client, "old"), QdrantIndex.over(client, "new")
    fill(old, ["red"])
    fill(new, ["blue", "green"])
    old.serve_as("live")
    assert len(QdrantIndex.over(client, "live")) == 1
    new.serve_as("live")
    assert len(QdrantIndex.over(client, "live")) == 2


def test_readers_by_an_alias_see_no_half_nudged_collection_and_go_back_at_once(tmp_path):
    client, encoder = QdrantClient(":memory:"), HashEncoder()
    texts = [f"topic{i} about thing{i}" for i in range(40)]
    queries = [Query(f"q{i}", f"what of matter{i % 40}", {f"p{i % 40}": 1.0}) for i in range(80)]
    plain, aside = (QdrantIndex.over(client, name, encoder) for name in ("plain", "nudged"))
    plain.add([Passage(f"p{i}", text) for i, text in enumerate(texts)], encoder.encode_passages(texts))
    plain.serve_as("live")
    live = QdrantIndex.over(client, "live", encoder)
    before = live.vectors(live.ids())
    copy_index(plain, aside)
    Nudger(encoder, aside, ledger=tmp_path / "ledger.sqlite").fit(queries[:40], queries[40:])
    assert same_vectors(live.vectors(live.ids()), before)
    aside.serve_as("live")
    assert not same_vectors(live.vectors(live.ids()), before)
    plain.serve_as("live")
    assert same_vectors(live.vectors(live.ids()), before)


def test_a_folder_has_no_aliases_and_no_snapshots(tmp_path):
    with QdrantIndex.open(tmp_path, "c") as index:
        with pytest.raises(WrongCollection, match="a Qdrant server can"):
            index.serve_as("live")
        with pytest.raises(WrongCollection, match="a Qdrant server can"):
            index.snapshot()


def test_a_collection_is_nudged_and_goes_back_to_the_bit(opened):
    encoder = HashEncoder()
    texts = [f"topic{i} about thing{i}" for i in range(60)]
    with opened(encoder=encoder) as index, MemoryIndex() as judge:
        for each in (index, judge):
            each.add([Passage(f"p{i}", text) for i, text in enumerate(texts)], encoder.encode_passages(texts))
        before = index.vectors(index.ids())
        queries = [Query(f"q{i}", f"what of matter{i % 60}", {f"p{i % 60}": 1.0}) for i in range(120)]
        moved = []
        for each in (index, judge):
            nudger = Nudger(encoder, each)
            report = nudger.fit(queries[:60], queries[60:])
            assert report.after > report.before
            moved.append(each.vectors(each.ids()))
            nudger.revert()
            nudger.close()
        assert same_vectors(*moved)
        assert not same_vectors(moved[0], before)
        assert same_vectors(index.vectors(index.ids()), before)


def test_the_ledger_lies_in_the_folder_and_the_next_process_goes_back(tmp_path):
    encoder, texts = HashEncoder(), [f"topic{i}" for i in range(40)]
    queries = [Query(f"q{i}", f"matter{i % 40}", {f"p{i % 40}": 1.0}) for i in range(80)]
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


# Without


def test_nobody_there_is_said():
    with pytest.raises(QdrantUnreachable, match=r"no Qdrant answers at http://127\.0\.0\.1:9"):
        QdrantIndex.over(QdrantClient(url="http://127.0.0.1:9", check_compatibility=False), "c")


def test_without_the_extra_it_says_what_to_install():
    code = """
import sys
sys.modules["qdrant_client"] = None
from m3_integrations import *
try:
    from m3_integrations import QdrantIndex
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "'qdrant-client' is not installed; run: pip install 'm3-integrations[qdrant]'"


def test_what_is_kept_reads_as_anyone_would_write_it(opened):
    with opened() as index:
        add(index, Passage("a", "red", {"year": 2020, "tags": ["x"]}))
        (record,) = next(index._engine.pages(None, ["id", "text", "metadata", "facts"]))
    assert {key: record.payload[key] for key in ("id", "text", "metadata")} == {
        "id": "a",
        "text": "red",
        "metadata": {"year": 2020, "tags": ["x"]},
    }
    assert '"year" == 2020' in record.payload["facts"]

"""QdrantIndex over HTTP: the client's real calls, and the real engine behind them."""

from __future__ import annotations

import pytest

from m3_integrations import Field, Passage, QdrantIndex
from m3_integrations.core.errors import WrongEncoder
from m3_integrations.index.qdrant import QdrantUnreachable
from m3_integrations.testing import HashEncoder, IndexContract
from m3_integrations.testing.contract import encode, fill, found
from tests.index.qdrant_over_http import Server

pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path / "collection")


class TestOverHttp(IndexContract):
    @pytest.fixture
    def index(self, server):
        with server.running() as url, QdrantIndex.open(url, "contract") as index:
            yield index


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_passes_is_not_heard_of(server, status):
    with server.running() as url, QdrantIndex.open(url.replace("http", "qdrant"), "c") as index:
        fill(index, ["red"])
        server.failures = [status]
        fill(index, ["red", "blue"])
        assert index.ids() == ["p0", "p1"]


def test_a_write_that_did_arrive_and_is_made_again_changes_nothing(server):
    with server.running() as url, QdrantIndex.open(url, "c") as index:
        fill(index, ["red", "blue"])
        fill(index, ["red", "blue"])
        assert len(index) == 2


def test_a_key_is_sent_and_one_that_is_refused_is_said(server):
    server.key = "secret"
    with server.running() as url:
        with pytest.raises(QdrantUnreachable, match="refuses the key; pass api_key="):
            QdrantIndex.open(url, "c", api_key="wrong")
        with QdrantIndex.open(url, "c", api_key="secret") as index:
            fill(index, ["red"])
            assert len(index) == 1


def test_a_hybrid_question_is_one_request(server):
    with server.running() as url, QdrantIndex.open(url, "c") as index:
        fill(index, ["red cat", "blue dog", "red dog"])
        server.asked.clear()
        weights = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
        answered = index.hybrid(encode(["red cat"]), weights, 2, Field("i", ">", 0))[0]
        assert [each.passage.text for each in answered] == ["red dog", "blue dog"]
        assert server.asked == ["POST /collections/x/points/query/batch"]


def test_a_large_collection_is_searched_in_one_request(server):
    with server.running() as url, QdrantIndex.open(url, "c", exact_below=0) as index:
        fill(index, ["red cat", "blue dog", "red dog"])
        index.search("dense", encode(["red"]), 1)
        server.asked.clear()
        assert found(index.search("sparse", encode(["red cat"]), 1)[0]) == ["p0"]
        assert server.asked == ["POST /collections/x/points/query/batch"]


def test_a_collection_remembers_its_encoder_over_the_wire(server):
    with server.running() as url:
        with QdrantIndex.open(url, "c") as index:
            index.add([Passage("a", "red")], HashEncoder().encode_passages(["red"]))
        with QdrantIndex.open(url, "c", HashEncoder()) as index:
            assert index.encoder[0] == HashEncoder().fingerprint
        with pytest.raises(WrongEncoder):
            QdrantIndex.open(url, "c", HashEncoder(seed=1))

"""QdrantIndex over HTTP: the client's real calls, answered by the embedded engine."""

from __future__ import annotations

import pytest

from m3_integrations import Field, Passage, QdrantIndex
from m3_integrations.core.errors import WrongEncoder
from m3_integrations.index.base import HybridRequest
from m3_integrations.index.qdrant import QdrantUnreachable
from m3_integrations.testing import HashEncoder, IndexContract
from m3_integrations.testing.sample_data import encode, fill, hit_ids
from tests.index.qdrant.qdrant_over_http import Server

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
def test_a_transient_failure_is_retried(server, status):
    with server.running() as url, QdrantIndex.open(url.replace("http", "qdrant"), "c") as index:
        fill(index, ["red"])
        server.failures = [status]
        fill(index, ["red", "blue"])
        assert index.ids() == ["p0", "p1"]


def test_a_repeated_write_changes_nothing(server):
    with server.running() as url, QdrantIndex.open(url, "c") as index:
        fill(index, ["red", "blue"])
        fill(index, ["red", "blue"])
        assert len(index) == 2


def test_the_key_is_sent_and_a_wrong_one_raises(server):
    server.key = "secret"
    with server.running() as url:
        with pytest.raises(QdrantUnreachable, match="refuses the key; pass api_key="):
            QdrantIndex.open(url, "c", api_key="wrong")
        with QdrantIndex.open(url, "c", api_key="secret") as index:
            fill(index, ["red"])
            assert len(index) == 1


def test_a_hybrid_search_without_scores_by_mode_is_one_request(server):
    with server.running() as url, QdrantIndex.open(url, "c") as index:
        fill(index, ["red cat", "blue dog", "red dog"])
        server.calls.clear()
        weights = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}
        request = HybridRequest({"dense": 100, "sparse": 100}, weights)
        results = index.search_hybrid(encode(["red cat"]), request, 2, Field("i", ">", 0), by_mode=False)[0]
        assert [each.passage.text for each in results] == ["red dog", "blue dog"]
        assert server.calls == ["POST /collections/x/points/query/batch"]


def test_a_large_collection_is_searched_in_one_request(server):
    with server.running() as url, QdrantIndex.open(url, "c", exact_below=0) as index:
        fill(index, ["red cat", "blue dog", "red dog"])
        index.search("dense", encode(["red"]), 1)
        server.calls.clear()
        assert hit_ids(index.search("sparse", encode(["red cat"]), 1)[0]) == ["p0"]
        assert server.calls == ["POST /collections/x/points/query/batch"]


def test_a_collection_records_its_encoder_over_http(server):
    with server.running() as url:
        with QdrantIndex.open(url, "c") as index:
            index.add([Passage("a", "red")], HashEncoder().encode_passages(["red"]))
        with QdrantIndex.open(url, "c", HashEncoder()) as index:
            assert index.encoder[0] == HashEncoder().fingerprint
        with pytest.raises(WrongEncoder):
            QdrantIndex.open(url, "c", HashEncoder(seed=1))

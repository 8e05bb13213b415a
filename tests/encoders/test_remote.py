"""RemoteEncoder over a server in a thread: the same encoder elsewhere."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from m3_integrations import Encoder, MemoryIndex, Passage, RemoteEncoder, Retriever, ingest
from m3_integrations.adapters.encoder_registry import get_encoder
from m3_integrations.encoders import EncoderConfig
from m3_integrations.encoders.wire_format import from_npz, to_npz
from m3_integrations.errors import MissingMode, ServerError, WrongEncoder
from m3_integrations.langchain import M3Embeddings
from m3_integrations.llama_index import M3Embedding
from m3_integrations.server import ServerSettings, create_app
from m3_integrations.testing import HashEncoder
from tests.encoders.remote_worker import send_vectors
from tests.server.conftest import running

TEXTS = ["the old bridge", "", "волга 🌉", *(f"text number {i} " + "word " * i for i in range(30))]


@pytest.fixture(scope="module")
def local():
    return HashEncoder(weights={"dense": 1.0, "sparse": 0.5, "multi_vector": 2.0}, sparse_score="mean")


@pytest.fixture(scope="module")
def url(local):
    settings = ServerSettings(port=0, max_texts=7, max_body=2000)
    with running(create_app(local, settings=settings), settings) as url:
        yield url


@pytest.fixture(scope="module")
def remote(url):
    with RemoteEncoder(url) as remote:
        yield remote


def assert_equal(found, expected):
    assert (found.modes, found.sparse_score) == (expected.modes, expected.sparse_score)
    if "dense" in expected.modes:
        assert np.array_equal(found.dense, expected.dense)
    if "sparse" in expected.modes:
        assert found.sparse.shape == expected.sparse.shape
        assert (found.sparse != expected.sparse).nnz == 0
    if "multi_vector" in expected.modes:
        assert np.array_equal(found.multi_vector.values, expected.multi_vector.values)
        assert np.array_equal(found.multi_vector.offsets, expected.multi_vector.offsets)


def test_it_is_an_encoder_with_the_properties_of_the_servers(remote, local):
    assert isinstance(remote, Encoder)
    for name in ("modes", "weights", "dense_dim", "multi_vector_dim", "vocab_size", "fingerprint", "sparse_score"):
        assert getattr(remote, name) == getattr(local, name), name
    assert remote.weights_for(("sparse", "dense")) == local.weights_for(("sparse", "dense"))
    assert remote.weights_for(("sparse",)) == {"sparse": 1.0}


@pytest.mark.parametrize("modes", [None, ("dense",), ("multi_vector", "sparse")])
def test_vectors_equal_those_of_the_encoder_bit_for_bit_in_batches_of_the_server(remote, local, modes):
    assert_equal(remote.encode_passages(TEXTS, modes), local.encode_passages(TEXTS, modes))
    assert_equal(remote.encode_queries(TEXTS, modes), local.encode_queries(TEXTS, modes))


def test_no_texts_give_an_encoded_of_length_0(remote, local):
    assert_equal(remote.encode_passages([]), local.encode_passages([]))


async def test_it_encodes_asynchronously(remote, local):
    assert_equal(await remote.aencode_queries(TEXTS[:2]), local.encode_queries(TEXTS[:2]))


def test_an_index_filled_by_one_is_searched_by_the_other(remote, local):
    index = MemoryIndex()
    ingest(remote, index, [Passage(str(i), text) for i, text in enumerate(TEXTS) if text])
    assert Retriever(remote, index).retrieve("old bridge", 3) == Retriever(local, index).retrieve("old bridge", 3)


def test_invalid_calls_are_refused_as_by_any_encoder(remote):
    with pytest.raises(TypeError, match="write \\['one'\\]"):
        remote.encode_queries("one")
    with pytest.raises(MissingMode, match="'lexical' is not a mode"):
        remote.encode_queries(["one"], ("lexical",))


def test_a_text_larger_than_the_server_reads_is_an_error_with_its_message(remote):
    with pytest.raises(ServerError, match="answers 413: the body has over 2,000 bytes") as caught:
        remote.encode_queries(["word " * 1000])
    assert caught.value.status == 413


def test_components_of_both_frameworks_take_a_server(url, local):
    expected = local.encode_queries(["old bridge"]).dense[0].tolist()
    assert M3Embedding(server_url=url).get_query_embedding("old bridge") == expected
    assert M3Embeddings(server_url=url).embed_query("old bridge") == expected
    assert get_encoder(EncoderConfig(server_url=url)) is M3Embeddings(server_url=url).encoder
    again = pickle.loads(pickle.dumps(M3Embeddings(server_url=url)))
    assert again.embed_query("old bridge") == expected


def test_options_of_the_server_and_other_models_are_refused(url):
    with pytest.raises(ValueError, match="max_length is an option of the server"):
        RemoteEncoder.from_config(EncoderConfig(server_url=url, max_length=16))
    with pytest.raises(WrongEncoder, match=r"serves .HashEncoder"):
        RemoteEncoder.from_config(EncoderConfig("BAAI/bge-m3", server_url=url))
    for arguments in ({"url": "127.0.0.1:80"}, {"url": url, "retries": -1}, {"url": url, "timeout": 0}):
        with pytest.raises(ValueError, match=r"must be|begins with"):
            RemoteEncoder(**arguments)


def test_copies_use_the_same_server(remote, url):
    assert copy.deepcopy(remote) is remote
    again = pickle.loads(pickle.dumps(remote))
    assert (again.url, again.fingerprint) == (url, remote.fingerprint)


def test_a_forked_and_a_spawned_process_use_the_server_of_their_parent(remote, local):
    remote.encode_passages(["open connections"])
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=send_vectors, args=(remote, theirs))
        process.start()
        assert ours.poll(120)
        vectors, has_torch = ours.recv()
        assert vectors == local.encode_passages(["the old bridge"]).dense.tobytes()
        assert not (has_torch and method == "spawn")  # a worker of a server is small
        process.join(60)
        assert process.exitcode == 0


def test_a_key_comes_from_the_environment_and_a_missing_one_is_named(local, monkeypatch):
    monkeypatch.delenv("M3_API_KEY", raising=False)
    settings = ServerSettings(port=0, api_key="secret")
    with running(create_app(local, settings=settings), settings) as url:
        with pytest.raises(ServerError, match=r"answers 401: .*M3_API_KEY"):
            _ = RemoteEncoder(url).modes
        with RemoteEncoder(url, api_key="secret") as given:
            assert given.modes == local.modes
            assert b"secret" not in pickle.dumps(given)
        monkeypatch.setenv("M3_API_KEY", "secret")
        with RemoteEncoder(url) as read:
            assert read.modes == local.modes


def test_a_server_that_changed_its_encoder_is_an_error(local):
    settings = ServerSettings(port=0)
    with running(create_app(local, settings=settings), settings) as url:
        remote = RemoteEncoder(url, retries=0)
        assert remote.fingerprint == local.fingerprint
        remote.close()
    with running(create_app(HashEncoder(seed=1), settings=settings), settings) as other:
        remote.url = other
        with pytest.raises(WrongEncoder, match="create a new RemoteEncoder"):
            remote.encode_queries(["a"])
        remote.close()


class Busy(BaseHTTPRequestHandler):
    """A server that is busy for the first two requests."""

    answers: list[int] = []  # noqa: RUF012  # filled by each test
    seen = 0

    def do_GET(self):
        type(self).seen += 1
        status = self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@pytest.fixture
def busy():
    server = HTTPServer(("127.0.0.1", 0), Busy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Busy.seen = 0
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(60)
    server.server_close()


def test_transient_errors_are_repeated_and_others_are_not(busy):
    Busy.answers[:] = [503, 429, 200]
    with pytest.raises(ServerError, match="is no server of m3 serve"):
        _ = RemoteEncoder(busy).modes
    assert Busy.seen == 3
    Busy.answers[:] = [404, 200]
    with pytest.raises(ServerError, match="answers 404"):
        _ = RemoteEncoder(busy).modes
    assert Busy.answers == [200]
    Busy.answers[:] = [503, 503]
    with pytest.raises(ServerError, match="answers 503") as caught:
        _ = RemoteEncoder(busy, retries=1).modes
    assert caught.value.status == 503


def test_a_server_that_is_not_there_is_named():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match=rf"no answer from http://127.0.0.1:{port}/info.*is m3 serve running"):
        _ = RemoteEncoder(f"http://127.0.0.1:{port}", retries=0).modes


def test_embeddings_survive_the_wire_and_other_bytes_are_refused(local):
    encoded = local.encode_queries(TEXTS)
    assert_equal(from_npz(to_npz(encoded)), encoded)
    assert np.allclose(from_npz(to_npz(encoded, "float16")).dense, encoded.dense, atol=1e-3)
    for data in (b"", b"PK\x03\x04", to_npz(encoded)[:200]):
        with pytest.raises(ValueError, match=r"not an \.npz archive"):
            from_npz(data)

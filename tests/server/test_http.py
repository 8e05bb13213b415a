"""The HTTP API over loopback: shapes, limits, refusals."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from mcp import Client

from m3_integrations import MemoryIndex, Passage, Retriever, SearchPlan
from m3_integrations.encoders.wire_format import from_npz
from m3_integrations.retrieval import rerank
from m3_integrations.server import ServerSettings, create_app, create_mcp_server
from m3_integrations.server.batching import BatchingEncoder
from m3_integrations.server.metrics import ServerMetrics
from m3_integrations.testing import HashEncoder
from tests.server.conftest import running

TEXTS = ["the old bridge", "волга"]


def post(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


def refusal(answer):
    return answer.status_code, answer.json()["error"]


def test_the_server_is_healthy_and_describes_its_encoder(client, hash_encoder):
    assert client.get("/health").json() == {"status": "ok"}
    info = client.get("/info").json()
    assert info["m3"]["fingerprint"] == hash_encoder.fingerprint
    assert info["max_client_batch_size"] == 8
    assert info["m3"]["weights"]["dense,sparse"] == {"dense": 1.0, "sparse": 1.0}


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_embed_gives_the_vectors_of_the_encoder(client, hash_encoder, path):
    assert post(client, path, inputs=TEXTS).json() == hash_encoder.encode_passages(TEXTS).dense.tolist()
    assert post(client, path, inputs=TEXTS[0]).json() == hash_encoder.encode_passages(TEXTS[:1]).dense.tolist()


def test_embed_sparse_gives_weights_by_token(client, hash_encoder):
    rows = hash_encoder.encode_passages(TEXTS).sparse
    found = post(client, "/embed_sparse", inputs=TEXTS).json()
    for i, row in enumerate(found):
        expected = rows[[i]].tocoo()
        assert {each["index"]: each["value"] for each in row} == dict(
            zip(expected.col.tolist(), expected.data.tolist(), strict=True)
        )


def test_embed_all_gives_three_modes_as_json_and_as_npz(client, hash_encoder):
    expected = hash_encoder.encode_passages(TEXTS)
    answer = post(client, "/embed_all", inputs=TEXTS)
    assert answer.json()["dense"] == expected.dense.tolist()
    assert answer.json()["multi_vector"] == [each.tolist() for each in expected.multi_vector]
    assert answer.headers["x-m3-fingerprint"] == hash_encoder.fingerprint
    archive = post(client, "/embed_all", inputs=TEXTS, format="npz").content
    found = from_npz(archive)
    assert np.array_equal(found.dense, expected.dense)
    assert (found.sparse != expected.sparse).nnz == 0
    assert np.array_equal(found.multi_vector.values, expected.multi_vector.values)
    half = np.load(io.BytesIO(post(client, "/embed_all", inputs=TEXTS, format="npz", dtype="float16").content))
    assert half["dense"].dtype == np.float16
    assert np.array_equal(half["dense"], expected.dense.astype(np.float16))


def test_a_query_prompt_encodes_queries():
    class Roles(HashEncoder):
        def encode_queries(self, texts, modes=None, *, show_progress=False):
            return super().encode_queries([f"query {text}" for text in texts], modes)

    encoder = Roles()
    query, passage = encoder.encode_queries(["a"]).dense.tolist(), encoder.encode_passages(["a"]).dense.tolist()
    settings = ServerSettings(port=0)
    with running(create_app(encoder, settings=settings), settings) as url, httpx.Client(base_url=url) as client:
        assert post(client, "/embed", inputs="a", prompt_name="query").json() == query
        assert post(client, "/embed", inputs="a").json() == passage
        assert post(client, "/v1/embeddings", input="a", input_type="query").json()["data"][0]["embedding"] == query[0]


def test_rerank_ranks_as_the_library_does(client, hash_encoder):
    texts = ["green trees", "an old bridge", "the river"]
    ranked = rerank(hash_encoder, "old bridge", texts)
    found = post(client, "/rerank", query="old bridge", texts=texts, return_text=True).json()
    assert [(each["index"], each["score"]) for each in found] == [(each.position, each.score) for each in ranked]
    assert [each["text"] for each in found] == [texts[each.position] for each in ranked]
    assert refusal(client.post("/rerank", json={"query": " ", "texts": texts}))[0] == 422


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_openais_client_gets_the_vectors_of_the_encoder(url, hash_encoder, encoding_format):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.embeddings.create(model="any", input=TEXTS, encoding_format=encoding_format)
        assert [model.id for model in client.models.list()] == [answer.model]
    vectors = [
        np.frombuffer(base64.b64decode(each.embedding), "<f4") if encoding_format == "base64" else each.embedding
        for each in answer.data
    ]
    assert np.array_equal(vectors, hash_encoder.encode_passages(TEXTS).dense)


def test_openais_client_shows_the_message_of_an_error(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.UnprocessableEntityError, match="not tokens"):
            client.embeddings.create(model="any", input=[[1, 2]])
        with pytest.raises(openai.UnprocessableEntityError, match="dimensions=7 is not available"):
            client.embeddings.create(model="any", input="a", dimensions=7)


@pytest.mark.parametrize("path", ["", "/embed"])
def test_hugging_faces_client_extracts_features(url, hash_encoder, path):
    found = InferenceClient(f"{url}{path}").feature_extraction(TEXTS[0], normalize=True)
    assert np.array_equal(found, hash_encoder.encode_passages(TEXTS[:1]).dense)


def test_search_finds_what_the_retriever_finds(client, hash_encoder, index):
    (expected, *_) = matches = Retriever(hash_encoder, index).retrieve("old bridge", 2)
    found = post(client, "/search", query="old bridge", k=2).json()
    assert found["index"] == "notes"
    assert [(hit["id"], hit["score"]) for hit in found["hits"]] == [(each.passage.id, each.score) for each in matches]
    assert found["hits"][0]["by_mode"] == dict(expected.by_mode)
    assert found["hits"][0]["metadata"] == dict(expected.passage.metadata)
    assert post(client, "/search", query=" ").json()["hits"] == []


def test_search_takes_mode_weights_and_filter(client, hash_encoder, index):
    plan = SearchPlan(weights={"dense": 1.0, "sparse": 3.0})
    expected = Retriever(hash_encoder, index, plan).retrieve("river")
    found = post(client, "/search", query="river", weights={"dense": 1.0, "sparse": 3.0}).json()["hits"]
    assert [(hit["id"], hit["score"]) for hit in found] == [(each.passage.id, each.score) for each in expected]
    (hit,) = post(client, "/search", query="river", mode="sparse", where="year < 1920").json()["hits"]
    assert (hit["id"], list(hit["by_mode"])) == ("bridge", ["sparse"])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"query": "a", "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({"query": "a", "k": 5000}, 422, "k must be at most 1000"),
        ({"query": "a", "where": "year >"}, 422, "the filter 'year >' cannot be read"),
        ({"query": "a", "index": "other"}, 404, "there is no index 'other'"),
        ({"query": "a", "mode": "sparse", "weights": {"dense": 1}}, 422, "leave one out"),
        ({"query": "a", "weights": {"dense": 0}}, 422, "must be above 0"),
        ({"query": "a", "explain": True}, 422, "cannot explain"),
        ({"query": "a", "limit": 3}, 422, "limit: Extra inputs are not permitted"),
        ({}, 422, "query: Field required"),
    ],
)
def test_a_search_that_cannot_be_run_says_why(client, body, status, message):
    found, error = refusal(client.post("/search", json=body))
    assert found == status
    assert message in error


def test_a_match_is_explained_by_its_words(bge_m3, index):
    from m3_integrations import M3Encoder, MemoryIndex, Passage, ingest

    encoder, own = M3Encoder.from_pretrained(str(bge_m3())), MemoryIndex()
    ingest(encoder, own, [Passage("a", "the bridge")])
    settings = ServerSettings(port=0)
    with running(create_app(encoder, {"own": own}, settings), settings) as url, httpx.Client(base_url=url) as client:
        (hit,) = post(client, "/search", query="the bridge", explain=True).json()["hits"]
        expected = encoder.explain("the bridge", "the bridge").words
        assert [(each["query"], each["passage"]) for each in hit["words"]] == [
            ("the bridge"[slice(*each.query_at)], "the bridge"[slice(*each.passage_at)]) for each in expected
        ]
        assert post(client, "/v1/embeddings", input="the bridge").json()["usage"]["total_tokens"] > 0


async def test_what_utf_8_cannot_encode_and_long_integers_are_found_over_each_interface(hash_encoder):
    index, settings = MemoryIndex(), ServerSettings(port=0)
    half, metadata = "half \ud800 pair", {"title": "\ud801", "number": 10**17}
    index.add([Passage(half, half, metadata)], hash_encoder.encode_passages(["half pair"]))
    app = create_app(hash_encoder, {"notes": index}, settings)
    with running(app, settings) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        (hit,) = client.post("/search", json={"query": "half"}).json()["hits"]
        assert (hit["id"], hit["text"], hit["metadata"]) == (half, half, metadata)
        assert client.get("/", params={"q": "half"}).status_code == 200
    async with Client(create_mcp_server(hash_encoder, index, name="notes")) as client:
        answer = json.loads((await client.call_tool("search", {"query": "half"})).content[0].text)
        assert answer["results"][0]["id"] == half


def test_passages_are_read_by_id_and_missing_ones_are_named(client):
    found = post(client, "/passages", ids=["heron", "none", "heron"]).json()
    assert [each["text"] for each in found["passages"]] == ["herons nest in tall trees"]
    assert found["missing"] == ["none"]
    assert client.get("/indexes").json()["indexes"][0]["passages"] == 3


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"inputs": ', 400),
        (b"[" * 4000, 400),
        (b'{"inputs": "\\ud800"}', 400),
        (b"\xff\xfe", 400),
        (b"null", 422),
        (b'{"inputs": []}', 422),
        (b'{"inputs": [1]}', 422),
        (b'{"inputs": ["a","a","a","a","a","a","a","a","a"]}', 413),
        (b'{"inputs": "' + b"a" * 5000 + b'"}', 413),
    ],
)
def test_a_malformed_or_large_body_is_refused(client, content, status):
    answer = client.post("/embed", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert len(answer.json()["error"]) < 300
    assert client.get("/health").status_code == 200


def test_a_body_of_unknown_length_is_refused_once_it_is_too_large(client):
    parts = (b"a" * 1000 for _ in range(100))
    answer = client.post("/embed", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_unknown_paths_and_methods_are_errors(client):
    assert refusal(client.get("/none")) == (404, "there is no endpoint /none; see /docs")
    assert refusal(client.get("/embed"))[0] == 405
    assert client.get("/v1/none").json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "10.0.0.1"])
def test_a_request_to_another_host_is_refused(client, host):
    assert client.get("/health", headers={"Host": host}).status_code == 403


def test_a_request_from_another_site_is_refused_and_one_from_its_own_page_is_not(client, url):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert refusal(client.post("/embed", json={"inputs": "a"}, headers={"Origin": origin}))[0] == 403
    assert client.post("/embed", json={"inputs": "a"}, headers={"Origin": url}).status_code == 200
    form = client.post("/embed", content=b'{"inputs": "a"}', headers={"Content-Type": "text/plain"})
    assert form.status_code == 415
    assert not any(name.startswith("access-control") for name in client.get("/health").headers)


def test_a_key_is_needed_except_for_health_and_the_description(hash_encoder):
    settings = ServerSettings(port=0, api_key="secret-1")
    with running(create_app(hash_encoder, settings=settings), settings) as url, httpx.Client(base_url=url) as client:
        assert client.get("/health").status_code == 200
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": settings.api_key}):
            answer = client.post("/embed", json={"inputs": "a"}, headers=header)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get("/metrics", headers=header).status_code == 401
        assert "/search" in client.get("/docs").text  # as a browser asks
        assert client.get("/openapi.json").json()["security"] == [{"key": []}]
        assert client.post("/docs", json={}).status_code == 401
        client.headers["Authorization"] = f"Bearer {settings.api_key}"
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200
    assert "secret" not in repr(settings)


def test_a_host_that_others_reach_needs_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ValueError, match="needs an API key"):
            ServerSettings(host)
    assert ServerSettings("0.0.0.0", api_key="k").accepts_host("10.0.0.1:80")
    assert not ServerSettings("0.0.0.0", api_key="k").accepts_host("evil.example")
    assert ServerSettings("0.0.0.0", api_key="k", allowed_hosts=("m3.example",)).accepts_host("M3.example:443")
    assert ServerSettings("::1").accepts_host("[::1]:8760")
    for options in ({"api_key": ""}, {"api_key": "a\nb"}, {"port": 65536}, {"max_texts": 0}):
        with pytest.raises(ValueError, match=next(iter(options)).replace("api_key", "API key")):
            ServerSettings(**options)


def test_the_page_and_the_description_name_every_endpoint(client):
    document, page = client.get("/openapi.json").json(), client.get("/docs").text
    assert set(document["paths"]) >= {"/embed", "/embed_sparse", "/rerank", "/v1/embeddings", "/search", "/passages"}
    assert all(path in page for path in document["paths"])
    body = document["paths"]["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_metrics_count_requests_by_known_paths(client):
    client.get("/some/path")
    post(client, "/embed", inputs="a")
    text = client.get("/metrics").text
    assert 'm3_requests_total{path="/embed",status="200"}' in text
    assert 'm3_requests_total{path="other",status="404"}' in text
    assert "/some/path" not in text


def test_a_slow_body_is_refused_and_a_disconnect_harms_nobody(hash_encoder):
    settings = ServerSettings(port=0, body_timeout=0.2)
    with running(create_app(hash_encoder, settings=settings), settings) as url:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        head = (
            b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        with socket.create_connection(address, timeout=60) as slow:
            slow.sendall(head)
            assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408")
        with socket.create_connection(address, timeout=60) as gone:
            gone.sendall(head)
        with httpx.Client(base_url=url) as client:
            assert client.get("/health").status_code == 200


class Waiting(HashEncoder):
    """An encoder that waits for a signal."""

    def __init__(self):
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()

    def encode_passages(self, texts, modes=None, *, show_progress=False):
        self.entered.set()
        assert self.go_on.wait(60)
        return super().encode_passages(texts, modes)


def test_requests_above_the_limit_and_beyond_the_time_are_refused_and_the_others_served():
    encoder, settings = Waiting(), ServerSettings(port=0, max_requests=1, request_timeout=600)
    with running(create_app(encoder, settings=settings), settings) as url, ThreadPoolExecutor() as threads:
        first = threads.submit(httpx.post, f"{url}/embed", json={"inputs": "a"}, timeout=60)
        assert encoder.entered.wait(60)
        answer = httpx.get(f"{url}/health", timeout=60)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        encoder.go_on.set()
        assert first.result().status_code == 200
    encoder, settings = Waiting(), ServerSettings(port=0, request_timeout=0.1)
    with running(create_app(encoder, settings=settings), settings) as url:
        answer = httpx.post(f"{url}/embed", json={"inputs": "a"}, timeout=60)
        encoder.go_on.set()
        assert refusal(answer) == (504, "no answer within 0.1 s; send fewer texts")


def test_an_unexpected_error_is_a_500_without_details(caplog):
    class Broken(HashEncoder):
        def encode_passages(self, texts, modes=None, *, show_progress=False):
            raise RuntimeError("a secret path")

    settings = ServerSettings(port=0)
    with running(create_app(Broken(), settings=settings), settings) as url:
        status, error = refusal(httpx.post(f"{url}/embed", json={"inputs": "a"}, timeout=60))
    assert status == 500
    assert "secret" not in error
    assert "a secret path" in caplog.text


async def test_concurrent_requests_of_all_endpoints_share_a_call_of_the_encoder():
    class Counting(HashEncoder):
        calls: list = []  # noqa: RUF012  # of this test alone

        def encode_queries(self, texts, modes=None, *, show_progress=False):
            self.calls.append((list(texts), modes))
            return super().encode_queries(texts, modes)

    encoder = Counting()
    batching = BatchingEncoder(encoder, ServerMetrics())
    # The tasks run before the thread of the batcher, which waits half a millisecond, or each after a running call.
    first = [batching.encode("query", [f"a {i}"], ("dense",)) for i in range(20)]
    second = [batching.encode("query", [f"b {i}", f"c {i}"], ("sparse",)) for i in range(20)]
    found = await asyncio.gather(*first, *second)
    assert len(encoder.calls) < 40
    assert sum(len(texts) for texts, _ in encoder.calls) == 60
    for i in range(20):
        assert np.array_equal(found[i].dense, HashEncoder().encode_queries([f"a {i}"]).dense)
        expected = HashEncoder().encode_queries([f"b {i}", f"c {i}"]).sparse
        assert (found[20 + i].sparse != expected).nnz == 0
        assert found[i].modes == {"dense"}


async def test_a_long_request_takes_turns_and_keeps_its_order(hash_encoder):
    texts = [f"text {i}" for i in range(200)]
    batching = BatchingEncoder(hash_encoder, ServerMetrics())
    found = await batching.encode("passage", texts)
    assert np.array_equal(found.dense, hash_encoder.encode_passages(texts).dense)

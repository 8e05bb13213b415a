"""A server under load, with broken and hostile clients, and killed: others are served, nothing acknowledged is lost."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from m3_integrations import LocalIndex, MemoryIndex, Nudger, Passage, ingest
from m3_integrations.nudging import Feedback
from m3_integrations.server import ServerSettings, create_app
from m3_integrations.testing import HashEncoder
from tests.server.conftest import PASSAGES, running
from tests.server.feedback_server import ENCODER

TEXTS = [f"topic{i % 8} word{i}" for i in range(16)]
IDS = [f"p{i}" for i in range(16)]
JSON = {"Content-Type": "application/json"}


class Slow(HashEncoder):
    """An encoder that takes long for a call, whatever its number of texts, and counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def encode_queries(self, texts, modes=None, *, show_progress=False):
        self.calls.append(len(texts))
        time.sleep(0.1)
        return super().encode_queries(texts, modes)

    encode_passages = encode_queries


def send(url: str, path: str, bodies: list[dict[str, object]]) -> list[int]:
    """Send requests one after the other over one connection; return their statuses."""
    parts = urlsplit(url)
    statuses = []
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)) as connection:
        for body in bodies:
            connection.request("POST", path, json.dumps(body), JSON)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
    return statuses


def test_many_clients_of_two_endpoints_share_calls_and_none_fails():
    encoder, settings, index = Slow(), ServerSettings(port=0), MemoryIndex()
    ingest(HashEncoder(), index, PASSAGES)
    app = create_app(encoder, {"notes": index}, settings)
    with running(app, settings) as url, ThreadPoolExecutor(64) as threads:
        embeds = [threads.submit(send, url, "/embed", [{"inputs": f"text {i}"}] * 3) for i in range(32)]
        searches = [threads.submit(send, url, "/search", [{"query": f"river {i}"}] * 3) for i in range(32)]
        statuses = [status for each in (*embeds, *searches) for status in each.result()]
    assert statuses == [200] * 192
    assert sum(encoder.calls) == 192
    assert len(encoder.calls) <= 192 / 3  # one client alone would make a call for each
    assert max(encoder.calls) <= 64


@pytest.mark.parametrize("inputs", [100_000 * ["a text"], ["x" * 10_000_000]], ids=["100,000 texts", "10 MB"])
def test_requests_beyond_the_limits_are_refused_by_default_and_with_a_larger_body(hash_encoder, inputs):
    for settings in (ServerSettings(port=0), ServerSettings(port=0, max_body=20 << 20)):
        app = create_app(hash_encoder, settings=settings)
        with running(app, settings) as url, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            status = client.post("/embed", json={"inputs": inputs}).status_code
            assert status == (200 if len(inputs) == 1 and settings.max_body > 10_000_000 else 413)
            assert client.get("/health").status_code == 200


def test_an_endless_body_is_cut_off_before_it_takes_memory(url):
    parts = urlsplit(url)
    head = b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as endless:
        endless.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 1 << 28:
                endless.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
    assert sent < 1 << 27  # what the buffers of both sockets hold


def test_broken_clients_harm_no_other(url):
    parts = urlsplit(url)
    head = b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    broken = [head, head[:40], b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9\r\n\r\n", b"\r\n" * 100, b"A" * 100_000]
    connections = []
    for data in broken * 5:
        connection = socket.create_connection((parts.hostname, parts.port), timeout=60)
        connection.sendall(data)
        connections.append(connection)
    malformed = [b"{", b"[]", b"nan", b'{"inputs": NaN}', b'{"inputs": "\xff"}', b"[" * 4000, b'{"inputs": "\\ud800"}']
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for body in malformed:
            assert client.post("/embed", content=body, headers=JSON).status_code in (400, 422), body
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200
        for connection in connections:
            connection.close()
        assert client.post("/embed", json={"inputs": "a"}).status_code == 200


def judge(url: str, numbers: range, acknowledged: list[str], enough: threading.Event) -> None:
    """Send judgements until the server is gone; note those that were acknowledged."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for number in numbers:
            body = {"query": f"ask{number % 8} topic{number % 8} nr{number}", "id": f"p{number % 8}", "useful": True}
            try:
                answer = client.post("/feedback", json=body)
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                acknowledged.append(body["query"])
            if len(acknowledged) % 40 == 0:
                enough.set()


def test_a_server_killed_during_feedback_and_a_nudge_loses_nothing_acknowledged(tmp_path):
    folder, acknowledged = tmp_path / "notes", []
    with LocalIndex.open(folder, ENCODER) as index:
        index.add([Passage(id, text) for id, text in zip(IDS, TEXTS, strict=True)], ENCODER.encode_passages(TEXTS))
    for kill in range(3):
        command = [sys.executable, "-m", "tests.server.feedback_server", str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            url, enough = process.stdout.readline().strip(), threading.Event()
            if kill:  # there is enough feedback for a nudge
                assert httpx.post(f"{url}/learn", json={}, timeout=60, trust_env=False).status_code == 200
            numbers = range(1000 * kill, 1000 * kill + 900)
            thread = threading.Thread(target=judge, args=(url, numbers, acknowledged, enough))
            thread.start()
            assert enough.wait(120)
            process.kill()
            thread.join(120)
    with LocalIndex.open(folder, ENCODER) as index:
        index.verify()
        recorded = {each.query for each in Feedback(ENCODER, index).judgements()}
        assert set(acknowledged) <= recorded
        assert len(acknowledged) >= 120
        with closing(Nudger(ENCODER, index)) as nudger:
            nudger.revert()
        assert np.array_equal(index.vectors(IDS).dense, ENCODER.encode_passages(TEXTS).dense)

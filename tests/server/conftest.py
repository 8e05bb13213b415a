"""A real server in a thread, on a free port of this computer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from m3_integrations import MemoryIndex, Passage, ingest
from m3_integrations.server import ServerSettings, create_app
from m3_integrations.server.process import create_server, listen, url_of
from m3_integrations.testing import HashEncoder

PASSAGES = [
    Passage(
        "bridge", "the old bridge over the river", {"year": 1901, "title": "Bridges", "url": "https://a.example/b"}
    ),
    Passage("house", "a green house by the river", {"year": 1950}),
    Passage("heron", "herons nest in tall trees", {"year": 2020}),
]


@contextmanager
def running(app, settings: ServerSettings) -> Iterator[str]:
    """Run an application until the block ends; the value is its URL."""
    started = threading.Event()
    with listen(settings) as listener:
        server = create_server(app, settings, started.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert started.wait(60)
            yield url_of(listener, settings)
        finally:
            server.should_exit = True
            thread.join(60)


@pytest.fixture(scope="session")
def index(hash_encoder: HashEncoder) -> MemoryIndex:
    index = MemoryIndex()
    ingest(hash_encoder, index, PASSAGES)
    return index


@pytest.fixture(scope="session")
def url(hash_encoder: HashEncoder, index: MemoryIndex) -> Iterator[str]:
    """A server without a key, whose limits are low: 8 texts and 4096 bytes a request."""
    settings = ServerSettings(port=0, max_texts=8, max_body=4096)
    with running(create_app(hash_encoder, {"notes": index}, settings), settings) as url:
        yield url


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client

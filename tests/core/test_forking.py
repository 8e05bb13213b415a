"""Encoders, indexes and adapters in a process that is forked after their first use."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from m3_integrations import LocalIndex, M3Encoder, MemoryIndex, Nudger, Passage, Query, ingest
from m3_integrations.core.forking import ForkSafeLock, delay_forks
from m3_integrations.errors import ForkedProcess
from m3_integrations.testing import HashEncoder

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]
TEXTS = [f"w{i} w{i + 1} w{i + 2}" for i in range(30)]
SECONDS = 60.0


def fails_in_child(call):
    """Run a call in a forked child; return None, the name of its error, or "hangs"."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            call()
        except BaseException as error:
            os.write(writer, type(error).__name__.encode())
        os._exit(0)
    os.close(writer)
    deadline = time.monotonic() + SECONDS
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hangs"
        time.sleep(0.01)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read().decode() or None


@pytest.fixture
def busy():
    """A function that repeats a call on four threads until the test ends."""
    stop, threads = threading.Event(), []

    def repeat(call):
        def loop():
            while not stop.is_set():
                call()

        threads.extend(threading.Thread(target=loop, daemon=True) for _ in range(4))
        for thread in threads:
            thread.start()

    yield repeat
    stop.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_an_encoder_used_on_two_threads_encodes_in_a_child(bge_m3, two_threads):
    encoder = M3Encoder.from_pretrained(str(bge_m3()), device="cpu")
    long = [" ".join(TEXTS)] * 8
    expected = encoder.encode_passages(long).dense

    def encode():
        np.testing.assert_allclose(encoder.encode_passages(long).dense, expected, atol=1e-5)

    assert fails_in_child(encode) is None


def test_a_child_encodes_while_threads_of_its_parent_do(bge_m3, busy):
    encoder = M3Encoder.from_pretrained(str(bge_m3()), device="cpu")
    busy(lambda: encoder.encode_queries(["where the bridge is"]))
    assert {fails_in_child(lambda: encoder.encode_queries(["the river"])) for _ in range(5)} == {None}


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_a_child_searches_while_threads_of_its_parent_do(tmp_path, busy, kind):
    encoder = HashEncoder()
    index = MemoryIndex() if kind == "memory" else LocalIndex.open(tmp_path / "index", encoder)
    ingest(encoder, index, [Passage(f"p{i}", text) for i, text in enumerate(TEXTS)])
    query = encoder.encode_queries([TEXTS[3]])
    busy(lambda: index.search("dense", query, 3))

    def search():
        assert index.search("dense", query, 3)[0][0].id == "p3"

    assert {fails_in_child(search) for _ in range(10)} == {None}


def _adapters(folder):
    from m3_integrations.langchain import M3Embeddings
    from m3_integrations.llama_index import M3Embedding

    return {"langchain": M3Embeddings(folder).aembed_query, "llama_index": M3Embedding(folder).aget_query_embedding}


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
def test_a_child_awaits_a_query_while_its_parent_batches_others(bge_m3, busy, framework):
    embed = _adapters(str(bge_m3()))[framework]

    async def gather():
        await asyncio.gather(*(embed(text) for text in TEXTS[:4]))

    busy(lambda: asyncio.run(gather()))
    assert {fails_in_child(lambda: asyncio.run(embed("the river"))) for _ in range(5)} == {None}


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_exported_model_says_that_it_cannot_be_used_in_a_child(bge_m3, exported, backend):
    encoder = M3Encoder.from_pretrained(str(bge_m3()), **exported(backend))
    assert fails_in_child(lambda: encoder.encode_queries(["the river"])) == ForkedProcess.__name__


def test_a_qdrant_index_and_a_nudger_say_that_they_cannot_be_used_in_a_child():
    from m3_integrations import QdrantIndex

    encoder, index = HashEncoder(), MemoryIndex()
    ingest(encoder, index, [Passage("a", "red"), Passage("b", "blue")])
    nudger = Nudger(encoder, index)
    with QdrantIndex.open(":memory:", "fork", encoder) as collection:
        ingest(encoder, collection, [Passage("a", "red")])
        assert fails_in_child(collection.ids) == ForkedProcess.__name__
    assert fails_in_child(lambda: nudger.add_queries([Query("q", "red", {"a": 1.0})])) == ForkedProcess.__name__


def test_a_fork_waits_for_a_block_and_then_frees_its_lock():
    lock, entered, left = ForkSafeLock(), threading.Event(), threading.Event()

    def hold():
        with lock, delay_forks():
            entered.set()
            time.sleep(0.2)
            left.set()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    assert fails_in_child(lock.acquire) is None
    assert left.is_set()
    thread.join()


def test_a_child_of_a_process_that_never_used_the_package_keeps_its_threads():
    code = (
        "import os, torch, m3_integrations.core.forking\n"
        "torch.set_num_threads(2)\n"
        "child = os.fork()\n"
        "if not child: os._exit(torch.get_num_threads())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "2\n"

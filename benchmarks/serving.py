"""Throughput and latency of `m3 serve` under concurrent clients that embed and search, over loopback.

python benchmarks/serving.py --seconds 60 --clients 64
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

WORDS = ("river", "bridge", "heron", "tide", "green", "house", "stone", "winter", "market", "train", "song", "letter")


def sentence(choice: random.Random, words: int) -> str:
    return " ".join(choice.choices(WORDS, k=words))


class ClientThread(threading.Thread):
    """A client that sends one request after the other until a time: an embedding, then a search."""

    def __init__(self, url: str, until: float, seed: int, words: int) -> None:
        super().__init__()
        self._words = words
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=120)
        self._until, self._choice = until, random.Random(seed)
        self.seconds: dict[str, list[float]] = {"/embed": [], "/search": []}
        self.errors: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self._until:
            self._send("/embed", {"inputs": sentence(self._choice, self._words)})
            self._send("/search", {"query": sentence(self._choice, 5), "k": 10})
        self._connection.close()

    def _send(self, path: str, body: dict[str, object]) -> None:
        start = time.perf_counter()
        try:
            self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            text = answer.read()
        except OSError as error:
            self.errors.append(f"{path}: {error!r}")
            self._connection.close()
            return
        if answer.status != 200:
            self.errors.append(f"{path}: {answer.status} {text[:200]!r}")
        self.seconds[path].append(time.perf_counter() - start)


class Load(NamedTuple):
    """Requests a second, and per second of the server's CPU time, which other load on the machine changes less."""

    rate: float
    rate_of_cpu: float


def load(url: str, pid: int, clients: int, seconds: float, words: int) -> Load:
    """Run clients for some seconds, and print a row of figures."""
    cpu, start = cpu_seconds(pid), time.monotonic()
    threads = [ClientThread(url, start + seconds, seed, words) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.monotonic() - start
    errors = [error for thread in threads for error in thread.errors]
    count = 0
    for path in ("/embed", "/search"):
        taken = np.array([second for thread in threads for second in thread.seconds[path]])
        p50, p99 = 1000 * np.quantile(taken, (0.5, 0.99))
        count += len(taken)
        print(f"| {clients} | {path} | {len(taken) / passed:.1f} | {p50:.0f} | {p99:.0f} | {len(errors)} |", flush=True)
    for error in errors[:5]:
        print(f"  {error}")
    return Load(count / passed, count / (cpu_seconds(pid) - cpu))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def texts_a_call(url: str) -> float:
    """Mean number of texts per call of the encoder since the server started."""
    connection = http.client.HTTPConnection(str(urlsplit(url).hostname), urlsplit(url).port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("m3_batch_texts_sum")]
    calls = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("m3_batch_texts_count")]
    return sum(values) / sum(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--words", type=int, default=8, help="Words of an embedded text.")
    parser.add_argument("--model", default="m3-mini")
    options = parser.parse_args()
    choice = random.Random(0)
    m3 = [sys.executable, "-m", "m3_integrations.cli"]
    with tempfile.TemporaryDirectory() as place:
        lines = [{"_id": str(i), "text": sentence(choice, 30)} for i in range(options.passages)]
        corpus, folder = Path(place, "corpus.jsonl"), Path(place, "index")
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        subprocess.run([*m3, "index", folder, corpus, "--model", options.model], check=True, stdout=subprocess.DEVNULL)
        command = [*m3, "serve", str(folder), "--model", options.model, "--port", "0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            load(url, server.pid, 1, 3, options.words)  # warm up
            print("| clients | endpoint | requests/s | p50 ms | p99 ms | errors |\n|---|---|---|---|---|---|")
            alone = load(url, server.pid, 1, min(options.seconds, 20), options.words)
            together = load(url, server.pid, options.clients, options.seconds, options.words)
            print(f"{together.rate / alone.rate:.1f} times the throughput of one client")
            print(f"{together.rate_of_cpu / alone.rate_of_cpu:.1f} times as many requests per CPU second of the server")
            print(f"{texts_a_call(url):.1f} texts a call")
            server.terminate()


if __name__ == "__main__":
    main()

"""Memory of a server before, during and after large, malformed and slow requests, over loopback (Linux).

python benchmarks/hostile_requests.py
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SERVER = """
from m3_integrations import MemoryIndex, Passage, ingest
from m3_integrations.server import ServerSettings, create_app, serve
from m3_integrations.testing import HashEncoder

encoder, index, settings = HashEncoder(384, 64, 4096), MemoryIndex(), ServerSettings(port=0)
ingest(encoder, index, [Passage(str(number), f"river bridge {number}") for number in range(200)])
serve(create_app(encoder, {"notes": index}, settings), settings, lambda url: print(url, flush=True))
"""
CLIENTS, SLOW_CLIENTS = 64, 200
REQUESTS = {
    "10 MB in one text": json.dumps({"inputs": "x" * 10_000_000}),
    "100,000 texts": json.dumps({"inputs": ["a text"] * 100_000}),
    "malformed JSON of 2 MB": json.dumps({"inputs": "x" * 1_999_000})[:-2],
    "256 texts of 1,500 words": json.dumps({"inputs": ["word " * 1500] * 256}),
}


def post(port: int, body: str) -> int | str:
    """Return the status of a request, or the error of the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()
    return answer.status


def megabytes(pid: int) -> str:
    """Return memory of a process now and at its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, peak = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) // 1000 for name in ("VmRSS", "VmHWM"))
    return f"{now} MB, at most {peak} MB"


def main() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2])
        usual = json.dumps({"inputs": "a"})
        post(port, usual)
        print(f"before: {megabytes(server.pid)}", flush=True)
        with ThreadPoolExecutor(CLIENTS) as clients:
            for name, body in REQUESTS.items():
                answers = Counter(clients.map(post, [port] * CLIENTS, [body] * CLIENTS))
                print(f"{CLIENTS} x {name}: {dict(answers)}, {megabytes(server.pid)}", flush=True)
        head = f"POST /embed HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        part = f'{head}Content-Length: 2000000\r\n\r\n{{"inputs": "{"a" * 1_000_000}'.encode()
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(SLOW_CLIENTS)]
        for connection in connections:
            connection.sendall(part)
        time.sleep(1)
        print(f"{SLOW_CLIENTS} clients that stop after 1 MB: {megabytes(server.pid)}; another: {post(port, usual)}")
        for connection in connections:
            connection.close()
        time.sleep(1)
        print(f"after: {megabytes(server.pid)}; another: {post(port, usual)}")
        server.terminate()


if __name__ == "__main__":
    main()

"""Memory of worker processes that share one server, and of workers with a model each.

python benchmarks/shared_model.py --workers 8
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3_integrations import Encoder

TEXTS = ["the old bridge over the river", "herons nest in tall trees"]


def proportional_mb(pid: int) -> float:
    """Memory of a process in MB; pages shared with others count in proportion (PSS, Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def work(url: str | None, connection: Connection) -> None:
    """Encode with the server, or with a model of its own; stay until told to end."""
    encoder = connect_or_load(url)
    connection.send(encoder.encode_passages(TEXTS).dense.tobytes())
    connection.recv()


def connect_or_load(url: str | None) -> Encoder:
    if url is None:
        from m3_integrations import M3Encoder

        return M3Encoder.from_pretrained()
    from m3_integrations.encoders.remote import RemoteEncoder

    return RemoteEncoder(url)


def run_workers(count: int, url: str | None) -> tuple[float, set[bytes]]:
    """Run spawned workers; return their memory together, and the different vectors that they got."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(url, theirs)))
        processes[-1].start()
        ends.append(ours)
    vectors = {end.recv() for end in ends}
    memory = sum(proportional_mb(process.pid or 0) for process in processes)
    for end, process in zip(ends, processes, strict=True):
        end.send(None)
        process.join()
    return memory, vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    options = parser.parse_args()
    command = [sys.executable, "-m", "m3_integrations.cli", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        shared, vectors = run_workers(options.workers, url)
        of_server = proportional_mb(server.pid)
        server.terminate()
    alone, own = run_workers(2, None)
    print(
        f"{options.workers} workers and a server: {shared + of_server:.0f} MB, of which the server {of_server:.0f} MB"
    )
    print(f"2 workers with a model each: {alone:.0f} MB; vectors are equal: {vectors == own}")


if __name__ == "__main__":
    main()

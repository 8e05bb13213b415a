"""First queries of a process and ingestion of LocalIndex, compared with another checkout in interleaved pairs.

Each measurement is a process of its own. A query is timed with opening the folder, from files in the page cache.

python benchmarks/cold_queries.py --baseline ../other-checkout [--pairs 20] [--passages 20000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from synthetic import World
from timing import timed

from m3_integrations import LocalIndex
from m3_integrations.index import HybridRequest

VECTORS, INGESTED, K = 4, 4000, 10
HYBRID = HybridRequest({"dense": 50, "sparse": 50}, {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0})


def fill(folder: str, passages: int) -> None:
    with LocalIndex.open(folder) as index:
        for batch, encoded in World(VECTORS).passages(passages):
            index.add(batch, encoded)


def first_query(folder: str, name: str) -> None:
    queries = World(VECTORS, seed=1).queries(1)
    with LocalIndex.open(folder) as index:
        if name == "hybrid":
            index.search_hybrid(queries, HYBRID, K)
        else:
            index.search(name, queries, K)


def measure(folder: str, clock: Callable[[], float]) -> dict[str, float]:
    """Return the seconds of each first query and of an ingestion."""
    names = ("dense", "sparse", "multi_vector", "hybrid")
    first_query(folder, "hybrid")  # imports what is imported late
    seconds = {name: timed(partial(first_query, folder, name), clock)[0] for name in names}
    batches = list(World(VECTORS, seed=2).passages(INGESTED))
    with tempfile.TemporaryDirectory() as target, LocalIndex.open(target) as index:
        seconds["ingest"] = timed(lambda: [index.add(*batch) for batch in batches], clock)[0]
    return seconds


def in_checkout(checkout: Path, *arguments: str) -> str:
    """Run this script with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def report(ratios: dict[str, list[float]]) -> None:
    rng = np.random.default_rng(0)
    print(f"{'':<14}{'ratio':>8}{'95 % interval':>18}")
    for name, values in ratios.items():
        medians = np.median(rng.choice(values, (10_000, len(values))), axis=1)
        low, high = np.percentile(medians, [2.5, 97.5])
        print(f"{name:<14}{np.median(values):>8.3f}{low:>10.3f} to {high:.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--fill", metavar="FOLDER")
    parser.add_argument("--measure", metavar="FOLDER")
    parser.add_argument("--cpu", action="store_true", help="compare processor time, which other load changes less")
    options = parser.parse_args(arguments)
    if options.fill:
        fill(options.fill, options.passages)
        return
    if options.measure:
        print(json.dumps(measure(options.measure, time.process_time if options.cpu else time.perf_counter)))
        return
    checkouts = {"before": options.baseline, "now": Path(__file__).parents[1]}
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, checkout in checkouts.items():
            in_checkout(checkout, "--fill", f"{place}/{name}", "--passages", str(options.passages))
        for pair in range(options.pairs):
            order = list(checkouts)[:: 1 if pair % 2 else -1]
            cpu = ["--cpu"] * options.cpu
            seconds = {
                name: json.loads(in_checkout(checkouts[name], "--measure", f"{place}/{name}", *cpu)) for name in order
            }
            for name, value in seconds["now"].items():
                ratios.setdefault(name, []).append(value / seconds["before"][name])
            print(
                pair, {name: round(1000 * value) for name, value in seconds["now"].items()}, file=sys.stderr, flush=True
            )
    report(ratios)


if __name__ == "__main__":
    main()

"""Time and peak memory of `m3 search` as a process, compared with another checkout in interleaved pairs.

Each checkout fills a folder of its own with the same passages, of which each process answers one question.

python benchmarks/start.py --baseline ../other-checkout [--pairs 15] [--passages 200]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

WORDS = ["bridge", "river", "stone", "old", "city", "water", "light", "engine", "paper", "garden", "winter", "music"]
FILL = """
import json, sys
from m3_integrations import LocalIndex, M3Encoder, Passage, ingest
encoder = M3Encoder.from_pretrained("m3-mini", device="cpu")
with LocalIndex.open(sys.argv[1], encoder) as index:
    ingest(encoder, index, [Passage(**each) for each in json.load(sys.stdin)])
"""


class Start(NamedTuple):
    """One process: seconds, seconds of the processor, and peak memory in MB."""

    wall: float
    cpu: float
    memory: float


def search(checkout: Path, folder: Path) -> Start:
    """Run `m3 search` with the package of a checkout."""
    command = [sys.executable, "-Pc", "from m3_integrations.cli import main; main()", "search", folder, "an old bridge"]
    began = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), env=environment(checkout), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"m3 search of {checkout} ended with status {process.returncode}")
    scale = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes there, in kilobytes elsewhere
    return Start(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / scale)


def fill(checkout: Path, folder: Path, passages: int) -> None:
    rng = random.Random(0)
    made = [{"id": f"p{i}", "text": " ".join(rng.choices(WORDS, k=25))} for i in range(passages)]
    command = [sys.executable, "-Pc", FILL, str(folder)]
    subprocess.run(command, env=environment(checkout), input=json.dumps(made), text=True, check=True)


def environment(checkout: Path) -> dict[str, str]:
    """Variables of a process that imports this checkout, and caches what it compiles, as installed packages do."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": str(checkout)}


def report(before: Sequence[Start], now: Sequence[Start]) -> None:
    print(f"{'':<12}{'before':>10}{'now':>10}{'ratio':>10}{'95 % interval':>18}")
    rng = np.random.default_rng(0)
    for name, unit in zip(Start._fields, ("s", "s", "MB"), strict=True):
        first, second = (np.array([getattr(each, name) for each in starts]) for starts in (before, now))
        ratios = second / first
        low, high = np.percentile(np.median(rng.choice(ratios, (10_000, len(ratios))), axis=1), [2.5, 97.5])
        row = f"{np.median(first):>10.2f}{np.median(second):>10.2f}{np.median(ratios):>10.3f}{low:>10.3f} to {high:.3f}"
        print(f"{name + ', ' + unit:<12}{row}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--passages", type=int, default=200)
    options = parser.parse_args(arguments)
    checkouts = {"before": options.baseline, "now": Path(__file__).parents[1]}
    starts: dict[str, list[Start]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as place:
        for name, checkout in checkouts.items():
            fill(checkout, Path(place, name), options.passages)
            search(checkout, Path(place, name))  # files are in the page cache, modules are compiled
        for pair in range(options.pairs):
            for name in list(checkouts)[:: 1 if pair % 2 else -1]:
                starts[name].append(search(checkouts[name], Path(place, name)))
            print(pair, *(starts[name][-1] for name in checkouts), file=sys.stderr, flush=True)
    report(**starts)


if __name__ == "__main__":
    main()

"""A long mixture of operations on one folder: its answers stay exact, and its process does not grow.

python -m tests.soak.mixed --operations 50000
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from m3_integrations.core.encoded import MODES
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.index.quantization.codecs import PRECISIONS, Precision
from tests.index.local.mirrored import WORDS, MirroredIndex

IDS = [f"p{i}" for i in range(150)]
GROWTH = 1.1  # over the plateau
# Per thousand operations; the rest are searches.
RATES = {"add": 400, "elsewhere": 20, "delete": 120, "set_vectors": 80, "purge": 8, "reopen": 15, "fit": 3, "revert": 6}


class Soak(NamedTuple):
    """Operations carried out, comparisons with a fresh index, and megabytes of the process over time."""

    operations: int
    comparisons: int
    megabytes: list[float]

    @property
    def plateau(self) -> float:
        """Median size from the second to the fifth tenth of the time."""
        count = len(self.megabytes)
        return median(self.megabytes[count // 10 : max(count // 2, count // 10 + 1)])

    @property
    def largest(self) -> float:
        """Largest size in the second half of the time."""
        return max(self.megabytes[len(self.megabytes) // 2 :])


def soak(folder: Path, operations: int, seed: int, precision: Precision, compare_every: int) -> Soak:
    """Carry out random operations, and compare the folder with a fresh exact index in between."""
    choice, both, comparisons, megabytes = random.Random(seed), MirroredIndex(folder, precision), 0, []
    names, weights = [*RATES, "search"], [*RATES.values(), 1000 - sum(RATES.values())]
    for number in range(1, operations + 1):
        _operate(both, choice, choice.choices(names, weights)[0])
        if number % compare_every == 0:
            fresh, ids = MemoryIndex(), both.index.ids()
            if ids:
                fresh.add(both.index.passages(), both.index.vectors(ids))
            both.check(fresh)
            both.check()
            both.index.verify()
            comparisons += 1
            gc.collect()
            megabytes.append(_resident())
    both.close()
    return Soak(operations, comparisons, megabytes)


def _operate(both: MirroredIndex, choice: random.Random, name: str) -> None:
    ids = choice.sample(IDS, choice.randint(1, 6))
    texts = [" ".join(choice.choices(WORDS, k=choice.randint(0, 4))) for _ in ids]
    match name:
        case "add" | "elsewhere":
            both.add(ids, texts, elsewhere=name == "elsewhere")
        case "delete" | "purge":
            both.delete(ids[:3], purge=name == "purge")
        case "set_vectors":
            both.set_vectors(ids, texts, choice.choice(MODES))
        case "reopen":
            both.reopen()
        case "fit":
            both.fit()
        case "revert":
            both.revert()
        case "search":
            both.compare_search(choice.choice(MODES))


def _resident() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        done = soak(Path(place, "index"), arguments.operations, arguments.seed, arguments.precision, 500)
    print(
        f"{done.operations} operations ({arguments.precision}) in {time.perf_counter() - start:.0f} s, "
        f"{done.comparisons} comparisons with a fresh index, all equal; plateau {done.plateau:.0f} MB, "
        f"largest later {done.largest:.0f} MB ({done.largest / done.plateau - 1:+.1%})"
    )
    return 0 if done.largest <= GROWTH * done.plateau else 1


if __name__ == "__main__":
    sys.exit(main())

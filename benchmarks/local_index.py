"""LocalIndex compared with MemoryIndex on synthetic passages: search times with filters, and equal results.

python benchmarks/local_index.py [--passages 100000]
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse
from timing import timed

from m3_integrations import LocalIndex, MemoryIndex, Passage
from m3_integrations.core import Encoded, Mode
from m3_integrations.index import Field, Hit, Index, Where, all_of

DIM, COLUMNS, ENTRIES, QUERY_ENTRIES = 384, 250_002, 120, 12
BATCH, QUERIES, K = 1000, 20, 100
MODES: tuple[Mode, ...] = ("dense", "sparse")
FILTERS: dict[str, Where | None] = {
    "no filter": None,
    "half pass": Field("year", ">=", 2013),
    "1 in 100": all_of(Field("language", "==", "de"), Field("page", "<", 10)),
    "25 pass": Field("serial", "<", 25),
}


def make_encoded(rng: np.random.Generator, count: int, entries: int) -> Encoded:
    dense = rng.standard_normal((count, DIM), np.float32)
    drawn = (rng.zipf(1.1, (count, 4 * entries)) - 1) % COLUMNS
    columns = np.array([list(dict.fromkeys(row))[:entries] for row in drawn.tolist()])  # distinct columns
    weights = rng.random(columns.shape, np.float32) + np.float32(0.01)
    offsets = np.arange(count + 1) * entries
    sparse = scipy.sparse.csr_array((weights.ravel(), columns.ravel(), offsets), shape=(count, COLUMNS))
    return Encoded(dense=dense / np.linalg.norm(dense, axis=1, keepdims=True), sparse=sparse)


def batches(total: int) -> Iterator[tuple[list[Passage], Encoded]]:
    rng = np.random.default_rng(0)
    languages = ("de", "en", "es", "fr", "hi", "ja", "pt", "ru", "th", "zh")
    for start in range(0, total, BATCH):
        numbers = range(start, min(start + BATCH, total))
        metadata = [
            {"language": languages[i % 10], "year": 2000 + i % 26, "page": i // 10 % 100, "serial": i} for i in numbers
        ]
        passages = [Passage(f"p{i:07d}", f"passage {i}", values) for i, values in zip(numbers, metadata, strict=True)]
        yield passages, make_encoded(rng, len(passages), ENTRIES)


def fill(index: Index, total: int) -> float:
    """Fill an index; return the seconds spent in `add`."""
    spent = 0.0
    for passages, vectors in batches(total):
        spent += timed(partial(index.add, passages, vectors))[0]
    return spent


def search_each(
    index: Index, mode: Mode, queries: Encoded, where: Where | None
) -> tuple[float, float, list[list[Hit]]]:
    """Search each query; return the seconds of the first search, the median of the others, and all results."""
    runs = [timed(partial(index.search, mode, queries.take([i]), K, where)) for i in range(len(queries))]
    seconds = [spent for spent, _ in runs]
    return seconds[0], float(np.median(seconds[1:])), [hits for _, (hits,) in runs]


def compare(local: Index, memory: Index, queries: Encoded) -> None:
    row = "{:<8}{:<12}{:>12}{:>12}{:>14}{:>14}{:>8}"
    print(row.format("mode", "filter", "local p50", "memory p50", "local first", "memory first", "results"))
    for mode in MODES:
        for name, where in FILTERS.items():
            first, p50, hits = search_each(local, mode, queries, where)
            memory_first, memory_p50, exact = search_each(memory, mode, queries, where)
            assert hits == exact, f"{mode}, {name}: the results differ"
            times = [f"{1000 * seconds:.1f} ms" for seconds in (p50, memory_p50, first, memory_first)]
            print(row.format(mode, name, *times, "equal"))
        both = [timed(partial(index.search, mode, queries, K)) for index in (local, memory)]
        assert both[0][1] == both[1][1], f"{mode}: the results of a batch differ"
        times = [f"{1000 * seconds / len(queries):.1f} ms" for seconds, _ in both]
        print(row.format(mode, f"batch of {len(queries)}", *times, "", "", "equal"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    total = parser.parse_args(arguments).passages
    queries = make_encoded(np.random.default_rng(1), QUERIES, QUERY_ENTRIES)
    with tempfile.TemporaryDirectory() as folder:
        with LocalIndex.open(folder) as local:
            print(f"{total} passages, dense {DIM}, {ENTRIES} sparse entries, batches of {BATCH}")
            print(f"local: filled in {fill(local, total):.1f} s")
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        opening, local = timed(lambda: LocalIndex.open(folder))
        print(f"local: {size / 2**20:.0f} MiB, opened in {opening:.2f} s")
        assert opening < 5, "opening takes 5 s or longer"
        memory = MemoryIndex()
        print(f"memory: filled in {fill(memory, total):.1f} s")
        gc.collect()
        with local:
            compare(local, memory, queries)


if __name__ == "__main__":
    main()

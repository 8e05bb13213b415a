"""Late interaction alone: candidates from centroid lists against a scan of all vectors and against dense search.

python benchmarks/late_first_stage.py DATA/scifact DATA/xquad/de [--passages 100000] [--vectors 16] [--precision int8]

DATA/...: BEIR folders; without them, the bundled examples/world. Their passages are encoded once (--cache keeps the
vectors) and cut into runs of consecutive vectors, which become the passages of an index. If there are too few, they are
repeated with noise. The dense vector of a passage is the mean of its vectors. Prints the time to build the lists and
their size, the time of a query relative to dense search (processor time of interleaved rounds), and the recall of the
exact top 10 at first, after passages were added and deleted, while vectors are moved, and after they were moved back.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from timing import ratios, side_by_side, timed

from m3_integrations import Encoded, Hit, LocalIndex, M3Encoder, MultiVectors, Passage
from m3_integrations.core import Array
from m3_integrations.data import read_beir

BATCH, K, QUERIES, NOISE = 2000, 10, 60, 0.25
Half = npt.NDArray[np.float16]
WORLD = Path(__file__).parents[1] / "examples" / "world"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[WORLD])
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--vectors", type=int, default=16, help="vectors per passage")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--from-each", type=int, default=600, help="passages to encode of each folder")
    parser.add_argument("--query-vectors", type=int, default=1000, help="largest number of vectors of a query")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    values, queries = encoded_folders(options.folders, options.from_each, options.cache)
    queries = MultiVectors.of([each[: options.query_vectors] for each in queries])
    print(f"{platform.machine()}, {os.cpu_count()} processors; {len(values)} encoded vectors")
    print(f"{options.passages} passages of {options.vectors} vectors, {options.precision}")
    print(f"{len(queries)} queries of {queries.counts.mean():.1f} vectors", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder, random = Path(place) / "index", np.random.default_rng(0)
        fill(folder, values, options, random)
        with (
            LocalIndex.open(folder, exact_below={"multi_vector": 0}) as index,
            LocalIndex.open(folder, exact_below=10**9) as exact,
        ):
            measure(folder, index, exact, queries, options.rounds)
            change(index, exact, queries, Runs(values, options.vectors, random))


class Runs:
    """Passages of consecutive vectors of a corpus, repeated with noise if there are too few."""

    def __init__(self, values: Half, vectors: int, random: np.random.Generator) -> None:
        self._runs = values[: len(values) // vectors * vectors].reshape(-1, vectors, values.shape[1])
        self._random, self._order = random, random.permutation(len(self._runs))
        self._taken = 0

    def take(self, count: int) -> Encoded:
        """Return the next passages."""
        positions = np.arange(self._taken, self._taken + count)
        self._taken += count
        values = self._runs[self._order[positions % len(self._order)]].astype(np.float32)
        noise = self._random.standard_normal(values.shape, np.float32) * np.float32(NOISE / values.shape[2] ** 0.5)
        values += noise * (positions >= len(self._order))[:, None, None]
        flat = unit(values.reshape(-1, values.shape[2]))
        return Encoded(unit(values.mean(axis=1)), multi_vector=MultiVectors(flat, offsets(count, values.shape[1])))


def encoded_folders(folders: Sequence[Path], from_each: int, cache: Path | None) -> tuple[Half, MultiVectors]:
    """Return the vectors of passages, in float16, and the queries."""
    file = cache / f"{'-'.join(folder.name for folder in folders)}-{from_each}.npz" if cache else None
    if file and file.exists():
        with np.load(file) as stored:
            return stored["values"], MultiVectors(stored["queries"], stored["offsets"])
    encoder, passages, queries = M3Encoder.from_pretrained("m3-mini"), [], []
    for folder in folders:
        collection = read_beir(folder)
        chosen = np.linspace(0, len(collection.passages) - 1, min(from_each, len(collection.passages)), dtype=int)
        texts = [collection.passages[i].text for i in chosen.tolist()]
        passages.append(encoder.encode_passages(texts, ("multi_vector",)).multi_vector.values.astype(np.float16))
        queries += [query.text for query in collection.queries[: QUERIES // len(folders)]]
    asked = encoder.encode_queries(queries, ("multi_vector",)).multi_vector
    values = np.concatenate(passages)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, values=values, queries=asked.values, offsets=asked.offsets)
    return values, asked


def fill(folder: Path, values: Half, options: argparse.Namespace, random: np.random.Generator) -> None:
    """Fill an index."""
    runs = Runs(values, options.vectors, random)
    with LocalIndex.open(folder, precision={"multi_vector": options.precision}) as index:
        for start in range(0, options.passages, BATCH):
            count = min(BATCH, options.passages - start)
            index.add([Passage(f"p{start + i}", "") for i in range(count)], runs.take(count))


def measure(folder: Path, index: LocalIndex, exact: LocalIndex, queries: MultiVectors, rounds: int) -> None:
    """Print size, time to build, time of a query and recall."""
    singles = [as_query(queries, i) for i in range(len(queries))]
    before = size(folder)
    seconds, _ = timed(lambda: index.search("multi_vector", singles[0], K), time.process_time)
    grown = sum(path.stat().st_size for path in folder.glob("*.lists"))
    print(f"lists: built in {seconds:.1f} s of processor time; {grown / 1e6:.1f} MB, {grown / before:.2%} of the index")
    calls: dict[str, Callable[[], list[list[list[Hit]]]]] = {
        "dense": lambda: [index.search("dense", query, K) for query in singles],
        "lists": lambda: [index.search("multi_vector", query, K) for query in singles],
        "scan": lambda: [exact.search("multi_vector", query, K) for query in singles[:10]],
    }
    for call in calls.values():
        call()
    times = {name: each for name, (each, _) in side_by_side(calls, rounds, clock=time.process_time).items()}
    for name, share in (("dense", len(singles)), ("lists", len(singles)), ("scan", 10)):
        relative = median(ratios(times[name], times["dense"])) * len(singles) / share
        print(f"{name:6}{median(times[name]) / share * 1e3:9.2f} ms a query, {relative:6.2f} times dense")
    print(f"recall@{K}: {recall(index, exact, queries):.4f}")


def change(index: LocalIndex, exact: LocalIndex, queries: MultiVectors, runs: Runs) -> None:
    """Print the recall while passages are added, deleted, moved and moved back."""
    total = len(index)
    for count in (total // 100, total // 20):
        index.add([Passage(f"new{i}", "") for i in range(count)], runs.take(count))
        print(f"recall@{K} with {count} passages added: {recall(index, exact, queries):.4f}")
    index.delete([f"p{i}" for i in range(0, total, 20)])
    print(f"recall@{K} with {total // 20} passages deleted: {recall(index, exact, queries):.4f}")
    ids = [f"p{i}" for i in range(1, total, 20)]
    before, original = index.search("multi_vector", as_query(queries), K), index.vectors(ids, ("multi_vector",))
    index.set_vectors(ids, runs.take(len(ids)).only(("multi_vector",)))
    print(f"recall@{K} with {len(ids)} passages moved: {recall(index, exact, queries):.4f}")
    index.set_vectors(ids, original)
    same = np.mean([a == b for a, b in zip(before, index.search("multi_vector", as_query(queries), K), strict=True)])
    print(
        f"recall@{K} after they were moved back: {recall(index, exact, queries):.4f}; {same:.1%} of results identical"
    )


def recall(index: LocalIndex, exact: LocalIndex, queries: MultiVectors) -> float:
    """Return the share of the exact top k that is found, and check that scores are exact."""
    found, best = (each.search("multi_vector", as_query(queries), K) for each in (index, exact))
    for hits, others in zip(found, best, strict=True):
        known = dict(others)
        assert all(hit.score == known.get(hit.id, hit.score) for hit in hits)
    shares: Iterator[float] = (
        len({*dict(hits)} & {*dict(others)}) / K for hits, others in zip(found, best, strict=True)
    )
    return float(np.mean(list(shares)))


def as_query(queries: MultiVectors, i: int | None = None) -> Encoded:
    """Return all queries or one, with the mean of their vectors as dense vectors."""
    chosen = queries if i is None else queries.take([i])
    return Encoded(unit(np.array([each.mean(axis=0) for each in chosen])), multi_vector=chosen)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def unit(values: Array) -> Array:
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


def offsets(count: int, vectors: int) -> np.ndarray:
    return np.arange(count + 1) * vectors


if __name__ == "__main__":
    main()

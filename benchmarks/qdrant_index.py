"""Hybrid search in Qdrant in one round trip, compared with exact search in MemoryIndex; bytes per passage.

python benchmarks/qdrant_index.py DATA/xquad/{ar,de,en,es,hi,zh} [--passages 50000] [--url http://localhost:6333]

Passages of BEIR folders are encoded and tiled to --passages, with noise added so that all differ. Without --url,
Qdrant's engine runs in this process, in a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import scipy.sparse

from m3_integrations import (
    Encoded,
    Hit,
    M3Encoder,
    MemoryIndex,
    MultiVectors,
    Passage,
    QdrantIndex,
    Retriever,
    SearchPlan,
)
from m3_integrations.core import MODES
from m3_integrations.data import read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.index.base import HybridRequest
from m3_integrations.index.qdrant import CollectionConfig
from m3_integrations.index.qdrant.backend import CollectionBackend

BATCH, K, CANDIDATES = 1000, 10, 100


class CountingBackend:
    """Wrapper of a backend that counts its round trips."""

    def __init__(self, backend: CollectionBackend) -> None:
        self.backend, self.trips = backend, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)

    def query(self, requests: Sequence[object]) -> object:
        self.trips += 1
        return self.backend.query(requests)


def encode_texts(folders: Sequence[Path], limit: int, vectors: int) -> tuple[Encoded, Encoded, M3Encoder]:
    encoder = M3Encoder.from_pretrained()
    collections = [read_beir(folder, "test") for folder in folders]
    per_folder = -(-limit // len(folders))
    texts = [passage.text for each in collections for passage in islice(each.passages, per_folder)]
    queries = [query.text for each in collections for query in islice(each.queries, 300 // len(folders))]
    return truncate(encoder.encode_passages(texts), vectors), encoder.encode_queries(queries), encoder


def truncate(encoded: Encoded, vectors: int) -> Encoded:
    """Keep the first multi-vectors of each text, to fit all into memory."""
    return encoded.with_multi_vector(MultiVectors.of([each[:vectors] for each in encoded.multi_vector]))


def tile(encoded: Encoded, total: int, jitter: float) -> Iterator[tuple[list[Passage], Encoded]]:
    rng = np.random.default_rng(0)
    for start in range(0, total, BATCH):
        rows = np.arange(start, min(start + BATCH, total))
        passages = [Passage(f"p{row:07d}", f"passage {row}", {"serial": int(row)}) for row in rows]
        yield passages, perturb(rng, encoded.take(rows % len(encoded)), jitter)


def perturb(rng: np.random.Generator, encoded: Encoded, jitter: float) -> Encoded:
    sparse = scipy.sparse.csr_array(encoded.sparse, copy=True)
    sparse.data *= np.exp(jitter * rng.standard_normal(len(sparse.data), np.float32))
    vectors = encoded.multi_vector
    values = add_noise(rng, vectors.values, jitter)
    return Encoded(add_noise(rng, encoded.dense, jitter), sparse, MultiVectors(values, vectors.offsets))


def add_noise(rng: np.random.Generator, vectors: np.ndarray, jitter: float) -> np.ndarray:
    noise = rng.standard_normal(vectors.shape, np.float32) * np.float32(jitter / np.sqrt(vectors.shape[1]))
    return (vectors + noise) / np.linalg.norm(vectors + noise, axis=1, keepdims=True)


def sizes(folder: Path) -> Counter[str]:
    """Count bytes on disk by part."""
    sizes_by_part: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if path.is_file():
            part = next((each for each in path.relative_to(folder).parts if "-" in each and len(each) < 30), "other")
            sizes_by_part[part] += path.stat().st_blocks * 512
    return sizes_by_part


def time_calls(call, times: int) -> list[float]:
    seconds = []
    for i in range(times):
        start = time.perf_counter()
        call(i)
        seconds.append(time.perf_counter() - start)
    return seconds


def overlap(one: Sequence[Hit], other: Sequence[Hit]) -> float:
    return len({hit.id for hit in one} & {hit.id for hit in other}) / max(1, len(other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="BEIR folders")
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument("--encoded", type=int, default=1200, help="passages encoded before tiling")
    parser.add_argument("--vectors", type=int, default=16, help="multi-vectors per passage")
    parser.add_argument("--jitter", type=float, default=0.5, help="length of the noise added to unit vectors")
    parser.add_argument("--url", default=None, help="URL of a Qdrant server")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    texts, queries, encoder = encode_texts(options.folders, options.encoded, options.vectors)
    print(f"{len(texts)} texts encoded, {len(queries)} queries, weights {dict(encoder.weights)}", flush=True)
    entries, vectors = texts.sparse.nnz / len(texts), texts.multi_vector.counts.mean()
    print(
        f"a passage has {texts.dense.shape[1]} dimensions, {entries:.0f} weighted tokens, {vectors:.1f} vectors",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        location = options.url or folder
        with QdrantIndex.open(location, "benchmark", layout=CollectionConfig()) as index, MemoryIndex() as reference:
            compare(index, reference, texts, queries, encoder, options)


def compare(index, reference, texts, queries, encoder, options) -> None:
    filling = 0.0
    for passages, encoded in tile(texts, options.passages, options.jitter):
        reference.add(passages, encoded)
        start = time.perf_counter()
        index.add(passages, encoded)
        filling += time.perf_counter() - start
    print(f"written: {options.passages / filling:.0f} passages per second", flush=True)
    if index.folder is not None:
        start = time.perf_counter()
        index.optimize()
        print(f"graph and inverted lists: {time.perf_counter() - start:.0f} s; bytes per passage on disk:", flush=True)
        index.close()  # replaced segments are deleted on close; the next query reopens the folder
        for part, size in sizes(index.folder / "shard" / "segments").most_common(8):
            print(f"  {part:32}{size / options.passages:10.0f}")
    weights = dict(encoder.weights)
    plan = SearchPlan(candidates=CANDIDATES, weights=weights)
    exact = Retriever(encoder, reference, plan).retrieve_encoded(queries, K)
    counting = CountingBackend(index._backend)
    counted = QdrantIndex(counting, CollectionConfig(), 0)
    request = HybridRequest(dict.fromkeys(plan.propose, CANDIDATES), weights)
    hybrid = time_calls(lambda i: counted.search_hybrid(queries.take([i]), request, K, by_mode=False), len(queries))
    trips = counting.trips / len(queries)
    hybrid_hits = counted.search_hybrid(queries, request, K, by_mode=False)
    same = [
        [a.passage.id for a in one] == [b.passage.id for b in other]
        for one, other in zip(hybrid_hits, exact, strict=True)
    ]
    print(f"hybrid: top {K} equal for {np.mean(same):.1%} of queries")
    print(f"hybrid: {1000 * np.median(hybrid):.1f} ms per query (median), {trips:.2f} round trips")
    retriever = Retriever(encoder, counted, plan)
    steps = time_calls(lambda i: retriever.retrieve_encoded(queries.take([i]), K), min(50, len(queries)))
    print(f"Retriever, with the scores of each mode: {1000 * np.median(steps):.1f} ms per query (median)")
    for mode in MODES[:2]:
        approximate, exact_hits = counted.search(mode, queries, CANDIDATES), reference.search(mode, queries, CANDIDATES)
        shares = [overlap(one, other) for one, other in zip(approximate, exact_hits, strict=True)]
        times = time_calls(
            lambda i, mode=mode: counted.search(mode, queries.take([i]), CANDIDATES), min(50, len(queries))
        )
        print(f"{mode}: recall@{CANDIDATES} {np.mean(shares):.4f}, {1000 * np.median(times):.1f} ms per query (median)")


if __name__ == "__main__":
    main()

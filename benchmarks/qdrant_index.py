"""Hybrid search in Qdrant, in one round trip, beside the exact answers of MemoryIndex; and the bytes of a passage.

python benchmarks/qdrant_index.py DATA/xquad/{ar,de,en,es,hi,zh} [--passages 50000] [--place http://localhost:6333]

The passages of BEIR folders are encoded, tiled to the number asked for, and each copy is moved a little, so that no two
are the same. Without --place Qdrant's engine runs in this process, in a temporary folder.
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
from m3_integrations.core.encoded import MODES
from m3_integrations.core.errors import TextsTruncated
from m3_integrations.evaluation.beir import read_beir
from m3_integrations.index.qdrant import Layout
from m3_integrations.index.qdrant_engine import Engine

BATCH, K, CANDIDATES = 1000, 10, 100


class Counting:
    """An engine that counts its round trips."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.trips = engine, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def query(self, requests: Sequence[object]) -> object:
        self.trips += 1
        return self.engine.query(requests)


def encoded_texts(folders: Sequence[Path], limit: int, vectors: int) -> tuple[Encoded, Encoded, M3Encoder]:
    encoder = M3Encoder.from_pretrained()
    collections = [read_beir(folder, "test") for folder in folders]
    share = -(-limit // len(folders))
    texts = [each.text for one in collections for each in islice(one.passages, share)]
    asked = [each.text for one in collections for each in islice(one.queries, 300 // len(folders))]
    return shortened(encoder.encode_passages(texts), vectors), encoder.encode_queries(asked), encoder


def shortened(encoded: Encoded, vectors: int) -> Encoded:
    """With the first so many vectors of each text, so that all of it fits into memory."""
    return encoded.with_multi_vector(MultiVectors.of([each[:vectors] for each in encoded.multi_vector]))


def tiled(encoded: Encoded, total: int, jitter: float) -> Iterator[tuple[list[Passage], Encoded]]:
    random = np.random.default_rng(0)
    for start in range(0, total, BATCH):
        rows = np.arange(start, min(start + BATCH, total))
        passages = [Passage(f"p{row:07d}", f"passage {row}", {"serial": int(row)}) for row in rows]
        yield passages, moved(random, encoded.take(rows % len(encoded)), jitter)


def moved(random: np.random.Generator, encoded: Encoded, jitter: float) -> Encoded:
    sparse = scipy.sparse.csr_array(encoded.sparse, copy=True)
    sparse.data *= np.exp(jitter * random.standard_normal(len(sparse.data), np.float32))
    late = encoded.multi_vector
    values = turned(random, late.values, jitter)
    return Encoded(turned(random, encoded.dense, jitter), sparse, MultiVectors(values, late.offsets))


def turned(random: np.random.Generator, vectors: np.ndarray, jitter: float) -> np.ndarray:
    noise = random.standard_normal(vectors.shape, np.float32) * np.float32(jitter / np.sqrt(vectors.shape[1]))
    return (vectors + noise) / np.linalg.norm(vectors + noise, axis=1, keepdims=True)


def sizes(folder: Path) -> Counter[str]:
    """Bytes on disk by part."""
    found: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if path.is_file():
            part = next((each for each in path.relative_to(folder).parts if "-" in each and len(each) < 30), "the rest")
            found[part] += path.stat().st_blocks * 512
    return found


def seconds(call, times: int) -> list[float]:
    taken = []
    for i in range(times):
        start = time.perf_counter()
        call(i)
        taken.append(time.perf_counter() - start)
    return taken


def shared(one: Sequence[Hit], other: Sequence[Hit]) -> float:
    return len({hit.id for hit in one} & {hit.id for hit in other}) / max(1, len(other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="BEIR folders")
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument("--encoded", type=int, default=1200, help="how many are encoded before they are tiled")
    parser.add_argument("--vectors", type=int, default=16, help="how many of each passage's vectors are kept")
    parser.add_argument("--jitter", type=float, default=0.5, help="length of what is added to a vector of length 1")
    parser.add_argument("--place", default=None, help="URL of a Qdrant server")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    texts, queries, encoder = encoded_texts(options.folders, options.encoded, options.vectors)
    print(f"{len(texts)} texts encoded, {len(queries)} queries, weights {dict(encoder.weights)}", flush=True)
    entries, kept = texts.sparse.nnz / len(texts), texts.multi_vector.counts.mean()
    print(
        f"a passage has {texts.dense.shape[1]} dimensions, {entries:.0f} weighted tokens, {kept:.1f} vectors",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        place = options.place or folder
        with QdrantIndex.open(place, "benchmark", layout=Layout()) as index, MemoryIndex() as judge:
            compare(index, judge, texts, queries, encoder, options)


def compare(index, judge, texts, queries, encoder, options) -> None:
    filling = 0.0
    for passages, encoded in tiled(texts, options.passages, options.jitter):
        judge.add(passages, encoded)
        start = time.perf_counter()
        index.add(passages, encoded)
        filling += time.perf_counter() - start
    print(f"written: {options.passages / filling:.0f} passages a second", flush=True)
    if index.folder is not None:
        start = time.perf_counter()
        index.optimise()
        print(f"graph and inverted lists: {time.perf_counter() - start:.0f} s; bytes a passage on disk:", flush=True)
        index.close()  # what was replaced goes when nobody holds it; the next question opens the folder again
        for part, size in sizes(index.folder / "shard" / "segments").most_common(8):
            print(f"  {part:32}{size / options.passages:10.0f}")
    weights = dict(encoder.weights)
    plan = SearchPlan(candidates=CANDIDATES, weights=weights)
    exact = Retriever(encoder, judge, plan).retrieve_encoded(queries, K)
    counting = Counting(index._engine)
    over = QdrantIndex(counting, Layout(), 0)
    hybrid = seconds(lambda i: over.hybrid(queries.take([i]), weights, K, candidates=CANDIDATES), len(queries))
    trips = counting.trips / len(queries)
    found = over.hybrid(queries, weights, K, candidates=CANDIDATES)
    same = [
        [a.passage.id for a in one] == [b.passage.id for b in other] for one, other in zip(found, exact, strict=True)
    ]
    print(f"hybrid: top {K} equal for {np.mean(same):.1%} of queries")
    print(f"hybrid: {1000 * np.median(hybrid):.1f} ms a query (median), {trips:.2f} round trips")
    at_once = Retriever(encoder, over, plan)
    steps = seconds(lambda i: at_once.retrieve_encoded(queries.take([i]), K), min(50, len(queries)))
    print(f"Retriever, with each mode of the winners: {1000 * np.median(steps):.1f} ms a query (median)")
    for mode in MODES[:2]:
        alone, right = over.search(mode, queries, CANDIDATES), judge.search(mode, queries, CANDIDATES)
        shares = [shared(one, other) for one, other in zip(alone, right, strict=True)]
        taken = seconds(lambda i, mode=mode: over.search(mode, queries.take([i]), CANDIDATES), min(50, len(queries)))
        print(f"{mode}: recall@{CANDIDATES} {np.mean(shares):.4f}, {1000 * np.median(taken):.1f} ms a query (median)")


if __name__ == "__main__":
    main()

"""Hybrid search with LocalIndex compared with its memory traffic, with MemoryIndex, and with LlamaIndex's BGEM3Index.

python benchmarks/hybrid_search.py [--passages 100000] [--vectors 16] [--precision float32] [--cpu]

Dense and sparse search generate 100 candidates each, and their union is rescored in all three modes. The lower bound is
the time of one thread to read sequentially the bytes that a query needs: all dense vectors, the inverted lists of its
tokens, and its candidates in all modes; it is timed along with the queries. Embeddings are synthetic, around 1,000
topics. The first time a query runs, pages of the index are not mapped by this process yet; each query then runs five
more times. BGEM3Index scores every passage in every mode one by one. If it and FlagEmbedding are installed, it is timed
over 2,000 passages, without the model, after each round; its time grows linearly. --cpu: measure CPU time instead of
wall time, for a shared machine. Threads: one per core, or OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timing
from synthetic import BATCH, DIM, ENTRIES, Synthetic, World

from m3_integrations import Encoded, LocalIndex, MemoryIndex, Retriever, SearchPlan
from m3_integrations.core import MODES, Array
from m3_integrations.core.scoring import entries_of
from m3_integrations.index import Index

QUERIES, K = 100, 10
ROUNDS, CHUNK, PEER_PASSAGES = 5, 20, BATCH
CLOCK: Callable[[], float] = time.perf_counter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--vectors", type=int, default=16)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    global CLOCK  # the same for the whole run
    CLOCK = time.process_time if options.cpu else time.perf_counter
    queries = World(options.vectors, seed=1).queries(QUERIES)
    print(f"{options.passages} passages, dense {DIM}, {ENTRIES} entries, {options.vectors} vectors of {DIM}")
    with tempfile.TemporaryDirectory() as folder:
        precision = {"multi_vector": options.precision}
        with LocalIndex.open(Path(folder) / "index", precision=precision) as local, MemoryIndex() as memory:
            for name, index in (("local", local), ("memory", memory)):
                world = World(options.vectors)
                seconds = timed(lambda index=index, world=world: fill(index, world, options.passages))[0]
                print(f"{name}: filled in {seconds:.0f} s", flush=True)
            compare(local, memory, queries, next(World(options.vectors).passages(PEER_PASSAGES))[1])


def compare(local: LocalIndex, memory: MemoryIndex, queries: Encoded, sample: Encoded) -> None:
    """Print the comparison; BGEM3Index searches the passages in `sample`."""
    retrievers = [Retriever(Synthetic(), index, SearchPlan()) for index in (local, memory)]
    singles = [queries.take([i]) for i in range(len(queries))]
    for each in retrievers:
        each.retrieve_encoded(singles[0], K)
    traffic = np.ones(bytes_needed(memory, singles[0]) // 4, np.float32)
    time_peer = peer(sample)
    first, *repeated = [(*compare_once(retrievers, singles, traffic), time_peer(singles[i])) for i in range(1 + ROUNDS)]
    bound, local_repeated, memory_repeated = (median(each[i] for each in repeated) for i in (2, 0, 1))
    print(f"lower bound: {traffic.nbytes / 1e6:.0f} MB in {bound:.2f} ms, {traffic.nbytes / bound / 1e6:.1f} GB/s")
    for name, p50 in (("first run", first[0]), (f"{ROUNDS} more runs", local_repeated)):
        print(f"local p50, {name}: {p50:.2f} ms, {p50 / bound:.2f} times the lower bound")
    print(f"memory p50, {ROUNDS} more runs: {memory_repeated:.2f} ms")
    same = np.mean([each[3] for each in (first, *repeated)])
    print(f"same top {K} as MemoryIndex: {100 * same:.1f} % of {len(singles)} queries")
    peer_times = [len(local) / PEER_PASSAGES * each[4] for each in repeated]
    factors = [each / local_time for each, (local_time, *_) in zip(peer_times, repeated, strict=True)]
    if time_peer is not not_installed:
        print(
            f"BGEM3Index, extrapolated from {PEER_PASSAGES} passages: {median(peer_times):.0f} ms; "
            f"{median(factors):.0f} times as long, {min(factors):.0f} to {max(factors):.0f} in {ROUNDS} rounds"
        )
    print_steps(local, singles)


def compare_once(
    retrievers: list[Retriever], queries: list[Encoded], traffic: Array
) -> tuple[float, float, float, float]:
    """Measure median milliseconds of local, memory and the lower bound, and the share of equal results."""
    runs = [
        run
        for start in range(0, len(queries), CHUNK)
        for run in side_by_side(retrievers, queries[start:][:CHUNK], traffic)
    ]
    local, memory, bound = (1000 * median(run[i][0] for run in runs) for i in range(3))
    return local, memory, bound, float(np.mean([found == exact for (_, found), (_, exact), _ in runs]))


def side_by_side(retrievers: list[Retriever], queries: list[Encoded], traffic: Array) -> list[tuple[Any, Any, Any]]:
    """Run queries on one index after the other, and as many reads of the traffic."""
    results = [[timed(lambda e=each, q=query: top(e, q)) for query in queries] for each in retrievers]
    return list(zip(*results, [timed(traffic.max) for _ in queries], strict=True))


def print_steps(index: Index, queries: list[Encoded]) -> None:
    """Print the median milliseconds of each step of a search."""
    steps: dict[str, list[float]] = {}
    for query in queries:
        hits_by_mode = {}
        for mode in ("dense", "sparse"):
            seconds, (hits_by_mode[mode],) = timed(lambda m=mode, q=query: index.search(m, q, 100))
            steps.setdefault(f"search {mode}", []).append(seconds)
        ids = sorted({hit.id for hits in hits_by_mode.values() for hit in hits})
        for mode in MODES:
            seconds = timed(lambda m=mode, q=query, ids=ids: index.score(m, q, [ids]))[0]
            steps.setdefault(f"score {mode}", []).append(seconds)
    print(", ".join(f"{name} {1000 * median(each):.2f} ms" for name, each in steps.items()))


def not_installed(_: Encoded) -> float:
    return float("nan")


def peer(encoded: Encoded) -> Callable[[Encoded], float]:
    """Build LlamaIndex's BGEM3Index over these passages; return a function that times a query in milliseconds."""
    try:
        from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder
        from llama_index.core.schema import TextNode
        from llama_index.core.storage.docstore import SimpleDocumentStore
        from llama_index.indices.managed.bge_m3 import BGEM3Index
    except ImportError as error:
        print(f"BGEM3Index is not measured: {error}")
        return not_installed

    class PrecomputedEmbedder(M3Embedder):
        def __init__(self) -> None:
            self.output: dict[str, Any] = {}

        def encode(self, *_: Any, **__: Any) -> dict[str, Any]:
            return self.output

        def __del__(self) -> None:
            """Do nothing: there is no process pool to stop."""

    class PrecomputedIndex(BGEM3Index):
        def __init__(self) -> None:
            nodes = [TextNode(id_=str(i), text="") for i in range(len(encoded))]
            self._docstore = SimpleDocumentStore()
            self._docstore.add_documents(nodes)
            self._docs_pos_to_node_id = {i: node.node_id for i, node in enumerate(nodes)}
            self._model, self._multi_embed_store = PrecomputedEmbedder(), to_flag_embedding(encoded)
            self.batch_size, self.query_maxlen, self.weights_for_different_modes = 32, 8192, [1.0, 0.3, 1.0]

        model = property(lambda self: self._model)

    index = PrecomputedIndex()

    def measure(query: Encoded) -> float:
        index.model.output = {name: each[0] for name, each in to_flag_embedding(query).items()}
        return 1000 * timed(lambda: index.query("", K))[0]

    return measure


def to_flag_embedding(encoded: Encoded) -> dict[str, Any]:
    """Convert embeddings to FlagEmbedding's output format."""
    weights = [dict(zip(map(str, tokens), each, strict=True)) for tokens, each in entries_of(encoded.sparse)]
    return {
        "dense_vecs": encoded.dense,
        "lexical_weights": weights,
        "colbert_vecs": list(map(np.array, encoded.multi_vector)),
    }


def fill(index: Index, world: World, total: int) -> None:
    for passages, encoded in world.passages(total):
        index.add(passages, encoded)


def top(retriever: Retriever, query: Encoded) -> list[str]:
    return [match.passage.id for match in retriever.retrieve_encoded(query, K)[0]]


def bytes_needed(index: MemoryIndex, query: Encoded) -> int:
    """Count the bytes read by a query: dense vectors, inverted lists of its tokens, candidates in all modes."""
    hits_by_mode = [index.search(mode, query, 100)[0] for mode in ("dense", "sparse")]
    ids = sorted({hit.id for hits in hits_by_mode for hit in hits})
    vectors = index.vectors(ids)
    entries = np.isin(index.vectors(index.ids(), ("sparse",)).sparse.indices, query.sparse.indices).sum()
    candidates = vectors.dense.nbytes + 8 * vectors.sparse.nnz + vectors.multi_vector.values.nbytes
    return int(4 * DIM * len(index) + 8 * entries + candidates)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    return timing.timed(call, CLOCK)


if __name__ == "__main__":
    main()

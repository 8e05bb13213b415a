"""Hybrid search of a folder beside its arithmetic alone, beside MemoryIndex, and beside LlamaIndex's BGEM3Index.

python benchmarks/hybrid_search.py [--passages 100000] [--vectors 16] [--precision float32] [--cpu]

Dense and sparse search propose 100 passages each, and their union is scored in all three modes. The arithmetic alone
is the time that one thread takes to read, once and in a row, as many bytes as must be read: all dense vectors, the
inverted lists of a question's tokens, and its candidates in all modes; it is timed beside the questions. Synthetic
vectors: passages and questions around 1,000 topics. Asked first, a question finds pages of the folder that this process
has not touched yet; each question is then asked five times more. BGEM3Index scores every passage in every mode, one
after the other: where it and FlagEmbedding are installed it is timed over 2,000 passages, without the model, after each
of these rounds, and its time grows linearly with them. --cpu: the processor's time instead of the clock's, for a
machine that others use too. Threads: as many as there are cores, or as OMP_NUM_THREADS says.
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
from m3_integrations.core.encoded import MODES, Array, entries_of
from m3_integrations.index.base import Index

QUERIES, K = 100, 10
ROUNDS, AT_ONCE, PEER = 5, 20, BATCH
CLOCK: Callable[[], float] = time.perf_counter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--vectors", type=int, default=16)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    global CLOCK  # one for the whole run
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
            compare(local, memory, queries, next(World(options.vectors).passages(PEER))[1])


def compare(local: LocalIndex, memory: MemoryIndex, queries: Encoded, few: Encoded) -> None:
    """Print all. few: the passages that BGEM3Index is asked about."""
    retrievers = [Retriever(Synthetic(), index, SearchPlan()) for index in (local, memory)]
    singles = [queries.take([i]) for i in range(len(queries))]
    for each in retrievers:
        each.retrieve_encoded(singles[0], K)
    needed = np.ones(bytes_needed(memory, singles[0]) // 4, np.float32)
    ask_peer = peer(few)
    first, *again = [(*compare_once(retrievers, singles, needed), ask_peer(singles[i])) for i in range(1 + ROUNDS)]
    alone, local_again, memory_again = (median(each[i] for each in again) for i in (2, 0, 1))
    print(
        f"the arithmetic alone: {needed.nbytes / 1e6:.0f} MB in {alone:.2f} ms, {needed.nbytes / alone / 1e6:.1f} GB/s"
    )
    for name, p50 in (("asked first", first[0]), (f"asked again, {ROUNDS} times", local_again)):
        print(f"local p50, {name}: {p50:.2f} ms, {p50 / alone:.2f} times the arithmetic")
    print(f"memory p50, asked again: {memory_again:.2f} ms")
    same = np.mean([each[3] for each in (first, *again)])
    print(f"the same top {K} as MemoryIndex: {100 * same:.1f} % of {len(singles)} questions")
    theirs = [len(local) / PEER * each[4] for each in again]
    times = [each / ours for each, (ours, *_) in zip(theirs, again, strict=True)]
    if ask_peer is not not_installed:
        print(
            f"BGEM3Index, from {PEER} passages linearly: {median(theirs):.0f} ms; {median(times):.0f} times as long, "
            f"{min(times):.0f} to {max(times):.0f} in {ROUNDS} rounds"
        )
    print_steps(local, singles)


def compare_once(
    retrievers: list[Retriever], queries: list[Encoded], needed: Array
) -> tuple[float, float, float, float]:
    """The median milliseconds of the folder, of memory and of the arithmetic; how often both found the same."""
    runs = [
        run
        for start in range(0, len(queries), AT_ONCE)
        for run in side_by_side(retrievers, queries[start:][:AT_ONCE], needed)
    ]
    local, memory, alone = (1000 * median(run[i][0] for run in runs) for i in range(3))
    return local, memory, alone, float(np.mean([mine == judged for (_, mine), (_, judged), _ in runs]))


def side_by_side(retrievers: list[Retriever], queries: list[Encoded], needed: Array) -> list[tuple[Any, Any, Any]]:
    """Some questions to one index after the other, and as many readings."""
    found = [[timed(lambda e=each, q=query: top(e, q)) for query in queries] for each in retrievers]
    return list(zip(*found, [timed(needed.max) for _ in queries], strict=True))


def print_steps(index: Index, queries: list[Encoded]) -> None:
    """The median milliseconds of each step of a search."""
    steps: dict[str, list[float]] = {}
    for query in queries:
        found = {}
        for mode in ("dense", "sparse"):
            seconds, (found[mode],) = timed(lambda m=mode, q=query: index.search(m, q, 100))
            steps.setdefault(f"search {mode}", []).append(seconds)
        ids = sorted({hit.id for hits in found.values() for hit in hits})
        for mode in MODES:
            seconds = timed(lambda m=mode, q=query, ids=ids: index.score(m, q, [ids]))[0]
            steps.setdefault(f"score {mode}", []).append(seconds)
    print(", ".join(f"{name} {1000 * median(each):.2f} ms" for name, each in steps.items()))


def not_installed(_: Encoded) -> float:
    return float("nan")


def peer(encoded: Encoded) -> Callable[[Encoded], float]:
    """The milliseconds that LlamaIndex's BGEM3Index over these passages takes for a question."""
    try:
        from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder
        from llama_index.core.schema import TextNode
        from llama_index.core.storage.docstore import SimpleDocumentStore
        from llama_index.indices.managed.bge_m3 import BGEM3Index
    except ImportError as error:
        print(f"BGEM3Index is not timed: {error}")
        return not_installed

    class Asked(M3Embedder):
        def __init__(self) -> None:
            self.said: dict[str, Any] = {}

        def encode(self, *_: Any, **__: Any) -> dict[str, Any]:
            return self.said

        def __del__(self) -> None:
            """There is no pool to stop."""

    class Filled(BGEM3Index):
        def __init__(self) -> None:
            nodes = [TextNode(id_=str(i), text="") for i in range(len(encoded))]
            self._docstore = SimpleDocumentStore()
            self._docstore.add_documents(nodes)
            self._docs_pos_to_node_id = {i: node.node_id for i, node in enumerate(nodes)}
            self._model, self._multi_embed_store = Asked(), flag_embedding(encoded)
            self.batch_size, self.query_maxlen, self.weights_for_different_modes = 32, 8192, [1.0, 0.3, 1.0]

        model = property(lambda self: self._model)

    index = Filled()

    def ask(query: Encoded) -> float:
        index.model.said = {name: each[0] for name, each in flag_embedding(query).items()}
        return 1000 * timed(lambda: index.query("", K))[0]

    return ask


def flag_embedding(encoded: Encoded) -> dict[str, Any]:
    """As FlagEmbedding says them."""
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
    """What one question must read: every dense vector, the lists of its tokens, its candidates in all modes."""
    hits = [index.search(mode, query, 100)[0] for mode in ("dense", "sparse")]
    ids = sorted({hit.id for found in hits for hit in found})
    kept = index.vectors(ids)
    listed = np.isin(index._settled("sparse")._encoded.sparse.indices, query.sparse.indices).sum()
    candidates = kept.dense.nbytes + 8 * kept.sparse.nnz + kept.multi_vector.values.nbytes
    return int(4 * DIM * len(index) + 8 * listed + candidates)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    return timing.timed(call, CLOCK)


if __name__ == "__main__":
    main()

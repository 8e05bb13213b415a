"""Questions awaited at the same time against the same questions one after the other: the ratio, and the vectors.

python benchmarks/async_queries.py [--model m3-mini] [--queries 64] [--rounds 5]

Each round times both, side by side; printed are the medians of the seconds and of the ratios of the rounds. How much is
won depends on what a single question leaves unused: most of a GPU or of many cores, half of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from langchain_core.documents import Document
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore
from timing import median_ratio

from m3_integrations import M3Encoder, MemoryIndex, Passage, ingest, llama_index
from m3_integrations.langchain import M3Embeddings, M3Retriever, M3VectorStore
from m3_integrations.llama_index import M3Embedding

THINGS = (
    "a bridge",
    "a river",
    "a tea house",
    "the old library",
    "a mountain path",
    "the harbour",
    "a train",
    "the night market",
)
ASKED = (
    "Who built {}?",
    "When was {} opened?",
    "Where is {} today?",
    "Why do people visit {} in the winter months?",
    "Wo ist {}?",
    "谁建造了 {}?",
    "{}",
    "How long does it take to walk from the station to {}?",
)
Ask = Callable[[str], Awaitable[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    encoder = M3Encoder.from_pretrained(options.model)
    queries = questions(options.queries)
    tokens = np.mean(encoder.token_count(queries))
    print(f"{encoder!r}, {torch.get_num_threads()} threads, {len(queries)} questions of {tokens:.1f} tokens")
    print(f"{'':44}{'sequential s':>14}{'concurrent s':>14}{'ratio':>8}{'largest difference':>20}")
    for name, ask, numbers in calls(encoder):
        print_row(name, *asyncio.run(measure(ask, numbers, queries, options.rounds)))


def questions(count: int) -> list[str]:
    """Distinct short questions, of the lengths that people type."""
    every = [asked.format(thing) for asked in ASKED for thing in THINGS]
    return [f"{every[i % len(every)]} {i // len(every) or ''}".strip() for i in range(count)]


def calls(encoder: M3Encoder) -> list[tuple[str, Ask, Callable[[Any], list[float]]]]:
    """What is awaited, and the numbers of its answer to compare."""
    index = MemoryIndex()
    texts = [f"{question} It stands by the water." for question in questions(256)]
    ingest(encoder, index, [Passage(str(i), text) for i, text in enumerate(texts)])
    embeddings = M3Embeddings(encoder=encoder)
    store, retriever = M3VectorStore(embeddings, index), M3Retriever(index=index, encoder=encoder, k=10)
    return [
        ("LlamaIndex aget_query_embedding", M3Embedding(encoder=encoder).aget_query_embedding, list),
        ("LangChain aembed_query", embeddings.aembed_query, list),
        ("LangChain M3Retriever.ainvoke", retriever.ainvoke, places),
        ("LangChain M3VectorStore.as_retriever.ainvoke", store.as_retriever().ainvoke, places),
        ("LlamaIndex M3Retriever.aretrieve", llama_index.M3Retriever(index, encoder, 10).aretrieve, places_of_nodes),
        ("LlamaIndex M3VectorStore, hybrid, aretrieve", hybrid(index, encoder).aretrieve, places_of_nodes),
    ]


def hybrid(index: MemoryIndex, encoder: M3Encoder) -> BaseRetriever:
    """LlamaIndex's own retriever over our store."""
    store = llama_index.M3VectorStore(index, encoder)
    over = VectorStoreIndex.from_vector_store(store, embed_model=M3Embedding(encoder=encoder))
    return over.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=10)


def places(documents: list[Document]) -> list[float]:
    """Which documents were found, in their order, as numbers."""
    return [float(str(document.id)) for document in documents]


def places_of_nodes(nodes: list[NodeWithScore]) -> list[float]:
    return [float(each.node.node_id) for each in nodes]


async def measure(
    ask: Ask, numbers: Callable[[Any], list[float]], queries: list[str], rounds: int
) -> tuple[float, float, float, float]:
    """Seconds one after the other, seconds at once, the median ratio, and how far the answers differ at most."""
    await ask(queries[0])
    slow, fast, furthest = [], [], 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        alone = [await ask(query) for query in queries]
        middle = time.perf_counter()
        together = await asyncio.gather(*map(ask, queries))
        end = time.perf_counter()
        slow.append(middle - start)
        fast.append(end - middle)
        pairs = zip(map(numbers, alone), map(numbers, together), strict=True)
        furthest = max(furthest, *(float(np.abs(np.subtract(a, b)).max()) for a, b in pairs))
    return median(slow), median(fast), median_ratio(slow, fast), furthest


def print_row(name: str, slow: float, fast: float, ratio: float, furthest: float) -> None:
    print(f"{name:44}{slow:14.3f}{fast:14.3f}{ratio:8.2f}{furthest:20.1e}", flush=True)


if __name__ == "__main__":
    main()

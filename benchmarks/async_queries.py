"""Concurrent async queries, which are micro-batched, compared with sequential ones: ratio of times, and equal results.

python benchmarks/async_queries.py [--model m3-mini] [--queries 64] [--rounds 5]

Each round times both. Prints median seconds and the median ratio of the rounds. The gain depends on how much of the
hardware a single question leaves unused: most of a GPU or of many cores, half of one core.
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
TEMPLATES = (
    "Who built {}?",
    "When was {} opened?",
    "Where is {} today?",
    "Why do people visit {} in the winter months?",
    "Wo ist {}?",
    "谁建造了 {}?",
    "{}",
    "How long does it take to walk from the station to {}?",
)
AsyncQuery = Callable[[str], Awaitable[Any]]


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
    """Make distinct short questions of typical length."""
    distinct = [template.format(thing) for template in TEMPLATES for thing in THINGS]
    return [f"{distinct[i % len(distinct)]} {i // len(distinct) or ''}".strip() for i in range(count)]


def calls(encoder: M3Encoder) -> list[tuple[str, AsyncQuery, Callable[[Any], list[float]]]]:
    """List the name of each call, the call, and a function from its result to numbers to compare."""
    index = MemoryIndex()
    texts = [f"{question} It stands by the water." for question in questions(256)]
    ingest(encoder, index, [Passage(str(i), text) for i, text in enumerate(texts)])
    embeddings = M3Embeddings(encoder=encoder)
    store, retriever = M3VectorStore(embeddings, index), M3Retriever(index=index, encoder=encoder, k=10)
    return [
        ("LlamaIndex aget_query_embedding", M3Embedding(encoder=encoder).aget_query_embedding, list),
        ("LangChain aembed_query", embeddings.aembed_query, list),
        ("LangChain M3Retriever.ainvoke", retriever.ainvoke, document_numbers),
        ("LangChain M3VectorStore.as_retriever.ainvoke", store.as_retriever().ainvoke, document_numbers),
        ("LlamaIndex M3Retriever.aretrieve", llama_index.M3Retriever(index, encoder, 10).aretrieve, node_numbers),
        ("LlamaIndex M3VectorStore, hybrid, aretrieve", hybrid(index, encoder).aretrieve, node_numbers),
    ]


def hybrid(index: MemoryIndex, encoder: M3Encoder) -> BaseRetriever:
    """Make LlamaIndex's own retriever over our store."""
    store = llama_index.M3VectorStore(index, encoder)
    vector_index = VectorStoreIndex.from_vector_store(store, embed_model=M3Embedding(encoder=encoder))
    return vector_index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=10)


def document_numbers(documents: list[Document]) -> list[float]:
    """Convert documents to their ids as numbers, in order."""
    return [float(str(document.id)) for document in documents]


def node_numbers(nodes: list[NodeWithScore]) -> list[float]:
    return [float(each.node.node_id) for each in nodes]


async def measure(
    ask: AsyncQuery, numbers: Callable[[Any], list[float]], queries: list[str], rounds: int
) -> tuple[float, float, float, float]:
    """Measure sequential seconds, concurrent seconds, their median ratio, and the largest difference of results."""
    await ask(queries[0])
    slow, fast, difference = [], [], 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        sequential = [await ask(query) for query in queries]
        middle = time.perf_counter()
        concurrent = await asyncio.gather(*map(ask, queries))
        end = time.perf_counter()
        slow.append(middle - start)
        fast.append(end - middle)
        pairs = zip(map(numbers, sequential), map(numbers, concurrent), strict=True)
        difference = max(difference, *(float(np.abs(np.subtract(a, b)).max()) for a, b in pairs))
    return median(slow), median(fast), median_ratio(slow, fast), difference


def print_row(name: str, slow: float, fast: float, ratio: float, difference: float) -> None:
    print(f"{name:44}{slow:14.3f}{fast:14.3f}{ratio:8.2f}{difference:20.1e}", flush=True)


if __name__ == "__main__":
    main()

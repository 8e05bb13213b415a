"""Nudge the vectors of a LangChain store with logged queries, offline, and evaluate it on new ones.

python examples/nudge_langchain.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from m3_integrations import Query
from m3_integrations.data import read_beir
from m3_integrations.evaluation import evaluate
from m3_integrations.langchain import M3Embeddings, nudge_store

WORLD = Path(__file__).parent / "world"


def main() -> None:
    train, dev, test = (read_beir(WORLD, split) for split in ("train", "dev", "test"))
    store = InMemoryVectorStore(M3Embeddings())  # or an M3VectorStore with any index
    store.add_documents([Document(id=passage.id, page_content=passage.text) for passage in train.passages])
    show("before", store, test.queries)

    result = nudge_store(store, train.queries, dev.queries)
    show("after", store, test.queries)
    # result.revert() restores the vectors
    print(f"{result.nudged.moved} of {len(result.ids)} documents moved by method {result.nudged.method!r}")


def show(when: str, store: VectorStore, queries: Sequence[Query]) -> None:
    results = asyncio.run(search(store, queries))
    run = {query.id: [each.id or "" for each in documents] for query, documents in zip(queries, results, strict=True)}
    metrics = evaluate(run, queries, ["recall@1", "ndcg@10"])
    print(f"{when:6}  recall@1 {metrics['recall@1']:.3f}  nDCG@10 {metrics['ndcg@10']:.3f}")


async def search(store: VectorStore, queries: Sequence[Query]) -> list[list[Document]]:
    # Concurrent queries are micro-batched into few forward passes.
    return await asyncio.gather(*(store.asimilarity_search(query.text, k=10) for query in queries))


if __name__ == "__main__":
    main()

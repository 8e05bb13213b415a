"""Move a LangChain store's vectors towards the questions that people ask, offline, and count what new ones find.

python examples/nudge_langchain.py
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from m3_integrations.core.metrics import evaluate
from m3_integrations.evaluation.beir import read_beir
from m3_integrations.langchain import M3Embeddings, nudge_store

WORLD = Path(__file__).parent / "world"


def main() -> None:
    train, dev, test = (read_beir(WORLD, split) for split in ("train", "dev", "test"))
    store = InMemoryVectorStore(M3Embeddings())  # or an M3VectorStore, over any of its indexes
    store.add_documents([Document(id=passage.id, page_content=passage.text) for passage in train.passages])
    show("before", store, test.queries)

    done = nudge_store(store, train.queries, dev.queries)
    show("after", store, test.queries)
    print(
        f"{done.nudged.moved} of {len(done.ids)} documents moved by method {done.nudged.method!r}"
    )  # done.revert() takes it back


def show(when: str, store: VectorStore, queries) -> None:
    found = asyncio.run(find(store, queries))
    run = {query.id: [each.id for each in documents] for query, documents in zip(queries, found, strict=True)}
    figures = evaluate(run, queries, ["recall@1", "ndcg@10"])
    print(f"{when:6}  recall@1 {figures['recall@1']:.3f}  nDCG@10 {figures['ndcg@10']:.3f}")


async def find(store, queries):
    # Questions that are awaited together share forward passes.
    return await asyncio.gather(*(store.asimilarity_search(query.text, k=10) for query in queries))


if __name__ == "__main__":
    main()

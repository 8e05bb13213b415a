"""Nudge the vectors of a LlamaIndex index with logged queries, offline, and evaluate it on new ones.

python examples/nudge_llama_index.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from m3_integrations import Query
from m3_integrations.data import read_beir
from m3_integrations.evaluation import evaluate
from m3_integrations.llama_index import M3Embedding, NudgeFinetuneEngine

WORLD = Path(__file__).parent / "world"
QUESTION = "biggest aircraft ever, destroyed at Hostomel"


def main() -> None:
    train, dev, test = (read_beir(WORLD, split) for split in ("train", "dev", "test"))
    model = M3Embedding()  # or any other LlamaIndex embedding
    nodes = [TextNode(id_=passage.id, text=passage.text) for passage in train.passages]
    index = VectorStoreIndex(nodes, embed_model=model)
    show("before", index, test.queries)

    engine = NudgeFinetuneEngine(train, model, dev)  # or with an EmbeddingQAFinetuneDataset, or its path
    engine.finetune()
    engine.write(index)
    show("after", index, test.queries)
    print(f"{engine.result.moved} of {len(nodes)} passages moved by a chord of at most √{engine.result.gamma:.3f}")

    # A new index with the nudged model has the moved vectors, too.
    rebuilt = VectorStoreIndex(nodes, embed_model=engine.get_finetuned_model())
    for each in (index, rebuilt):
        (best,) = each.as_retriever(similarity_top_k=1).retrieve(QUESTION)
        print(f"{best.score:.3f}  {best.node.node_id}  for  {QUESTION}")


def show(when: str, index: VectorStoreIndex, queries: Sequence[Query]) -> None:
    results = asyncio.run(retrieve(index.as_retriever(similarity_top_k=10), queries))
    run = {query.id: [each.node.node_id for each in nodes] for query, nodes in zip(queries, results, strict=True)}
    metrics = evaluate(run, queries, ["recall@1", "ndcg@10"])
    print(f"{when:6}  recall@1 {metrics['recall@1']:.3f}  nDCG@10 {metrics['ndcg@10']:.3f}")


async def retrieve(retriever: BaseRetriever, queries: Sequence[Query]) -> list[list[NodeWithScore]]:
    # Concurrent queries are micro-batched into few forward passes.
    return await asyncio.gather(*(retriever.aretrieve(query.text) for query in queries))


if __name__ == "__main__":
    main()

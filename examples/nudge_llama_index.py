"""Move a LlamaIndex index's vectors towards the questions that people ask, offline, and count what new ones find.

python examples/nudge_llama_index.py
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from m3_integrations.core.metrics import evaluate
from m3_integrations.evaluation.beir import read_beir
from m3_integrations.llama_index import M3Embedding, NudgeFinetuneEngine

WORLD = Path(__file__).parent / "world"
QUESTION = "biggest aircraft ever, destroyed at Hostomel"


def main() -> None:
    train, dev, test = (read_beir(WORLD, split) for split in ("train", "dev", "test"))
    model = M3Embedding()  # or any other embedding of LlamaIndex
    nodes = [TextNode(id_=passage.id, text=passage.text) for passage in train.passages]
    index = VectorStoreIndex(nodes, embed_model=model)
    show("before", index, test.queries)

    engine = NudgeFinetuneEngine(train, model, dev)  # or an EmbeddingQAFinetuneDataset, or the path of one
    engine.finetune()
    engine.write(index)
    show("after", index, test.queries)
    print(f"{engine.result.moved} of {len(nodes)} passages moved, none by a chord above √{engine.result.gamma:.3f}")

    # In the place of `model`, in an index that is built anew, the finetuned one gives the moved vectors too.
    anew = VectorStoreIndex(nodes, embed_model=engine.get_finetuned_model())
    for each in (index, anew):
        (best,) = each.as_retriever(similarity_top_k=1).retrieve(QUESTION)
        print(f"{best.score:.3f}  {best.node.node_id}  for  {QUESTION}")


def show(when: str, index: VectorStoreIndex, queries) -> None:
    found = asyncio.run(find(index.as_retriever(similarity_top_k=10), queries))
    run = {query.id: [each.node.node_id for each in nodes] for query, nodes in zip(queries, found, strict=True)}
    figures = evaluate(run, queries, ["recall@1", "ndcg@10"])
    print(f"{when:6}  recall@1 {figures['recall@1']:.3f}  nDCG@10 {figures['ndcg@10']:.3f}")


async def find(retriever, queries):
    # Questions that are awaited together share forward passes.
    return await asyncio.gather(*(retriever.aretrieve(query.text) for query in queries))


if __name__ == "__main__":
    main()

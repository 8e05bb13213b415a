"""Nudge an index by the questions that people asked of it, offline, and write what that did as a page with pictures.

python examples/nudge_a_corpus.py [PAGE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from m3_integrations import M3Encoder, MemoryIndex, Nudger, Retriever, ingest
from m3_integrations.core.metrics import evaluate
from m3_integrations.evaluation.beir import read_beir

WORLD = Path(__file__).parent / "world"


def main(page: str = "nudge.html") -> None:
    train, dev, test = (read_beir(WORLD, split) for split in ("train", "dev", "test"))
    encoder, index = M3Encoder.from_pretrained(), MemoryIndex()  # or a LocalIndex, in a folder
    ingest(encoder, index, train.passages)
    show("before", Retriever(encoder, index), test.queries)

    nudger = Nudger(encoder, index)
    report = nudger.fit(train.queries, dev.queries, test=test.queries, modes=encoder.modes)
    show("after", Retriever(encoder, index, nudger.plan), test.queries)  # the plan: the weights that go with it
    print(report)
    report.render(page, index)
    print(f"in pictures: {page}")

    nudger.revert()  # every vector is as it was encoded, to the bit
    show("back", Retriever(encoder, index), test.queries)


def show(when: str, retriever: Retriever, queries) -> None:
    found = retriever.retrieve_many([query.text for query in queries], k=10)
    run = {query.id: [match.passage.id for match in matches] for query, matches in zip(queries, found, strict=True)}
    figures = evaluate(run, queries, ["recall@1", "ndcg@10"])
    print(f"{when:6}  recall@1 {figures['recall@1']:.3f}  nDCG@10 {figures['ndcg@10']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Nudge an index with logged queries, offline, and write the report as an HTML page with charts.

python examples/nudge_a_corpus.py [PAGE]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from m3_integrations import M3Encoder, MemoryIndex, Nudger, Query, Retriever, ingest
from m3_integrations.data import read_beir
from m3_integrations.evaluation import evaluate

WORLD = Path(__file__).parent / "world"


def main(page: str = "nudge.html") -> None:
    train, dev, test = (read_beir(WORLD, split) for split in ("train", "dev", "test"))
    encoder, index = M3Encoder.from_pretrained(), MemoryIndex()  # or a LocalIndex in a folder
    ingest(encoder, index, train.passages)
    show("before", Retriever(encoder, index), test.queries)

    nudger = Nudger(encoder, index)
    report = nudger.fit(train.queries, dev.queries, test=test.queries, modes=encoder.modes)
    show("after", Retriever(encoder, index, nudger.plan), test.queries)  # the plan has the tuned weights
    print(report)
    report.render(page, index)
    print(f"report with charts: {page}")

    nudger.revert()  # restores every vector bit for bit
    show("reverted", Retriever(encoder, index), test.queries)


def show(when: str, retriever: Retriever, queries: Sequence[Query]) -> None:
    results = retriever.retrieve_many([query.text for query in queries], k=10)
    run = {query.id: [match.passage.id for match in matches] for query, matches in zip(queries, results, strict=True)}
    metrics = evaluate(run, queries, ["recall@1", "ndcg@10"])
    print(f"{when:8}  recall@1 {metrics['recall@1']:.3f}  nDCG@10 {metrics['ndcg@10']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])

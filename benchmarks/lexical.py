"""BM25 (bm25s) compared with the sparse mode and with all modes together: quality and search time.

python benchmarks/lexical.py DATA/scifact DATA/xquad/{en,de} [--model m3-mini] [--dtype float32] [--rounds 5]

BM25 uses bm25s's tokenizer without English stop words, which does not segment Chinese, Japanese and Thai. Each round
searches the best 100 passages of every question with both, one question at a time. Prints nDCG@10, median milliseconds
per question and the median ratio of the rounds, without the time to tokenize and encode a question.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from statistics import median

import bm25s
from timing import median_ratio, side_by_side

from m3_integrations import LocalIndex, M3Encoder, Passage, Query, ingest
from m3_integrations.data import read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.evaluation import default_plans, evaluate, evaluate_plans

METRIC, TOP = "ndcg@10", 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="BEIR folders")
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoder = M3Encoder.from_pretrained(options.model, dtype=options.dtype)
    print(f"{encoder!r}; {METRIC}; milliseconds per question; ratio: time of BM25 / time of sparse")
    print(f"{'':24}{'BM25':>8}{'sparse':>8}{'all':>8}{'BM25 ms':>10}{'sparse ms':>10}{'ratio':>8}")
    for folder in options.folders:
        row(encoder, folder, options.rounds)


def row(encoder: M3Encoder, folder: Path, rounds: int) -> None:
    collection = read_beir(folder, "test")
    with tempfile.TemporaryDirectory() as path, LocalIndex.open(path, encoder) as index:
        ingest(encoder, index, collection.passages)
        plans = {name: plan for name, plan in default_plans(encoder.weights).items() if name in ("sparse", "all")}
        metrics = evaluate_plans(encoder, index, collection.queries, plans, [METRIC])
        bm25 = Bm25(collection.passages)
        baseline = evaluate({query.id: bm25.ids(query) for query in collection.queries}, collection.queries, [METRIC])
        words = [bm25.words(query) for query in collection.queries]
        encoded = encoder.encode_queries([query.text for query in collection.queries], ("sparse",))
        singles = [encoded.take([i]) for i in range(len(words))]
        calls = {
            "BM25": lambda: [bm25.search(each) for each in words],
            "sparse": lambda: [index.search("sparse", each, TOP) for each in singles],
        }
        slow, fast = (seconds for seconds, _ in side_by_side(calls, rounds).values())
    print(
        f"{'/'.join(folder.parts[-2:]):24}{baseline[METRIC]:8.4f}{metrics['sparse'][METRIC]:8.4f}{metrics['all'][METRIC]:8.4f}"
        f"{1000 * median(slow) / len(words):10.3f}{1000 * median(fast) / len(words):10.3f}"
        f"{median_ratio(slow, fast):8.2f}",
        flush=True,
    )


class Bm25:
    """BM25 search over passages."""

    def __init__(self, passages: list[Passage]) -> None:
        self._ids = [passage.id for passage in passages]
        self._index = bm25s.BM25()
        self._index.index(
            bm25s.tokenize([passage.text for passage in passages], show_progress=False), show_progress=False
        )

    def words(self, query: Query) -> list[list[str]]:
        return bm25s.tokenize([query.text], return_ids=False, show_progress=False)

    def search(self, words: list[list[str]]) -> list[int]:
        best, _ = self._index.retrieve(words, k=min(TOP, len(self._ids)), show_progress=False)
        return best[0].tolist()

    def ids(self, query: Query) -> list[str]:
        return [self._ids[i] for i in self.search(self.words(query))]


if __name__ == "__main__":
    main()

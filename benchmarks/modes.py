"""Retrieval quality of each mode and of all modes together: recall@1 and nDCG@10 over BEIR folders.

python benchmarks/modes.py DATA/xquad/{ar,de,en,es,hi,zh} [--model m3-mini] [--split test] [--qrels qrels]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np

from m3_integrations import M3Encoder, MemoryIndex, ingest
from m3_integrations.data import read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.evaluation import default_plans, evaluate_plans

METRICS = ("recall@1", "ndcg@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="BEIR folders")
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--qrels", default="qrels")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoder = M3Encoder.from_pretrained(options.model)
    plans = default_plans(encoder.weights)
    print(f"{encoder!r}, weights {dict(encoder.weights)}")
    print(f"{'':24}" + "".join(f"{plan:>18}" for plan in plans) + f"   ({' / '.join(METRICS)})")
    rows = []
    for folder in options.folders:
        collection = read_beir(folder, options.split, options.qrels)
        index = MemoryIndex()
        ingest(encoder, index, collection.passages)
        table = evaluate_plans(encoder, index, collection.queries, plans, METRICS)
        rows.append([[table[plan][metric] for metric in METRICS] for plan in plans])
        print_row("/".join(folder.parts[-2:]), rows[-1])
    print_row("mean", np.mean(rows, axis=0).tolist())


def print_row(name: str, row: list[list[float]]) -> None:
    print(f"{name:24}" + "".join(f"{recall:11.3f} /{ndcg:.3f}" for recall, ndcg in row), flush=True)


if __name__ == "__main__":
    main()

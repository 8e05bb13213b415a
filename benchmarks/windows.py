"""Quality on texts beyond a model's length limit, truncated and in overlapping windows: nDCG@10 by mode.

python benchmarks/windows.py DATA/long_qmsum_en [--overlap 64] [--model m3-mini] [--dtype float32]
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

from m3_integrations import M3Encoder, MemoryIndex
from m3_integrations.data import read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.evaluation import default_plans, evaluate_plans

METRIC = "ndcg@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a BEIR folder")
    parser.add_argument("--overlap", type=int, nargs="+", default=[64], help="tokens shared by adjacent windows")
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    collection = read_beir(options.folder, options.split)
    texts = [passage.text for passage in collection.passages]
    for overlap in (None, *options.overlap):
        start = time.perf_counter()
        encoder = M3Encoder.from_pretrained(options.model, dtype=options.dtype, window_overlap=overlap)
        if overlap is None:
            counts = sorted(encoder.token_count(texts))
            print(f"{encoder!r}; {len(texts)} passages, median {counts[len(counts) // 2]} tokens; {METRIC}")
        with MemoryIndex() as index:
            index.add(collection.passages, encoder.encode_passages(texts))
            metrics = evaluate_plans(encoder, index, collection.queries, default_plans(encoder.weights), [METRIC])
        figures = "  ".join(f"{plan} {values[METRIC]:.4f}" for plan, values in metrics.items())
        name = "truncated" if overlap is None else f"windows, overlap {overlap} tokens"
        print(f"{name:30} {figures}   {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()

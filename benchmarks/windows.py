"""What texts longer than a model reads are worth: cut, and read in windows; nDCG@10 by mode.

python benchmarks/windows.py DATA/long_qmsum_en [--overlap 64] [--model m3-mini] [--dtype float32]
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

from m3_integrations import M3Encoder, MemoryIndex
from m3_integrations.core.errors import TextsTruncated
from m3_integrations.evaluation.beir import read_beir
from m3_integrations.evaluation.judging import judge, plans_of

METRIC = "ndcg@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a BEIR folder")
    parser.add_argument("--overlap", type=int, nargs="+", default=[64], help="tokens that two windows share")
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    collection = read_beir(asked.folder, asked.split)
    texts = [passage.text for passage in collection.passages]
    for overlap in (None, *asked.overlap):
        start = time.perf_counter()
        encoder = M3Encoder.from_pretrained(asked.model, dtype=asked.dtype, window_overlap=overlap)
        if overlap is None:
            counts = sorted(encoder.token_count(texts))
            print(f"{encoder!r}; {len(texts)} passages, half of them over {counts[len(counts) // 2]} tokens; {METRIC}")
        with MemoryIndex() as index:
            index.add(collection.passages, encoder.encode_passages(texts))
            found = judge(encoder, index, collection.queries, plans_of(encoder.weights), [METRIC])
        figures = "  ".join(f"{plan} {values[METRIC]:.4f}" for plan, values in found.items())
        name = "cut" if overlap is None else f"windows that share {overlap} tokens"
        print(f"{name:30} {figures}   {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()

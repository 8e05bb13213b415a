"""Quality of encoders in reduced precision: nDCG@10 by mode and backend, and the difference from float32.

python benchmarks/reduced_precision.py DATA/scifact DATA/xquad/{ar,de,en,es,hi,zh} [--engines torch:bfloat16 onnx:int8]

Search is exact (MemoryIndex), over the same passages and questions for every backend.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from m3_integrations import M3Encoder, MemoryIndex, ingest
from m3_integrations.data import JudgedCollection, read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.evaluation import default_plans, evaluate_plans

REFERENCE = "torch:float32"
ENGINES = ("torch:bfloat16", "openvino:bfloat16", "onnx:int8")
METRIC = "ndcg@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="BEIR folders")
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), help="backend:dtype")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoders = {engine: make_encoder(options.model, engine) for engine in (REFERENCE, *options.engines)}
    plans = default_plans(encoders[REFERENCE].weights)
    print(f"{options.model}, {METRIC}\n{'':40}" + "".join(f"{plan:>20}" for plan in plans))
    differences: dict[str, list[list[float]]] = {engine: [] for engine in options.engines}
    for folder in options.folders:
        collection, name = read_beir(folder), "/".join(folder.parts[-2:])
        reference = ndcg(encoders[REFERENCE], collection, plans)
        print(f"{name:20}{REFERENCE:20}" + "".join(f"{value:20.4f}" for value in reference), flush=True)
        for engine in options.engines:
            reduced = ndcg(encoders[engine], collection, plans)
            differences[engine].append([after - before for after, before in zip(reduced, reference, strict=True)])
            print(f"{'':20}{engine:20}" + row(reduced, differences[engine][-1]), flush=True)
    for engine, rows in differences.items():
        worst = np.min(rows, axis=0)
        print(f"{'mean, worst':20}{engine:20}" + row(np.mean(rows, axis=0).tolist(), worst.tolist()), flush=True)


def make_encoder(model: str, engine: str) -> M3Encoder:
    backend, dtype = engine.split(":")
    return M3Encoder.from_pretrained(model, backend=backend, dtype=dtype)


def ndcg(encoder: M3Encoder, collection: JudgedCollection, plans: Mapping[str, object]) -> list[float]:
    """Compute nDCG@10 of each plan."""
    with MemoryIndex() as index:
        ingest(encoder, index, collection.passages)
        table = evaluate_plans(encoder, index, collection.queries, plans, (METRIC,))
    return [table[plan][METRIC] for plan in plans]


def row(values: list[float], differences: list[float]) -> str:
    return "".join(f"{value:11.4f} {difference:+8.4f}" for value, difference in zip(values, differences, strict=True))


if __name__ == "__main__":
    main()

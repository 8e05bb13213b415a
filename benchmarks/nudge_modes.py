"""Gain of NUDGE in each mode and in all modes: nDCG@10 on test questions, tuned on train and dev.

    python benchmarks/nudge_modes.py DATA scifact tydiqa/ru [--model m3-mini] [--cache FOLDER] [--modes all sparse]
                                     [--backend openvino --dtype bfloat16]

DATA holds BEIR folders; `qrels_random`, whose splits share their passages, is preferred if present. --cache: folder for
the indexes, reused by the next run. Each nudge is reverted before the next.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from m3_integrations import LocalIndex, M3Encoder, Nudger, Query, Retriever, SearchPlan, ingest
from m3_integrations.core import MODES, Encoded, Mode
from m3_integrations.data import read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.evaluation import bootstrap_interval, evaluate

MODE_SETS: dict[str, tuple[Mode, ...]] = {**{mode: (mode,) for mode in MODES}, "all": MODES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--modes", nargs="+", choices=list(MODE_SETS), default=list(MODE_SETS))
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoder = M3Encoder.from_pretrained(options.model, backend=options.backend, dtype=options.dtype)
    print(f"{encoder!r}; nDCG@10 on test, 95 % interval of the gain by bootstrap over the questions")
    print(f"{'':16}{'mode':14}{'before':>8}{'after':>8}{'gain':>9}   interval          seconds  nudged modes")
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names:
            run(encoder, options.data / name, (options.cache or Path(scratch)) / name, options.modes)


def run(encoder: M3Encoder, folder: Path, index_folder: Path, names: list[str]) -> None:
    qrels = "qrels_random" if (folder / "qrels_random").is_dir() else "qrels"
    train, dev, test = (read_beir(folder, split, qrels) for split in ("train", "dev", "test"))
    encoded_queries = encoder.encode_queries([query.text for query in test.queries])
    with LocalIndex.open(index_folder, encoder) as index:
        ingest(encoder, index, test.passages)
        nudger = Nudger(encoder, index)
        nudger.revert()
        for name in names:
            modes = MODE_SETS[name]
            weights = {mode: encoder.weights[mode] if len(modes) > 1 else 1.0 for mode in modes}
            propose = modes if name in ("dense", "sparse") else SearchPlan().propose
            before = ndcg_per_query(encoder, index, test.queries, encoded_queries, SearchPlan(propose, weights=weights))
            start = time.perf_counter()
            report = nudger.fit(train.queries, dev.queries, modes=modes)
            seconds = time.perf_counter() - start
            plan = report.plan if report.moved else SearchPlan(propose, weights=weights)
            after = ndcg_per_query(encoder, index, test.queries, encoded_queries, plan)
            nudger.revert()
            low, high = bootstrap_interval(after - before)
            nudged = ", ".join(f"{mode} {move.method} γ={move.gamma:.3g}" for mode, move in report.moves.items())
            print(
                f"{folder.parent.name if len(folder.name) == 2 else '':>8}/{folder.name:7}{name:14}"
                f"{before.mean():8.4f}{after.mean():8.4f}{(after - before).mean():+9.4f}   "
                f"[{low:+.4f}, {high:+.4f}] {seconds:8.1f}  {nudged or 'none: no significant gain'}",
                flush=True,
            )


def ndcg_per_query(
    encoder: M3Encoder, index: LocalIndex, queries: list[Query], encoded: Encoded, plan: SearchPlan
) -> np.ndarray:
    """Compute nDCG@10 of each query, shape (queries,)."""
    results = Retriever(encoder, index, plan).retrieve_encoded(encoded, 10)
    ranked = [[match.passage.id for match in matches] for matches in results]
    return np.array(
        [evaluate({q.id: ids}, [q], ["ndcg@10"])["ndcg@10"] for q, ids in zip(queries, ranked, strict=True)]
    )


if __name__ == "__main__":
    main()

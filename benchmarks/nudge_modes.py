"""What a nudge gains in each mode and in all: nDCG@10 on test questions, all chosen on train and dev alone.

    python benchmarks/nudge_modes.py DATA scifact tydiqa/ru [--model m3-mini] [--keep FOLDER] [--modes all sparse]
                                     [--backend openvino --dtype bfloat16]

DATA holds BEIR folders; where one has `qrels_random`, it is taken: its splits share their passages. --keep: where the
indexes are kept, so that a second run need not encode the passages again. Each nudge is put back before the next.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from m3_integrations import LocalIndex, M3Encoder, Nudger, Query, Retriever, SearchPlan, ingest
from m3_integrations.core.encoded import MODES, Encoded, Mode
from m3_integrations.core.errors import TextsTruncated
from m3_integrations.core.metrics import evaluate
from m3_integrations.evaluation.beir import read_beir
from m3_integrations.nudging.trial import bootstrap

WAYS: dict[str, tuple[Mode, ...]] = {**{mode: (mode,) for mode in MODES}, "all": MODES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--modes", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoder = M3Encoder.from_pretrained(options.model, backend=options.backend, dtype=options.dtype)
    print(f"{encoder!r}; nDCG@10 on test, 95 % interval of the gain by bootstrap over the questions")
    print(f"{'':16}{'mode':14}{'before':>8}{'after':>8}{'gain':>9}   interval          seconds  what moved")
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names:
            run(encoder, options.data / name, (options.keep or Path(scratch)) / name, options.modes)


def run(encoder: M3Encoder, folder: Path, kept: Path, ways: list[str]) -> None:
    qrels = "qrels_random" if (folder / "qrels_random").is_dir() else "qrels"
    train, dev, test = (read_beir(folder, split, qrels) for split in ("train", "dev", "test"))
    asked = encoder.encode_queries([query.text for query in test.queries])
    with LocalIndex.open(kept, encoder) as index:
        ingest(encoder, index, test.passages)
        nudger = Nudger(encoder, index)
        nudger.revert()
        for way in ways:
            modes = WAYS[way]
            weights = {mode: encoder.weights[mode] if len(modes) > 1 else 1.0 for mode in modes}
            propose = modes if way in ("dense", "sparse") else SearchPlan().propose
            before = scores(encoder, index, test.queries, asked, SearchPlan(propose, weights=weights))
            began = time.perf_counter()
            report = nudger.fit(train.queries, dev.queries, modes=modes)
            seconds = time.perf_counter() - began
            plan = report.plan if report.moved else SearchPlan(propose, weights=weights)
            after = scores(encoder, index, test.queries, asked, plan)
            nudger.revert()
            low, high = bootstrap(after - before)
            moved = ", ".join(f"{mode} {move.method} γ={move.gamma:.3g}" for mode, move in report.moves.items())
            print(
                f"{folder.parent.name if len(folder.name) == 2 else '':>8}/{folder.name:7}{way:14}"
                f"{before.mean():8.4f}{after.mean():8.4f}{(after - before).mean():+9.4f}   "
                f"[{low:+.4f}, {high:+.4f}] {seconds:8.1f}  {moved or 'nothing: no gain stood out from chance'}",
                flush=True,
            )


def scores(encoder: M3Encoder, index: LocalIndex, queries: list[Query], asked: Encoded, plan: SearchPlan) -> np.ndarray:
    """(queries,): nDCG@10 of each."""
    found = Retriever(encoder, index, plan).retrieve_encoded(asked, 10)
    ranked = [[match.passage.id for match in matches] for matches in found]
    return np.array(
        [evaluate({q.id: ids}, [q], ["ndcg@10"])["ndcg@10"] for q, ids in zip(queries, ranked, strict=True)]
    )


if __name__ == "__main__":
    main()

"""Multi-vectors stored as float32, int8 and int4: bytes on disk, nDCG@10, time to score candidates.

python benchmarks/precision.py DATA/scifact DATA/xquad/{ar,de,en,es,hi,zh} [--model m3-mini] [--cache FOLDER]

DATA/...: BEIR folders. Dense and sparse search generate 100 candidates each, which are ranked by multi-vector scores
alone and by all modes with the encoder's weights. Bytes are those of the multi-vector segments; milliseconds are the
median to score a query's candidates. --cache: folder for encoded passages and queries, reused by the next run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from m3_integrations import Encoded, LocalIndex, M3Encoder, Passage, Query
from m3_integrations.core import MODES, Array, Mode
from m3_integrations.data import read_beir
from m3_integrations.evaluation import evaluate
from m3_integrations.index.quantization import PRECISIONS

CANDIDATES, BATCH = 100, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    encoder = M3Encoder.from_pretrained(options.model)
    print(f"{encoder!r}, each: value (difference from float32)")
    print(f"{'':16}{'precision':10}{'MiB':>8}{'smaller':>9}{'multi-vector':>19}{'all modes':>19}{'ms':>7}")
    with tempfile.TemporaryDirectory() as temporary:
        for folder in options.folders:
            measure(encoder, folder, Path(options.cache or temporary), Path(temporary))


def measure(encoder: M3Encoder, folder: Path, cache: Path, temporary: Path) -> None:
    collection, name = read_beir(folder), f"{folder.parent.name}-{folder.name}"
    queries_as_passages = [Passage(query.id, query.text) for query in collection.queries]
    with (
        open_encoded(cache / name, encoder, collection.passages, queries=False) as source,
        open_encoded(cache / f"{name}-queries", encoder, queries_as_passages, queries=True) as questions,
    ):
        queries = questions.vectors([query.id for query in collection.queries])
        first: list[float] = []
        for precision in PRECISIONS:
            path = temporary / f"{name}-{precision}"
            with LocalIndex.open(path, precision={"multi_vector": precision}) as index:
                for start in range(0, len(ids := source.ids()), BATCH):
                    part = ids[start : start + BATCH]
                    index.add(source.passages(part), source.vectors(part))
                size = sum(each.stat().st_size for each in path.glob("multi_vector-*.segment")) / 2**20
                multi_vector, all_modes, seconds = evaluate_index(index, queries, collection.queries, encoder.weights)
            first = first or [size, multi_vector, all_modes]
            quality = [
                f"{now:.4f} ({now - then:+.4f})" for now, then in zip((multi_vector, all_modes), first[1:], strict=True)
            ]
            row = f"{name:16.16}{precision:10}{size:8.0f}{first[0] / size:8.2f}x"
            print(f"{row}{quality[0]:>19}{quality[1]:>19}{1000 * seconds:7.1f}", flush=True)


def open_encoded(path: Path, encoder: M3Encoder, passages: Sequence[Passage], *, queries: bool) -> LocalIndex:
    """Open an index of all modes in float32, encoding the passages if it is empty."""
    index = LocalIndex.open(path, precision={"multi_vector": "float32"})
    encode = encoder.encode_queries if queries else encoder.encode_passages
    if len(index) == 0:
        for start in range(0, len(passages), BATCH):
            batch = passages[start : start + BATCH]
            index.add(batch, encode([passage.text for passage in batch]))
    return index


def evaluate_index(
    index: LocalIndex, queries: Encoded, questions: Sequence[Query], weights: Mapping[Mode, float]
) -> tuple[float, float, float]:
    """Compute nDCG@10 by multi-vector scores and by all modes, and the median seconds of multi-vector scoring."""
    multi_vector, all_modes, seconds = {}, {}, []
    for i, question in enumerate(questions):
        query = queries.take([i])
        hits_by_mode = [index.search(mode, query, CANDIDATES)[0] for mode in ("dense", "sparse")]
        ids = sorted({hit.id for hits in hits_by_mode for hit in hits})
        scores = {mode: index.score(mode, query, [ids])[0] for mode in MODES if mode != "multi_vector"}
        start = time.perf_counter()
        (scores["multi_vector"],) = index.score("multi_vector", query, [ids])
        seconds.append(time.perf_counter() - start)
        multi_vector[question.id] = top_ids(ids, scores["multi_vector"])
        all_modes[question.id] = top_ids(ids, sum((weights[mode] * scores[mode] for mode in MODES), np.zeros(len(ids))))
    quality = [evaluate(run, questions, ["ndcg@10"])["ndcg@10"] for run in (multi_vector, all_modes)]
    return quality[0], quality[1], median(seconds)


def top_ids(ids: Sequence[str], scores: Array) -> list[str]:
    return [ids[i] for i in np.argsort(-scores, kind="stable")[:10]]


if __name__ == "__main__":
    main()

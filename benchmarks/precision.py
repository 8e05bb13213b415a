"""Multi-vectors kept as float32, int8 and int4: bytes on disk, nDCG@10, milliseconds to score the candidates.

python benchmarks/precision.py DATA/scifact DATA/xquad/{ar,de,en,es,hi,zh} [--model m3-mini] [--keep FOLDER]

DATA/...: BEIR folders. Dense and sparse search propose 100 passages each, which are ranked by late interaction alone
and by all modes in the encoder's weights. --keep: where encoded passages and questions stay, for the next run to start
from. Bytes are those of the multi-vector segments; milliseconds are the median of a question's late interaction.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from m3_integrations import Encoded, LocalIndex, M3Encoder, Passage
from m3_integrations.core.encoded import MODES, Array, Mode
from m3_integrations.core.metrics import evaluate
from m3_integrations.core.texts import Query
from m3_integrations.evaluation.beir import read_beir
from m3_integrations.index.codes import PRECISIONS
from m3_integrations.index.copying import copy_passages

CANDIDATES, BATCH = 100, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    encoder = M3Encoder.from_pretrained(options.model)
    print(f"{encoder!r}, each: value (difference from float32)")
    print(f"{'':16}{'precision':10}{'MiB':>8}{'smaller':>9}{'late alone':>19}{'all modes':>19}{'ms':>7}")
    with tempfile.TemporaryDirectory() as temporary:
        for folder in options.folders:
            measure(encoder, folder, Path(options.keep or temporary), Path(temporary))


def measure(encoder: M3Encoder, folder: Path, keep: Path, temporary: Path) -> None:
    collection, name = read_beir(folder), f"{folder.parent.name}-{folder.name}"
    asked = [Passage(query.id, query.text) for query in collection.queries]
    with (
        filled(keep / name, encoder, collection.passages, queries=False) as source,
        filled(keep / f"{name}-queries", encoder, asked, queries=True) as questions,
    ):
        queries = questions.vectors([query.id for query in collection.queries])
        first: list[float] = []
        for precision in PRECISIONS:
            path = temporary / f"{name}-{precision}"
            with LocalIndex.open(path, precision={"multi_vector": precision}) as index:
                copy_passages(source, index)
                size = sum(each.stat().st_size for each in path.glob("multi_vector-*.segment")) / 2**20
                late, fused, seconds = judged(index, queries, collection.queries, encoder.weights)
            first = first or [size, late, fused]
            quality = [f"{now:.4f} ({now - then:+.4f})" for now, then in zip((late, fused), first[1:], strict=True)]
            row = f"{name:16.16}{precision:10}{size:8.0f}{first[0] / size:8.2f}x"
            print(f"{row}{quality[0]:>19}{quality[1]:>19}{1000 * seconds:7.1f}", flush=True)


def filled(path: Path, encoder: M3Encoder, passages: Sequence[Passage], *, queries: bool) -> LocalIndex:
    """An index of all modes as they were encoded; one that is there is taken as it is."""
    index = LocalIndex.open(path, precision={"multi_vector": "float32"})
    encode = encoder.encode_queries if queries else encoder.encode_passages
    if len(index) == 0:
        for start in range(0, len(passages), BATCH):
            some = passages[start : start + BATCH]
            index.add(some, encode([passage.text for passage in some]))
    return index


def judged(
    index: LocalIndex, queries: Encoded, questions: Sequence[Query], weights: Mapping[Mode, float]
) -> tuple[float, float, float]:
    """nDCG@10 by late interaction alone and by all modes, and the median seconds of late interaction."""
    late, fused, seconds = {}, {}, []
    for i, question in enumerate(questions):
        query = queries.take([i])
        found = [index.search(mode, query, CANDIDATES)[0] for mode in ("dense", "sparse")]
        ids = sorted({hit.id for hits in found for hit in hits})
        scores = {mode: index.score(mode, query, [ids])[0] for mode in MODES if mode != "multi_vector"}
        start = time.perf_counter()
        (scores["multi_vector"],) = index.score("multi_vector", query, [ids])
        seconds.append(time.perf_counter() - start)
        late[question.id] = best(ids, scores["multi_vector"])
        fused[question.id] = best(ids, sum((weights[mode] * scores[mode] for mode in MODES), np.zeros(len(ids))))
    quality = [evaluate(run, questions, ["ndcg@10"])["ndcg@10"] for run in (late, fused)]
    return quality[0], quality[1], median(seconds)


def best(ids: Sequence[str], scores: Array) -> list[str]:
    return [ids[i] for i in np.argsort(-scores, kind="stable")[:10]]


if __name__ == "__main__":
    main()

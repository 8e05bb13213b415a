"""Where m3-mini's recommended mode weights come from: a grid over dev splits, mean nDCG@10 of all modes together.

    python benchmarks/mode_weights.py DATA

DATA holds BEIR folders; those named below are read (their dev questions, and at most 240 of the passages that answer
them; of the first two the heads saw nothing in training), and examples/world beside them, whose questions are mostly
asked in another language than the answer.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from pathlib import Path

import numpy as np

from m3_integrations import M3Encoder, Query
from m3_integrations.core.encoded import score_mode
from m3_integrations.core.errors import TextsTruncated
from m3_integrations.core.metrics import Metric
from m3_integrations.core.texts import Passage
from m3_integrations.evaluation.beir import Collection, read_beir

FOLDERS = ("norquad_no", "cmrc2018_zh", "scifact", "afriqa_fr", "facqa_id", "faquad_pt", "jaquad_ja")
WORLD = Path(__file__).parents[1] / "examples" / "world"
DENSE = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
SPARSE = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
PASSAGES, QUERIES = 240, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    warnings.simplefilter("ignore", TextsTruncated)
    data, encoder = parser.parse_args().data, M3Encoder.from_pretrained()
    grid = list(itertools.product(DENSE, SPARSE))
    columns = []
    for folder in (*(data / name for name in FOLDERS), WORLD):
        columns.append(ndcg_over(grid, encoder, sample(read_beir(folder, "dev"))))
        print(f"{folder.name:12} best {max(columns[-1]):.4f}", flush=True)
    for (dense, sparse), values in sorted(
        zip(grid, zip(*columns, strict=True), strict=True), key=lambda row: np.mean(row[1])
    ):
        print(f"dense {dense:<5} sparse {sparse:<5} multi_vector 1   " + " ".join(f"{v:.4f}" for v in values), end="")
        print(f"   mean {np.mean(values):.4f}")


def sample(collection: Collection) -> Collection:
    rng = np.random.default_rng(0)
    answers = sorted({id for query in collection.queries for id in query.relevant})
    chosen = set(rng.permutation(answers)[:PASSAGES].tolist())
    passages = [passage for passage in collection.passages if passage.id in chosen]
    queries = [query for query in collection.queries if query.relevant.keys() & chosen]
    return Collection(passages, [queries[i] for i in rng.permutation(len(queries))[:QUERIES]])


def ndcg_over(grid: list[tuple[float, float]], encoder: M3Encoder, collection: Collection) -> list[float]:
    queries: list[Query] = collection.queries
    passages: list[Passage] = collection.passages
    asked = encoder.encode_queries([query.text for query in queries])
    found = encoder.encode_passages([passage.text for passage in passages])
    dense, sparse, late = (score_mode(mode, asked, found) for mode in ("dense", "sparse", "multi_vector"))
    metric = Metric.parse("ndcg@10")
    values = []
    for dense_weight, sparse_weight in grid:
        order = np.argsort(-(dense_weight * dense + sparse_weight * sparse + late), axis=1, kind="stable")[:, :10]
        ranked = [[passages[i].id for i in row] for row in order]
        values.append(float(np.mean([metric(ids, query.relevant) for ids, query in zip(ranked, queries, strict=True)])))
    return values


if __name__ == "__main__":
    main()

"""LocalIndex from 2,000 to 1,000,000 passages: query time, insertion rate, and recall of the HNSW graph.

python benchmarks/growth.py [--sizes 2000 10000 100000 300000 1000000] [--picture docs/growth.svg]

One index is filled with synthetic embeddings (per passage: 64 dense dimensions, 30 sparse entries, 2 multi-vectors of
64 dimensions) and queried at each size: dense and sparse search generate 100 candidates each, which are rescored in all
modes. Dense search scans all vectors of up to 200,000 passages. Beyond, it uses an HNSW graph, which is built by the
first query and timed separately; its recall is that of the 100 nearest. The picture needs matplotlib.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from synthetic import BATCH, Synthetic, World
from timing import timed

from m3_integrations import Encoded, LocalIndex, Passage, Retriever, SearchPlan

SIZES = (2_000, 10_000, 100_000, 300_000, 1_000_000)
VECTORS, DIM, ENTRIES, QUERIES, NEAREST = 2, 64, 30, 60, 100
EXACT_BELOW = 200_000
DARK = """
<style>@media (prefers-color-scheme: dark) {
[id^="text_"], [id^="text_"] * { fill: #e8eaf0 } [style*="stroke: #000000"] { stroke: #c3c7d1 !important }
[style*="fill: #ffffff"] { fill: #1e2129 !important } [style*="stroke: #1f77b4"] { stroke: #7aa7ff !important }
[style*="fill: #1f77b4"] { fill: #7aa7ff !important }
}</style>"""


class Row(NamedTuple):
    """One size: passages added per second, median milliseconds per query, seconds to build the graph, recall."""

    size: int
    rate: float
    hybrid: float
    dense: float
    sparse: float
    graph: float
    recall: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    queries = World(VECTORS, seed=1, dim=DIM, entries=ENTRIES).queries(QUERIES)
    singles = [queries.take([i]) for i in range(QUERIES)]
    rows: list[Row] = []
    print(
        f"{'passages':>10}{'added/s':>10}{'hybrid ms':>11}{'dense ms':>10}{'sparse ms':>11}{'graph s':>9}{'recall':>8}"
    )
    with tempfile.TemporaryDirectory() as folder, LocalIndex.open(Path(folder) / "index") as index:
        batches = World(VECTORS, dim=DIM, entries=ENTRIES).passages(max(options.sizes))
        dense: list[np.ndarray] = []
        for size in options.sizes:
            rate = add(index, batches, size, dense)
            rows.append(measure(index, singles, np.concatenate(dense), rate))
            row = rows[-1]
            print(
                f"{row.size:10}{row.rate:10.0f}{row.hybrid:11.2f}{row.dense:10.2f}{row.sparse:11.2f}{row.graph:9.0f}"
                f"{row.recall:8.3f}",
                flush=True,
            )
    if options.picture:
        draw(rows, options.picture)


def add(
    index: LocalIndex, batches: Iterator[tuple[list[Passage], Encoded]], size: int, dense: list[np.ndarray]
) -> float:
    """Fill the index up to a size; return passages per second, without the time to generate them."""
    before, spent = len(index), 0.0
    for passages, encoded in islice(batches, -(-(size - before) // BATCH)):
        spent += timed(lambda p=passages, e=encoded: index.add(p, e))[0]
        dense.append(encoded.dense)
    return (len(index) - before) / spent


def measure(index: LocalIndex, queries: list[Encoded], dense: np.ndarray, rate: float) -> Row:
    retriever = Retriever(Synthetic(), index, SearchPlan())
    built = timed(lambda: retriever.retrieve_encoded(queries[0]))[0]
    hybrid = [1000 * timed(lambda q=q: retriever.retrieve_encoded(q))[0] for q in queries]
    modes = {
        mode: [1000 * timed(lambda q=q, m=mode: index.search(m, q, NEAREST))[0] for q in queries]
        for mode in ("dense", "sparse")
    }
    recalls = [recall(index, query, dense) for query in queries]
    graph = built if len(index) > EXACT_BELOW else 0.0
    return Row(
        len(index),
        rate,
        median(hybrid),
        median(modes["dense"]),
        median(modes["sparse"]),
        graph,
        float(np.mean(recalls)),
    )


def recall(index: LocalIndex, query: Encoded, dense: np.ndarray) -> float:
    """Compute the share of the exact nearest passages among the results."""
    ids = {hit.id for hit in index.search("dense", query, NEAREST)[0]}
    best = np.argpartition(-(dense @ query.dense[0]), min(NEAREST, len(dense) - 1))[:NEAREST]
    return len(ids & {f"p{i:08d}" for i in best}) / len(best)


def add_dark_colors(path: Path) -> None:
    """Make a picture of matplotlib follow the reader's color scheme."""
    svg = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(<svg [^>]*>)", lambda tag: tag[1] + DARK, svg, count=1), encoding="utf-8")


def draw(rows: list[Row], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    sizes = [row.size for row in rows]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, label in (("hybrid", "hybrid, three modes"), ("dense", "dense search"), ("sparse", "sparse search")):
        axes.loglog(sizes, [getattr(row, name) for row in rows], marker="o", label=label)
    linear = [rows[0].hybrid * size / rows[0].size for size in sizes]
    axes.loglog(sizes, linear, linestyle=":", color="grey", label="linear growth")
    axes.axvline(EXACT_BELOW, linestyle="--", color="grey", linewidth=0.8)
    axes.text(1.03 * EXACT_BELOW, 0.03, "HNSW graph", transform=axes.get_xaxis_transform())
    axes.set(xlabel="passages", ylabel="median milliseconds per query")
    axes.set_ylim(top=max(20 * rows[-1].hybrid, 10))
    axes.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    add_dark_colors(path)
    print(f"saved {path}")


if __name__ == "__main__":
    main()

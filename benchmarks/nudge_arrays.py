"""NUDGE on arrays compared with nudge-ft (the authors' code) in time and memory; gains on real data.

    python benchmarks/nudge_arrays.py                       # random vectors; also nudge-ft if installed
    python benchmarks/nudge_arrays.py --large               # 1,000,000 passages in a memory map
    python benchmarks/nudge_arrays.py --data FOLDER --vectors FOLDER scifact medquad

--data: folder of BEIR datasets; `qrels_random` is preferred if present. --vectors: folder of `<dataset>.npz` files with
passages, passage_ids, queries and query_ids ("/" in a name is written "_"). Tuned on train and dev, evaluated on test.
Each measurement runs in its own process. Peak memory is anonymous memory beyond the inputs and the result.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from m3_integrations import Judged, nudge

DIM = 384
VARIANTS = {
    "nudge-ft m": ("nudge-m", False),
    "ours m": ("nudge-m", True),
    "nudge-ft n": ("nudge-n", False),
    "ours n": ("nudge-n", True),
}


def normalize(vectors: np.ndarray) -> np.ndarray:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def random_problem(passages: int, train: int, validation: int, mapped: bool = False) -> tuple[np.ndarray, Any, Any]:
    """Make unit vectors; each query is a relevant passage plus a common shift and noise."""
    rng = np.random.default_rng(0)
    vectors = memory_mapped(passages) if mapped else normalize(rng.standard_normal((passages, DIM), dtype=np.float32))
    relevant = rng.choice(passages, train, replace=False)
    shift = normalize(rng.standard_normal((1, DIM), dtype=np.float32))

    def queries(n: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rng.choice(relevant, n)
        noise = normalize(rng.standard_normal((n, DIM), dtype=np.float32))
        return normalize(0.25 * vectors[rows] + 0.5 * shift + noise), rows

    return vectors, queries(train), queries(validation)


def memory_mapped(passages: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    path = Path(tempfile.gettempdir()) / f"nudge_arrays_{passages}.npy"
    if not path.exists():
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(passages, DIM))
        for start in range(0, passages, 50_000):
            part = array[start : start + 50_000]
            part[:] = normalize(rng.standard_normal(part.shape, dtype=np.float32))
        array.flush()
        del array
    return np.load(path, mmap_mode="r")


class PeakMemory:
    """Peak anonymous memory of this process inside the context, beyond that at its start."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = anonymous_memory()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *_: object) -> None:
        self.peak = max(self.peak, anonymous_memory())
        self.done.set()
        self.thread.join()

    @property
    def bytes(self) -> int:
        return self.peak - self.start


def anonymous_memory() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def measure(variant: str, problem: tuple[np.ndarray, Any, Any], propagate: str | None) -> dict[str, float]:
    method, ours = VARIANTS[variant]
    run = run_ours if ours else run_nudge_ft
    with PeakMemory() as peak:
        start = time.perf_counter()
        result, accuracy = run(method, problem, propagate)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "beyond": (peak.bytes - result) / 2**20, "result": result / 2**20, "accuracy": accuracy}


def run_ours(method: str, problem: tuple[np.ndarray, Any, Any], propagate: str | None) -> tuple[int, float]:
    passages, *splits = problem
    train, validation = (Judged.of(queries, [{int(row): 1.0} for row in rows]) for queries, rows in splits)
    nudged = nudge(passages, train, validation, method=method, propagate=propagate, metric="accuracy@1")
    return nudged.rows.nbytes + nudged.vectors.nbytes, nudged.after


def run_nudge_ft(method: str, problem: tuple[np.ndarray, Any, Any], _: str | None) -> tuple[int, float]:
    import nudge as nudge_ft

    passages, train, validation = problem
    sets = [{"q_embs": queries, "q_ans_indx": [[int(row)] for row in rows]} for queries, rows in (train, validation)]
    model = nudge_ft.NUDGEN() if method == "nudge-n" else nudge_ft.NUDGEM()
    with contextlib.redirect_stdout(io.StringIO()):
        nudged = model.finetune_embeddings(passages, *sets)
    top = np.concatenate([(part @ nudged.T).argmax(axis=1) for part in np.array_split(validation[0], 16)])
    return nudged.nbytes, float(np.mean(top == validation[1]))


def side_by_side(problem: argparse.Namespace, variants: list[str]) -> None:
    print(f"{problem.name}: {problem.passages:,} x {DIM}, {problem.train:,} train, {problem.validation:,} validation")
    print(f"{'':14}{'seconds':>9}{'MiB beyond':>12}{'MiB result':>12}{'accuracy@1':>12}")
    for variant in variants:
        command = [sys.executable, __file__, "--one", json.dumps({**vars(problem), "variant": variant})]
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
        if completed.returncode:
            print(f"{variant:14}{completed.stderr.strip().splitlines()[-1]}")
            continue
        row = json.loads(completed.stdout.splitlines()[-1])
        print(
            f"{variant:14}{row['seconds']:9.2f}{row['beyond']:12.0f}{row['result']:12.0f}{row['accuracy']:12.3f}",
            flush=True,
        )


def measure_one(problem: dict[str, Any]) -> None:
    if problem["vectors"]:
        dataset = read(Path(problem["data"]), Path(problem["vectors"]), problem["name"])
        single = [(each.queries, each.rows[each.offsets[:-1]]) for each in dataset[1:3]]
        arrays = (dataset[0], *single)
    else:
        arrays = random_problem(problem["passages"], problem["train"], problem["validation"], problem["mapped"])
    print(json.dumps(measure(problem["variant"], arrays, problem["propagate"])))


def read(data: Path, vectors: Path, name: str) -> tuple[np.ndarray, Judged, Judged, Judged]:
    """Read the passages, and the judged queries of train, dev and test."""
    arrays = np.load(vectors / f"{name.replace('/', '_')}.npz")
    rows = {str(id): row for row, id in enumerate(arrays["passage_ids"])}
    query_rows = {str(id): row for row, id in enumerate(arrays["query_ids"])}
    folder = data / name / "qrels_random"
    folder = folder if folder.exists() else data / name / "qrels"
    return arrays["passages"], *(
        read_judged(folder / f"{part}.tsv.gz", arrays["queries"], rows, query_rows) for part in PARTS
    )


PARTS = ("train", "dev", "test")


def read_judged(path: Path, queries: np.ndarray, rows: dict[str, int], query_rows: dict[str, int]) -> Judged:
    relevant: dict[int, dict[int, float]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for query, passage, grade in list(csv.reader(lines, delimiter="\t"))[1:]:
            relevant.setdefault(query_rows[query], {})[rows[passage]] = float(grade)
    chosen = sorted(relevant)
    return Judged.of(queries[chosen], [relevant[row] for row in chosen]).answered()


def on_real_data(data: Path, vectors: Path, names: list[str], method: str) -> None:
    print("nDCG@10 on test, tuned on train and dev; in brackets, 95 % of 2,000 paired bootstrap samples of the gain")
    print(f"{'':16}{'method':>7}{'propagate':>10}{'gamma':>8}{'before':>8}{'after':>8}{'gain':>9}{'':20}{'seconds':>8}")
    for name in names:
        passages, train, dev, test = read(data, vectors, name)
        start = time.perf_counter()
        nudged = nudge(passages, train, dev, method=method)  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
        before, after = (ndcg(vectors, test) for vectors in (passages, nudged.passages))
        low, high = bootstrap(after - before)
        print(
            f"{name:16}{nudged.method:>7}{format_propagation(nudged.propagation):>10}{nudged.gamma:8.3f}{before.mean():8.4f}"
            f"{after.mean():8.4f}{(after - before).mean():+9.4f} [{low:+.4f}, {high:+.4f}]{seconds:8.1f}",
            flush=True,
        )


def format_propagation(propagation: tuple[float, float] | None) -> str:
    """Format temperature and own share."""
    return f"{propagation[0]:g}, {propagation[1]:g}" if propagation else "none"


def ndcg(passages: np.ndarray, judged: Judged) -> np.ndarray:
    values = []
    for i, query in enumerate(judged.queries):
        answers = slice(judged.offsets[i], judged.offsets[i + 1])
        grades = dict(zip(judged.rows[answers].tolist(), judged.grades[answers].tolist(), strict=True))
        ranked = np.argsort(-(passages @ query), kind="stable")[:10]
        gains = np.array([grades.get(row, 0.0) for row in ranked.tolist()])
        ideal = np.sort(list(grades.values()))[::-1][:10]
        values.append(gains @ DISCOUNTS[: len(gains)] / (ideal @ DISCOUNTS[: len(ideal)]))
    return np.array(values)


DISCOUNTS = 1 / np.log2(np.arange(10) + 2)


def bootstrap(gains: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    low, high = np.quantile(gains[rng.integers(0, len(gains), (2000, len(gains)))].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--method", default="auto", choices=("auto", "nudge-n", "nudge-m"))
    parser.add_argument(
        "--propagate", choices=("auto", "neighbors"), help="propagation in the speed tables; default none"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.one:
        return measure_one(json.loads(options.one))

    def problem(name: str, passages: int, train: int, validation: int, **more: Any) -> argparse.Namespace:
        defaults = {"vectors": None, "data": None, "mapped": False, "propagate": options.propagate}
        return argparse.Namespace(
            name=name, passages=passages, train=train, validation=validation, **{**defaults, **more}
        )

    if options.large:
        large = problem("random", 1_000_000, 18_000, 2_000, mapped=True)
        return side_by_side(large, ["ours m", "ours n"])
    if options.vectors:
        for name in options.names:
            passages, train, dev, _ = read(options.data, options.vectors, name)
            locations = {"vectors": str(options.vectors), "data": str(options.data)}
            side_by_side(problem(name, len(passages), len(train), len(dev), **locations), list(VARIANTS))
        return on_real_data(options.data, options.vectors, options.names, options.method)
    return side_by_side(problem("random", 100_000, 10_000, 1_000), list(VARIANTS))


if __name__ == "__main__":
    main()

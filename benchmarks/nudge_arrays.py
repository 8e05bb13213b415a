"""Nudging arrays beside nudge-ft (the paper's authors' code), time and peak memory; and what it gains on real data.

    python benchmarks/nudge_arrays.py                       # random vectors; nudge-ft where it is installed
    python benchmarks/nudge_arrays.py --large               # 1,000,000 passages in a memory map
    python benchmarks/nudge_arrays.py --data FOLDER --vectors FOLDER scifact medquad

FOLDER of --data: BEIR-like datasets, `qrels_random` taken where there is one. FOLDER of --vectors: `<dataset>.npz` with
passages, passage_ids, queries and query_ids ("/" in a name as "_"). Tuned on train and dev, shown on test.
Each measurement has a process of its own. Peak memory is anonymous memory beyond the inputs and the result.
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

from m3_integrations.nudging.engine import nudge
from m3_integrations.nudging.judged import Judged

DIM = 384
PEERS = {"nudge-ft m": ("m", False), "ours m": ("m", True), "nudge-ft n": ("n", False), "ours n": ("n", True)}


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def random_problem(passages: int, train: int, validation: int, mapped: bool = False) -> tuple[np.ndarray, Any, Any]:
    """Unit vectors; each query lies off one of the passages in demand by a shift that all share, and by noise."""
    rng = np.random.default_rng(0)
    vectors = _mapped(passages) if mapped else unit(rng.standard_normal((passages, DIM), dtype=np.float32))
    demanded = rng.choice(passages, train, replace=False)
    shift = unit(rng.standard_normal((1, DIM), dtype=np.float32))

    def queries(n: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rng.choice(demanded, n)
        noise = unit(rng.standard_normal((n, DIM), dtype=np.float32))
        return unit(0.25 * vectors[rows] + 0.5 * shift + noise), rows

    return vectors, queries(train), queries(validation)


def _mapped(passages: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    path = Path(tempfile.gettempdir()) / f"nudge_arrays_{passages}.npy"
    if not path.exists():
        whole = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(passages, DIM))
        for start in range(0, passages, 50_000):
            part = whole[start : start + 50_000]
            part[:] = unit(rng.standard_normal(part.shape, dtype=np.float32))
        whole.flush()
        del whole
    return np.load(path, mmap_mode="r")


class Peak:
    """The most anonymous memory of this process while it runs beyond what there was at first."""

    def __enter__(self) -> Peak:
        self.first = self.most = _anonymous()
        self.done = threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.most = max(self.most, _anonymous())

    def __exit__(self, *_: object) -> None:
        self.most = max(self.most, _anonymous())
        self.done.set()
        self.watch.join()

    @property
    def bytes(self) -> int:
        return self.most - self.first


def _anonymous() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def measure(peer: str, problem: tuple[np.ndarray, Any, Any], spread: str | None) -> dict[str, float]:
    method, ours = PEERS[peer]
    run = _ours if ours else _nudge_ft
    with Peak() as peak:
        start = time.perf_counter()
        result, accuracy = run(method, problem, spread)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "beyond": (peak.bytes - result) / 2**20, "result": result / 2**20, "accuracy": accuracy}


def _ours(method: str, problem: tuple[np.ndarray, Any, Any], spread: str | None) -> tuple[int, float]:
    passages, *judged = problem
    train, validation = (Judged.of(queries, [{int(row): 1.0} for row in rows]) for queries, rows in judged)
    nudged = nudge(passages, train, validation, method=method, spread=spread, metric="accuracy@1")
    return nudged.rows.nbytes + nudged.vectors.nbytes, nudged.after


def _nudge_ft(method: str, problem: tuple[np.ndarray, Any, Any], _: str | None) -> tuple[int, float]:
    import nudge as nudge_ft

    passages, train, validation = problem
    sets = [{"q_embs": queries, "q_ans_indx": [[int(row)] for row in rows]} for queries, rows in (train, validation)]
    model = nudge_ft.NUDGEN() if method == "n" else nudge_ft.NUDGEM()
    with contextlib.redirect_stdout(io.StringIO()):
        moved = model.finetune_embeddings(passages, *sets)
    found = np.concatenate([(part @ moved.T).argmax(axis=1) for part in np.array_split(validation[0], 16)])
    return moved.nbytes, float(np.mean(found == validation[1]))


def side_by_side(problem: argparse.Namespace, peers: list[str]) -> None:
    print(f"{problem.name}: {problem.passages:,} x {DIM}, {problem.train:,} train, {problem.validation:,} validation")
    print(f"{'':14}{'seconds':>9}{'MiB beyond':>12}{'MiB result':>12}{'accuracy@1':>12}")
    for peer in peers:
        command = [sys.executable, __file__, "--one", json.dumps({**vars(problem), "peer": peer})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{peer:14}{done.stderr.strip().splitlines()[-1]}")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{peer:14}{row['seconds']:9.2f}{row['beyond']:12.0f}{row['result']:12.0f}{row['accuracy']:12.3f}",
            flush=True,
        )


def one(problem: dict[str, Any]) -> None:
    if problem["vectors"]:
        dataset = read(Path(problem["data"]), Path(problem["vectors"]), problem["name"])
        single = [(each.queries, each.rows[each.offsets[:-1]]) for each in dataset[1:3]]
        arrays = (dataset[0], *single)
    else:
        arrays = random_problem(problem["passages"], problem["train"], problem["validation"], problem["mapped"])
    print(json.dumps(measure(problem["peer"], arrays, problem["spread"])))


def read(data: Path, vectors: Path, name: str) -> tuple[np.ndarray, Judged, Judged, Judged]:
    """Passages, then the judged queries of train, dev and test."""
    arrays = np.load(vectors / f"{name.replace('/', '_')}.npz")
    rows = {str(id): row for row, id in enumerate(arrays["passage_ids"])}
    askers = {str(id): row for row, id in enumerate(arrays["query_ids"])}
    folder = data / name / "qrels_random"
    folder = folder if folder.exists() else data / name / "qrels"
    return arrays["passages"], *(_judged(folder / f"{part}.tsv.gz", arrays["queries"], rows, askers) for part in PARTS)


PARTS = ("train", "dev", "test")


def _judged(path: Path, queries: np.ndarray, rows: dict[str, int], askers: dict[str, int]) -> Judged:
    answers: dict[int, dict[int, float]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for query, passage, grade in list(csv.reader(lines, delimiter="\t"))[1:]:
            answers.setdefault(askers[query], {})[rows[passage]] = float(grade)
    chosen = sorted(answers)
    return Judged.of(queries[chosen], [answers[row] for row in chosen]).answered()


def on_real_data(data: Path, vectors: Path, names: list[str], method: str) -> None:
    print("nDCG@10 on test, tuned on train and dev; in brackets, 95 % of 2,000 paired bootstrap samples of the gain")
    print(f"{'':16}{'method':>7}{'spread':>10}{'gamma':>8}{'before':>8}{'after':>8}{'gain':>9}{'':20}{'seconds':>8}")
    for name in names:
        passages, train, dev, test = read(data, vectors, name)
        start = time.perf_counter()
        nudged = nudge(passages, train, dev, method=method)  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
        before, after = (_ndcg(vectors, test) for vectors in (passages, nudged.passages))
        low, high = _bootstrap(after - before)
        print(
            f"{name:16}{nudged.method:>7}{_said(nudged.spread):>10}{nudged.gamma:8.3f}{before.mean():8.4f}"
            f"{after.mean():8.4f}{(after - before).mean():+9.4f} [{low:+.4f}, {high:+.4f}]{seconds:8.1f}",
            flush=True,
        )


def _said(spread: tuple[float, float] | None) -> str:
    """Temperature and own share."""
    return f"{spread[0]:g}, {spread[1]:g}" if spread else "none"


def _ndcg(passages: np.ndarray, judged: Judged) -> np.ndarray:
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


def _bootstrap(gains: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    low, high = np.quantile(gains[rng.integers(0, len(gains), (2000, len(gains)))].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--method", default="auto", choices=("auto", "n", "m"))
    parser.add_argument("--spread", choices=("auto", "neighbours"), help="for the speed tables; left out: no spread")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.one:
        return one(json.loads(options.one))

    def problem(name: str, passages: int, train: int, validation: int, **more: Any) -> argparse.Namespace:
        fixed = {"vectors": None, "data": None, "mapped": False, "spread": options.spread}
        return argparse.Namespace(name=name, passages=passages, train=train, validation=validation, **{**fixed, **more})

    if options.large:
        large = problem("random", 1_000_000, 18_000, 2_000, mapped=True)
        return side_by_side(large, ["ours m", "ours n"])
    if options.vectors:
        for name in options.names:
            passages, train, dev, _ = read(options.data, options.vectors, name)
            where = {"vectors": str(options.vectors), "data": str(options.data)}
            side_by_side(problem(name, len(passages), len(train), len(dev), **where), list(PEERS))
        return on_real_data(options.data, options.vectors, options.names, options.method)
    return side_by_side(problem("random", 100_000, 10_000, 1_000), list(PEERS))


if __name__ == "__main__":
    main()

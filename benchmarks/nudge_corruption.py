"""NUDGE by corrupted logs: nDCG@10 of true test questions after a nudge by wrong labels, over many seeds.

    python benchmarks/nudge_corruption.py DATA stackfaq arcd_ar [--seeds 20] [--modes dense] [--cache FOLDER]

DATA holds BEIR folders; `qrels_random`, whose splits share their passages, is preferred if there. The log is train and
dev; test is left alone. Each row shows, over the seeds, the mean and the smallest change of the test metric, how often
it falls by more than 0.005, and how often anything moved. --cache: folder for the indexes, reused by the next run.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m3_integrations import (
    Judged,
    LocalIndex,
    M3Encoder,
    MemoryIndex,
    Nudger,
    Query,
    Retriever,
    SearchPlan,
    ingest,
    nudge,
)
from m3_integrations.core import MODES, Encoded, Mode
from m3_integrations.data import read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.evaluation import evaluate

HARM = 0.005
MODE_SETS: dict[str, tuple[Mode, ...]] = {"dense": ("dense",), "all": MODES}


class Log(NamedTuple):
    """A log: rows of its questions among all, their answers, and how many of them train."""

    rows: np.ndarray
    answers: list[dict[int, float]]
    train: int


class Chance(NamedTuple):
    """Number of passages, and a generator."""

    passages: int
    rng: np.random.Generator


Corruption = Callable[[Log, Chance], Log]


def other_order(log: Log, chance: Chance) -> Log:
    order = np.concatenate(
        [chance.rng.permutation(log.train), log.train + chance.rng.permutation(len(log.rows) - log.train)]
    )
    return Log(log.rows[order], [log.answers[i] for i in order], log.train)


def shuffled_answers(log: Log, chance: Chance) -> Log:
    return log._replace(answers=[log.answers[i] for i in chance.rng.permutation(len(log.answers))])


def random_answers(log: Log, chance: Chance) -> Log:
    return log._replace(answers=[{int(chance.rng.integers(chance.passages)): 1.0} for _ in log.answers])


def popular_answers(log: Log, chance: Chance) -> Log:
    few = chance.rng.choice(chance.passages, 5, replace=False)
    return log._replace(answers=[{int(chance.rng.choice(few)): 1.0} for _ in log.answers])


def popular_besides(log: Log, chance: Chance) -> Log:
    few = {int(row): 1.0 for row in chance.rng.choice(chance.passages, 3, replace=False)}
    return log._replace(answers=[{**few, **each} for each in log.answers])


def duplicated_questions(log: Log, chance: Chance) -> Log:
    some = chance.rng.permutation(len(log.rows))[: max(30, len(log.rows) // 5)]
    which = chance.rng.permutation(np.repeat(some, np.minimum(chance.rng.zipf(1.6, len(some)), 12)))
    return Log(log.rows[which], [log.answers[i] for i in which], int(0.85 * len(which)))


def contradictory_labels(log: Log, chance: Chance) -> Log:
    every = [*log.answers, *random_answers(log, chance).answers]
    order = chance.rng.permutation(len(every))
    return Log(np.tile(log.rows, 2)[order], [every[i] for i in order], int(0.85 * len(every)))


def thirty_questions(log: Log, chance: Chance) -> Log:
    some = chance.rng.permutation(len(log.rows))[:30]
    return Log(log.rows[some], [log.answers[i] for i in some], 24)


def thirty_shuffled(log: Log, chance: Chance) -> Log:
    return shuffled_answers(thirty_questions(log, chance), chance)


CORRUPTIONS: dict[str, Corruption] = {
    "true labels": lambda log, _: log,
    "in another order": other_order,
    "shuffled answers": shuffled_answers,
    "random answers": random_answers,
    "popular passages for every question": popular_answers,
    "popular passages besides the answer": popular_besides,
    "duplicated questions": duplicated_questions,
    "contradictory labels": contradictory_labels,
    "30 questions": thirty_questions,
    "30 questions, shuffled answers": thirty_shuffled,
}


class Collection:
    """Passages, a log and true test questions, encoded."""

    def __init__(self, encoder: M3Encoder, folder: Path, index_folder: Path) -> None:
        qrels = "qrels_random" if (folder / "qrels_random").is_dir() else "qrels"
        train, dev, test = (read_beir(folder, split, qrels) for split in ("train", "dev", "test"))
        self.encoder, self.passages, self.queries = encoder, test.passages, [*train.queries, *dev.queries]
        row = {passage.id: i for i, passage in enumerate(test.passages)}
        with LocalIndex.open(index_folder, encoder) as index:
            ingest(encoder, index, test.passages)
            self.encoded: Encoded = index.vectors(list(row))
        self.log_vectors = encoder.encode_queries([query.text for query in self.queries])
        answers = [{row[id]: grade for id, grade in query.relevant.items()} for query in self.queries]
        self.log = Log(np.arange(len(self.queries)), answers, len(train.queries))
        self.test = test.queries
        self.before = {name: self.score(self.encoded, plan_of(name)) for name in MODE_SETS}

    def score(self, encoded: Encoded, plan: SearchPlan) -> float:
        """Return the metric of the test questions over these vectors."""
        index = MemoryIndex()
        index.add(self.passages, encoded)
        found = Retriever(self.encoder, index, plan).retrieve_many([query.text for query in self.test])
        run = {q.id: [match.passage.id for match in each] for q, each in zip(self.test, found, strict=True)}
        return evaluate(run, self.test, ["ndcg@10"])["ndcg@10"]

    def after(self, log: Log, name: str) -> tuple[float, bool]:
        """Return the test metric after a nudge by this log, and whether anything moved."""
        if name == "dense":
            judged = Judged.of(self.log_vectors.take(log.rows).dense, log.answers)
            train, validation = (judged.take(part) for part in np.split(np.arange(len(judged)), [log.train]))
            nudged = nudge(self.encoded.dense, train, validation)
            moved, plan = self.encoded.with_dense(np.asarray(nudged.passages, np.float32)), plan_of(name)
            return (self.score(moved, plan) if nudged.moved else self.before[name]), bool(nudged.moved)
        index = MemoryIndex()
        index.add(self.passages, self.encoded)
        queries = [
            Query(str(i), self.queries[row].text, {self.passages[p].id: g for p, g in answers.items()})
            for i, (row, answers) in enumerate(zip(log.rows.tolist(), log.answers, strict=True))
        ]
        nudger = Nudger(self.encoder, index)
        report = nudger.fit(queries[: log.train], queries[log.train :], modes=MODE_SETS[name])
        vectors = index.vectors([passage.id for passage in self.passages])
        return (self.score(vectors, report.plan) if report.moved else self.before[name]), report.moved


def plan_of(name: str) -> SearchPlan:
    """Return the plan before a nudge."""
    return SearchPlan(propose=("dense",), modes=("dense",)) if name == "dense" else SearchPlan(modes=MODE_SETS[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--modes", nargs="+", choices=list(MODE_SETS), default=["dense"])
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    encoder = M3Encoder.from_pretrained()
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names:
            collection = Collection(encoder, options.data / name, (options.cache or Path(scratch)) / name)
            for modes in options.modes:
                print(f"\n{name}, {modes}: nDCG@10 before {collection.before[modes]:.4f}, {options.seeds} seeds")
                print(f"{'':38}{'mean':>9}{'smallest':>10}{'harm':>6}{'moved':>7}")
                for corruption in CORRUPTIONS:
                    report_row(collection, modes, corruption, options.seeds)


def report_row(collection: Collection, modes: str, corruption: str, seeds: int) -> None:
    changes, moved = [], 0
    for seed in range(1 if corruption == "true labels" else seeds):
        log = CORRUPTIONS[corruption](collection.log, Chance(len(collection.passages), np.random.default_rng(seed)))
        after, did = collection.after(log, modes)
        changes.append(after - collection.before[modes])
        moved += did
    harm = sum(change < -HARM for change in changes)
    print(f"{corruption:38}{np.mean(changes):+9.4f}{min(changes):+10.4f}{harm:6}{moved:7}", flush=True)


if __name__ == "__main__":
    main()

"""A small training run as a script, for tests that kill it or start it in several processes.

    python -m tests.training.loops MODEL FOLDER OPTIONS

OPTIONS is JSON: fields of Stage and of its Sampling, or {"killed_after": FILE} for GTE's two stages.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from m3_integrations.core.types import Passage, Query
from m3_integrations.data.beir import JudgedCollection
from m3_integrations.training.data.examples import Example
from m3_integrations.training.data.sampler import Sampling
from m3_integrations.training.monitoring import Validation
from m3_integrations.training.run import TrainingReport, train
from m3_integrations.training.stages import Stage, contrastive, unified
from m3_integrations.training.trainer import TrainConfig

DEVICE = os.environ.get("M3_TEST_DEVICE", "cpu")
PLACES = ("river", "bridge", "house", "garden", "castle", "forest", "valley", "harbour")


def examples(negatives: bool = True) -> list[Example]:
    """Questions about the positions of places, one per ordered pair."""
    return [
        Example(f"where is the {a}", (f"the {a} is near the {b}",), (f"the {b} is old",) if negatives else ())
        for a in PLACES
        for b in PLACES
        if a != b
    ]


def validation() -> Validation:
    passages = [Passage(place, f"the {place} is near the sea") for place in PLACES]
    return Validation(
        JudgedCollection(passages, [Query(place, f"where is the {place}", {place: 1}) for place in PLACES])
    )


def run(
    model: str | Path, folder: Path, validated: bool = False, evaluate_every: int = 2, **options: object
) -> TrainingReport:
    """Train one stage; `options` are of the stage, `rows` of its sampling."""
    torch.set_num_threads(1)
    rows = int(str(options.pop("rows", 6)))
    stage = Stage(
        {"places": examples()}, **{"steps": 6, "dropout": 0.0, "sampling": Sampling(rows=rows, negatives=1), **options}
    )
    config = TrainConfig(evaluate_every=evaluate_every, log_every=1, device=DEVICE)
    return train(str(model), [stage], folder, validation=validation() if validated else None, config=config)


class KillingExamples(list[Example]):
    """Examples that kill the process which reads them once a file exists."""

    def __init__(self, examples: Iterable[Example], file: Path) -> None:
        super().__init__(examples)
        self.file = file

    def __getitem__(self, position):
        if self.file.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(position)


def run_gte(model: str | Path, folder: Path, killed_after: Path | None = None) -> TrainingReport:
    """Train GTE's two stages: dense on pairs, then dense and sparse with hard negatives.

    The process is killed in the second stage once the file `killed_after` exists.
    """
    torch.set_num_threads(1)
    options = {"dropout": 0.0, "steps": 4, "learning_rate": 1e-3}
    pairs = contrastive({"pairs": examples(negatives=False)}, **{**options, "sampling": Sampling(rows=6, negatives=0)})
    negatives = examples() if killed_after is None else KillingExamples(examples(), killed_after)
    judged = unified(
        {"judged": negatives},
        **{**options, "objective": "gte", "modes": ("dense", "sparse"), "sampling": Sampling(rows=6, negatives=1)},
    )
    config = TrainConfig(evaluate_every=2, log_every=1, device=DEVICE)
    return train(str(model), [pairs, judged], folder, config=config, pooling="cls")


if __name__ == "__main__":
    arguments = json.loads(sys.argv[3])
    if "killed_after" in arguments:
        run_gte(sys.argv[1], Path(sys.argv[2]), Path(arguments["killed_after"]))
    else:
        run(sys.argv[1], Path(sys.argv[2]), **arguments)

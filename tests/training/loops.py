"""A small training run as a script, for tests that kill it or start it in several processes.

    python -m tests.training.loops MODEL FOLDER OPTIONS

OPTIONS is JSON: fields of Stage and of its Sampling.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from m3_integrations.core.types import Passage, Query
from m3_integrations.data.beir import JudgedCollection
from m3_integrations.training.callbacks import Validation
from m3_integrations.training.data.examples import Example
from m3_integrations.training.data.sampler import Sampling
from m3_integrations.training.run import Trained, train
from m3_integrations.training.stages import Stage
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
) -> Trained:
    """Train one stage; `options` are of the stage, `rows` of its sampling."""
    torch.set_num_threads(1)
    rows = int(str(options.pop("rows", 6)))
    stage = Stage(
        {"places": examples()}, **{"steps": 6, "dropout": 0.0, "sampling": Sampling(rows=rows, negatives=1), **options}
    )
    config = TrainConfig(evaluate_every=evaluate_every, log_every=1, device=DEVICE)
    return train(str(model), [stage], folder, validation=validation() if validated else None, config=config)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), **json.loads(sys.argv[3]))

"""A small training run as a program of its own, for tests that stop it, or run it in several processes.

    python -m tests.training.loops MODEL FOLDER OPTIONS

OPTIONS is JSON: fields of Stage and of its Sampling.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from m3_integrations.core.texts import Passage, Query
from m3_integrations.evaluation.beir import Collection
from m3_integrations.training.data import Example
from m3_integrations.training.sampling import Sampling
from m3_integrations.training.stages import Stage
from m3_integrations.training.train import Trained, train
from m3_integrations.training.trainer import Loop
from m3_integrations.training.watching import Validation

PLACES = ("river", "bridge", "house", "garden", "castle", "forest", "valley", "harbour")


def examples(negatives: bool = True) -> list[Example]:
    """What is where: every place near every other."""
    return [
        Example(f"where is the {a}", (f"the {a} is near the {b}",), (f"the {b} is old",) if negatives else ())
        for a in PLACES
        for b in PLACES
        if a != b
    ]


def validation() -> Validation:
    passages = [Passage(place, f"the {place} is near the sea") for place in PLACES]
    return Validation(Collection(passages, [Query(place, f"where is the {place}", {place: 1}) for place in PLACES]))


def run(model: str | Path, folder: Path, watched: bool = False, every: int = 2, **options: object) -> Trained:
    """options: of the stage; `rows` is its sampling's."""
    torch.set_num_threads(1)
    rows = int(str(options.pop("rows", 6)))
    stage = Stage(
        {"places": examples()}, **{"steps": 6, "dropout": 0.0, "sampling": Sampling(rows=rows, negatives=1), **options}
    )
    loop = Loop(evaluate_every=every, log_every=1, device="cpu")
    return train(str(model), [stage], folder, validation=validation() if watched else None, loop=loop)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), **json.loads(sys.argv[3]))

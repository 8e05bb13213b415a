"""Teach m3-mini SciFact's train claims on a CPU: hard negatives mined with itself, then all of it learns, in all modes.

    python benchmarks/finetune_scifact.py DATA WORK

DATA is the BEIR folder. Prints minutes, nDCG@10 of each mode and of all on the test claims before and after (and of all
on the dev claims, of which nothing is learned), and the share of tokens with a lexical weight. The model is then in
WORK/model; benchmarks/modes.py asks it once more in float32.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np

from m3_integrations import M3Encoder, MemoryIndex, Retriever
from m3_integrations.core.encoded import Encoded
from m3_integrations.core.errors import TextsTruncated
from m3_integrations.evaluation.beir import Collection, read_beir
from m3_integrations.evaluation.judging import judge, plans_of
from m3_integrations.training.data import Example, examples_of
from m3_integrations.training.mining import Mining, mine
from m3_integrations.training.sampling import Sampling
from m3_integrations.training.stages import Stage, unified
from m3_integrations.training.train import train
from m3_integrations.training.trainer import Loop

METRIC = "ndcg@10"
MINING = Mining(negatives=4, last=30)
SAMPLING = Sampling(tokens=40_000, rows=16, negatives=2, longest_query=64, longest_passage=192, shuffle=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--dtype", default="bfloat16", help="of the encoder that mines and is measured")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    asked.work.mkdir(parents=True, exist_ok=True)
    learn, dev, test = (read_beir(asked.data, split) for split in ("train", "dev", "test"))

    start = time.perf_counter()
    encoder = M3Encoder.from_pretrained(asked.model, dtype=asked.dtype)
    found = encoder.encode_passages([passage.text for passage in test.passages])
    examples = mined(encoder, found, learn)
    print(f"mined: {minutes(start)}", flush=True)
    stage = recipe(examples, asked.epochs, asked.learning_rate)
    trained = train(asked.model, [stage], asked.work / "model", loop=Loop(evaluate_every=10**9, show_progress=True))
    print(f"mined and trained: {minutes(start)}", flush=True)

    report("before", encoder, found, dev, test)
    after = M3Encoder.from_pretrained(str(trained.folder), dtype=asked.dtype)
    report("after", after, after.encode_passages([passage.text for passage in test.passages]), dev, test)


def mined(encoder: M3Encoder, found: Encoded, learn: Collection) -> list[Example]:
    """The train claims, with negatives drawn from what the model itself finds for them."""
    with MemoryIndex() as index:
        index.add(learn.passages, found)
        examples, told = mine(
            examples_of(learn), Retriever(encoder, index), MINING, rng=np.random.default_rng(SAMPLING.seed)
        )
    print(told)
    return examples


def recipe(examples: list[Example], epochs: int, learning_rate: float) -> Stage:
    """The encoder's layers and both heads, by M3's losses; a batch is short enough to be encoded once.

    The lexical loss counts for a tenth (variant "code") and heads learn slowly: with all terms alike and heads at 5e-4,
    more than half of the tokens lost their lexical weight.
    """
    return unified(
        {"scifact": examples},
        epochs=epochs,
        parts=("layers", "sparse", "multi_vector"),
        variant="code",
        weights={"dense": 0.3, "sparse": 0.3, "multi_vector": 1.0},
        learning_rate=learning_rate,
        head_learning_rate=1e-4,
        weight_decay=0.0,
        dropout=0.0,
        precision="bfloat16",
        sub_batch=16_384,
        sampling=SAMPLING,
    )


def report(when: str, encoder: M3Encoder, found: Encoded, dev: Collection, test: Collection) -> None:
    plans = plans_of(encoder.weights)
    with MemoryIndex() as index:
        index.add(test.passages, found)
        on_test = judge(encoder, index, test.queries, plans, [METRIC])
        on_dev = judge(encoder, index, dev.queries, {"all": plans["all"]}, [METRIC])
    figures = "  ".join(f"{plan} {values[METRIC]:.4f}" for plan, values in on_test.items())
    share = lexical_share(encoder, found, [passage.text for passage in test.passages])
    print(f"{when:6}  test: {figures}   dev: all {on_dev['all'][METRIC]:.4f}   lexical share {share:.3f}", flush=True)


def lexical_share(encoder: M3Encoder, found: Encoded, passages: list[str]) -> float:
    """Of the distinct tokens that the passages have, those with a lexical weight above 0."""
    silent = set(encoder.checkpoint.special.silent)
    sequences, _ = encoder.sequencer.sequences(passages, encoder.conventions.passage_prefix)
    return found.sparse.nnz / sum(len({*each.ids[each.kept()].tolist()} - silent) for each in sequences)


def minutes(start: float) -> str:
    return f"{(time.perf_counter() - start) / 60:.1f} minutes"


if __name__ == "__main__":
    main()

"""Fine-tune m3-mini on SciFact's train claims on a CPU: mine hard negatives with the model, then train all modes.

    python benchmarks/finetune_scifact.py DATA WORK

DATA is the BEIR folder. Prints minutes, nDCG@10 of each mode and of all modes on the test claims before and after, of
all modes on the dev claims (not used for training), and the share of tokens with a lexical weight. The model is saved
in WORK/model; benchmarks/modes.py evaluates it in float32.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np

from m3_integrations import M3Encoder, MemoryIndex, Retriever
from m3_integrations.core import Encoded
from m3_integrations.data import JudgedCollection, read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.evaluation import default_plans, evaluate_plans
from m3_integrations.training import (
    Example,
    MiningOptions,
    Sampling,
    Stage,
    TrainConfig,
    mine,
    to_examples,
    train,
    unified,
)

METRIC = "ndcg@10"
MINING = MiningOptions(negatives=4, last=30)
SAMPLING = Sampling(tokens=40_000, rows=16, negatives=2, longest_query=64, longest_passage=192, shuffle=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="m3-mini")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--dtype", default="bfloat16", help="precision of the encoder for mining and evaluation")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    options.work.mkdir(parents=True, exist_ok=True)
    training, dev, test = (read_beir(options.data, split) for split in ("train", "dev", "test"))

    start = time.perf_counter()
    encoder = M3Encoder.from_pretrained(options.model, dtype=options.dtype)
    passages = encoder.encode_passages([passage.text for passage in test.passages])
    examples = mine_negatives(encoder, passages, training)
    print(f"mined: {minutes(start)}", flush=True)
    stage = make_stage(examples, options.epochs, options.learning_rate)
    trained = train(
        options.model, [stage], options.work / "model", config=TrainConfig(evaluate_every=10**9, show_progress=True)
    )
    print(f"mined and trained: {minutes(start)}", flush=True)

    report("before", encoder, passages, dev, test)
    after = M3Encoder.from_pretrained(str(trained.folder), dtype=options.dtype)
    report("after", after, after.encode_passages([passage.text for passage in test.passages]), dev, test)


def mine_negatives(encoder: M3Encoder, encoded: Encoded, training: JudgedCollection) -> list[Example]:
    """Convert the train claims to examples with random negatives among the model's own results."""
    rng = np.random.default_rng(SAMPLING.seed)
    with MemoryIndex() as index:
        index.add(training.passages, encoded)
        examples, summary = mine(to_examples(training), Retriever(encoder, index), MINING, rng=rng)
    print(summary)
    return examples


def make_stage(examples: list[Example], epochs: int, learning_rate: float) -> Stage:
    """Train the encoder's layers and both heads with M3's loss; batches are small enough to be encoded once.

    The lexical loss has a tenth of the weight (variant "code") and the heads a low learning rate: with equal weights
    and 5e-4 for the heads, more than half of the tokens lost their lexical weight.
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


def report(when: str, encoder: M3Encoder, encoded: Encoded, dev: JudgedCollection, test: JudgedCollection) -> None:
    plans = default_plans(encoder.weights)
    with MemoryIndex() as index:
        index.add(test.passages, encoded)
        on_test = evaluate_plans(encoder, index, test.queries, plans, [METRIC])
        on_dev = evaluate_plans(encoder, index, dev.queries, {"all": plans["all"]}, [METRIC])
    figures = "  ".join(f"{plan} {values[METRIC]:.4f}" for plan, values in on_test.items())
    share = lexical_share(encoder, encoded, [passage.text for passage in test.passages])
    print(f"{when:6}  test: {figures}   dev: all {on_dev['all'][METRIC]:.4f}   lexical share {share:.3f}", flush=True)


def lexical_share(encoder: M3Encoder, encoded: Encoded, passages: list[str]) -> float:
    """Share of the passages' distinct tokens with a lexical weight above 0."""
    special = set(encoder.checkpoint.special.silent)
    sequences, _ = encoder.sequencer.sequences(passages, encoder.conventions.passage_prefix)
    return encoded.sparse.nnz / sum(len({*each.ids[each.content_positions()].tolist()} - special) for each in sequences)


def minutes(start: float) -> str:
    return f"{(time.perf_counter() - start) / 60:.1f} minutes"


if __name__ == "__main__":
    main()

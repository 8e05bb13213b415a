"""Packed rows against padded batches on a CPU, for architectures with random weights.

python benchmarks/packing.py [--kinds xlm-roberta gte modernbert] [--texts 200] [--rounds 5] [--threads 1]

Each round encodes the same texts, whose lengths are log-normal around a median of 60 tokens and at most 1,000, with
each architecture in three ways: packed as `M3Encoder` does on a CPU; padded in the same sorted batches of 2,048 tokens;
and padded in batches of 32 in the order given, as transformers is often called. Both padded ways run transformers' own
layers. Prints median seconds of the processor, the median and lowest ratio to packed, and the largest difference of any
dense vector.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
from timing import ratios, side_by_side
from transformers import CONFIG_MAPPING, AutoModel

from m3_integrations.models import packing
from m3_integrations.models.backends.base import BatchRunner
from m3_integrations.models.backends.torch import TorchBackend
from m3_integrations.models.tokenization import TokenSequence
from m3_integrations.models.transformer import Heads, M3Model

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 1152,
    "max_position_embeddings": 1026,
    "pad_token_id": 1,
}
CPU = torch.device("cpu")
TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["xlm-roberta", "gte", "modernbert"])
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sequences = mixed_sequences(options.texts)
    tokens = sum(len(each.ids) for each in sequences)
    print(f"{len(sequences)} texts, {tokens} tokens, {options.threads} threads, {options.rounds} rounds")
    print(f"{'':14}{'':16}{'seconds':>10}{'tokens/s':>10}{'ratio':>8}{'lowest':>8}{'difference':>13}")
    for kind in options.kinds:
        packed = TorchBackend(make_backbone(kind), Heads(), device=CPU, dtype=torch.float32, pooling="cls", pad=1)
        assert not packed.is_padded, f"{kind} is not packed"
        plain = M3Model(make_backbone(kind), Heads()).eval()
        by_length = sorted(sequences, key=lambda each: -len(each.ids))
        calls = {
            "packed": partial(encode_packed, packed, sequences),
            "padded, sorted": partial(encode_padded, plain, by_length, None),
            "padded by 32": partial(encode_padded, plain, sequences, 32),
        }
        measured = side_by_side(calls, options.rounds, clock=time.process_time)
        for name, (seconds, vectors) in measured.items():
            speedups = ratios(seconds, measured["packed"][0])
            difference = float(np.abs(vectors - measured["packed"][1]).max())
            print(
                f"{kind:14}{name:16}{median(seconds):10.2f}{tokens / median(seconds):10.0f}{median(speedups):8.2f}"
                f"{min(speedups):8.2f}{difference:13.1e}"
            )


def mixed_sequences(count: int) -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(60), 0.9, count)).astype(int), 3, 1000)
    ids = [np.concatenate([[0], rng.integers(4, 8192, length - 2), [2]]).astype(np.int32) for length in lengths]
    return [TokenSequence(each, row, 0, np.array([0])) for row, each in enumerate(ids)]


def make_backbone(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    ids = {"cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2} if kind == "modernbert" else {}
    return AutoModel.from_config(CONFIG_MAPPING[kind](**SHAPE, **ids)).eval()


def encode_packed(backend: TorchBackend, sequences: Sequence[TokenSequence]) -> np.ndarray:
    vectors = np.empty((len(sequences), SHAPE["hidden_size"]), np.float32)
    for rows, states in BatchRunner(backend, None, TOKENS, "").run(sequences, ("dense",)):
        vectors[rows] = states["dense"].numpy()
    return vectors


def encode_padded(model: M3Model, sequences: Sequence[TokenSequence], size: int | None) -> np.ndarray:
    vectors, start = np.empty((len(sequences), SHAPE["hidden_size"]), np.float32), 0
    while start < len(sequences):
        batch = sequences[start : start + (size or max(1, TOKENS // len(sequences[start].ids)))]
        with torch.inference_mode():
            pool = packing.pool_of(batch, "cls", CPU)
            dense = model.encode(packing.pad(model.backbone, batch, 1), pool, ("dense",)).dense
        vectors[[each.text for each in batch]] = dense.numpy()
        start += len(batch)
    return vectors


if __name__ == "__main__":
    main()

"""Encoding and training speed on an accelerator, of a random checkpoint in BGE-M3's shape.

python benchmarks/gpu.py [--texts FILE] [--passages 12000] [--device cuda] [--layers 24] [--hidden 1024]

Prints seconds and tokens per second of dense vectors and of all modes, their ratio, the milliseconds of a short query,
FlagEmbedding's time if it is installed, the share of the card's measured bf16 rate, and the speed of low-rank training
steps of a model in m3-mini's shape. Weights and, without --texts (one text per line), texts are random.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from m3_integrations import M3Encoder
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.training.data.examples import Example
from m3_integrations.training.data.sampler import Sampling
from m3_integrations.training.run import make_sampler, train
from m3_integrations.training.stages import Stage
from m3_integrations.training.step import BatchTokenizer, WorkerBatches
from m3_integrations.training.trainer import TrainConfig
from tests.checkpoints import WORDS, TinyCheckpoint, write_bge_m3

MEDIAN_TOKENS, SPREAD, MAX_LENGTH = 240, 0.5, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="one text per line")
    parser.add_argument("--passages", type=int, default=12_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="timed training steps")
    parser.add_argument("--rows", type=int, default=192, help="questions per training step at most, four passages each")
    parser.add_argument("--batch-tokens", type=int, default=120_000, help="tokens per training step, padding included")
    options = parser.parse_args()
    texts = options.texts.read_text().splitlines() if options.texts else make_texts(options.passages)
    print(f"{card(options.device)}; torch {torch.__version__}; random weights", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        width, layers = options.hidden, options.layers
        shape = TinyCheckpoint(hidden=width, layers=layers, heads=16, positions=MAX_LENGTH, colbert_width=width)
        model = str(write_bge_m3(Path(folder) / "large", shape))
        encoder = M3Encoder.from_pretrained(model, device=options.device, dtype="float16", max_length=MAX_LENGTH)
        report_encoding(encoder, texts, options.rounds)
        report_query(encoder)
        report_flag_embedding(model, texts)
        del encoder
        small = TinyCheckpoint(hidden=384, layers=12, heads=12, positions=MAX_LENGTH, colbert_width=384)
        report_training(str(write_bge_m3(Path(folder) / "small", small)), texts, Path(folder), options)


def make_texts(count: int) -> list[str]:
    """Make texts of random words, with lengths as those of encyclopedia passages."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(MEDIAN_TOKENS), SPREAD, count), 20, MAX_LENGTH).astype(int)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def card(device: str) -> str:
    if torch.device(device).type != "cuda":
        return device
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    _ = a @ b
    seconds = clock(lambda: a @ b, device)
    return f"{torch.cuda.get_device_name(device)}, {2 * 8192**3 / seconds / 1e12:.0f} TFLOP/s in bfloat16"


def clock(call: Callable[[], object], device: str | torch.device) -> float:
    """Time a call to the end of its work on the device."""
    start = time.perf_counter()
    call()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def report_encoding(encoder: M3Encoder, texts: Sequence[str], rounds: int) -> None:
    tokens = int(np.minimum(encoder.token_count(texts), MAX_LENGTH).sum())
    print(f"{len(texts)} texts, {tokens} tokens", flush=True)
    encoder.encode_passages(texts[:500])
    tokenizing = clock(lambda: encoder.sequencer.sequences(texts, ""), "cpu")
    print(f"{'tokenizing alone':24}{tokenizing:8.2f} s", flush=True)
    measured: dict[str, list[float]] = {"dense": [], "all": []}
    for _ in range(rounds):
        for name, modes in (("dense", ("dense",)), ("all", None)):
            measured[name].append(clock(lambda modes=modes: encoder.encode_passages(texts, modes), encoder.device))
    parameters = sum(each.numel() for each in encoder.checkpoint.backbone.encoder.parameters())
    for name, seconds in measured.items():
        rate = tokens / median(seconds)
        print(f"{name:24}{median(seconds):8.2f} s{rate:12.0f} tokens/s{2 * parameters * rate / 1e12:8.0f} TFLOP/s")
    print(f"{'all / dense':24}{median(measured['all']) / median(measured['dense']):8.2f}", flush=True)


def report_query(encoder: M3Encoder) -> None:
    calls = [clock(lambda: encoder.encode_queries(["where is the bridge"]), encoder.device) for _ in range(60)]
    print(f"{'one short query':24}{1000 * median(calls[10:]):8.2f} ms", flush=True)


def report_flag_embedding(model: str, texts: Sequence[str]) -> None:
    try:
        from FlagEmbedding import BGEM3FlagModel
    except ImportError:
        print("FlagEmbedding: not installed, not measured", flush=True)
        return
    peer = BGEM3FlagModel(model, use_fp16=True)
    for name, late in (("dense", False), ("all", True)):
        options = {"max_length": MAX_LENGTH, "return_sparse": late, "return_colbert_vecs": late}
        seconds = clock(lambda options=options: peer.encode(list(texts), batch_size=256, **options), "cuda")
        print(f"{f'FlagEmbedding {name}':24}{seconds:8.2f} s", flush=True)


def report_training(model: str, texts: Sequence[str], folder: Path, options: argparse.Namespace) -> None:
    """Time steps of low-rank training, by the difference of a long and a short run; count tokens without padding."""
    sampling = Sampling(tokens=options.batch_tokens, rows=options.rows, negatives=3, shuffle=0.0, longest_query=64)
    quarter = len(texts) // 4
    groups = zip(*(texts[quarter * part : quarter * (part + 1)] for part in range(4)), strict=True)
    examples = [Example(one[:150], (one,), others) for one, *others in groups]
    stage = Stage({"texts": examples}, steps=2, low_rank=16, dropout=0.0, precision="bfloat16", sampling=sampling)
    checkpoint = checkpoints.read(model)
    tokenizer = BatchTokenizer(checkpoint, sampling)
    batches = WorkerBatches(make_sampler(checkpoint, stage), tokenizer, 2 + options.steps, 0, 1)
    tokenized = [batches[step]["batch"] for step in range(2, 2 + options.steps)]
    tokens = sum(int(each.queries.mask.sum() + each.passages.mask.sum()) for each in tokenized)
    padded = sum(each.queries.mask.numel() + each.passages.mask.numel() for each in tokenized)
    seconds = {}
    for steps in (2, 2 + options.steps):
        config = TrainConfig(device=None if options.device != "cpu" else "cpu", evaluate_every=steps)
        start = time.perf_counter()
        train(model, [replace(stage, steps=steps)], folder / f"trained-{steps}", config=config)
        seconds[steps] = time.perf_counter() - start
    elapsed = seconds[2 + options.steps] - seconds[2]
    print(
        f"{'training, low rank':24}{1000 * elapsed / options.steps:8.0f} ms/step{tokens / elapsed:12.0f} tokens/s, "
        f"{tokens // options.steps} tokens a step ({tokens / padded:.0%} of the padded ones)"
    )
    if options.device != "cpu":
        print(f"{'its memory':24}{torch.cuda.max_memory_allocated() / 1e9:8.1f} GB", flush=True)


if __name__ == "__main__":
    main()

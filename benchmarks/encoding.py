"""Encoding speed of FlagEmbedding, sentence-transformers and our backends on the same checkpoint.

python benchmarks/encoding.py DATA/scifact DATA/jaquad_ja [--passages 2000] [--rounds 5] [--threads N] [--only NAME ...]

The checkpoint is m3-mini in BGE-M3's layout. Each round encodes the same passages, sampled from the folders in equal
parts and shuffled, once with each encoder. Prints median seconds, the median ratio to FlagEmbedding (float32, batches
of 256), and the lowest cosine to its dense vectors. sentence-transformers computes dense vectors only, all others all
three modes. Needs the extras parity, onnx and openvino.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from timing import ratios, side_by_side

from m3_integrations import M3Encoder
from m3_integrations.data import read_passages
from m3_integrations.errors import M3Warning

BASELINE = "FlagEmbedding"
BACKENDS = ("torch:float32", "torch:bfloat16", "onnx:float32", "onnx:int8", "openvino:float32", "openvino:bfloat16")
PREFIX = "passage: "
MAX_LENGTH = 512

Encode = Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="BEIR folders")
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", default=["sentence-transformers", *BACKENDS])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", M3Warning)
    texts = sample_passages(options.folders, options.passages)
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "m3-mini")
        encoders = {BASELINE: flag_embedding(model)}
        encoders |= {name: make_encode(model, name) for name in options.only}
        lengths = M3Encoder.from_pretrained(str(model)).token_count(texts)
        tokens = int(np.minimum(lengths, MAX_LENGTH).sum())
        print(f"{len(texts)} passages, {tokens} tokens, {options.threads} threads, {options.rounds} rounds")
        calls = {name: partial(encode, texts) for name, encode in encoders.items()}
        measured = side_by_side(calls, options.rounds, show=True)
    print(f"{'':24}{'seconds':>10}{'tokens/s':>10}{'ratio':>8}{'lowest':>8}{'lowest cosine':>15}")
    for name, (seconds, vectors) in measured.items():
        speedups = ratios(measured[BASELINE][0], seconds)
        cosine = float(np.sum(vectors * measured[BASELINE][1], axis=1).min())
        print(
            f"{name:24}{median(seconds):10.1f}{tokens / median(seconds):10.0f}{median(speedups):8.2f}"
            f"{min(speedups):8.2f}{cosine:15.6f}"
        )


def sample_passages(folders: Sequence[Path], count: int) -> list[str]:
    """Sample equally many passages of each folder, in random order."""
    per_folder = count // len(folders)
    texts = [text for folder in folders for text in sample_folder(folder, per_folder)]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def sample_folder(folder: Path, count: int) -> list[str]:
    file = next(path for path in sorted(folder.iterdir()) if path.name.startswith(("corpus", "passages")))
    passages = list(read_passages(file))
    chosen = np.random.default_rng(0).permutation(len(passages))[:count]
    return [passages[i].text for i in chosen]


def save_model(folder: Path) -> Path:
    """Save m3-mini in BGE-M3's layout, with sentence-transformers' module files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", M3Warning)
        M3Encoder.from_pretrained().save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    dim = json.loads((folder / "config.json").read_text())["hidden_size"]
    pooling = {"word_embedding_dimension": dim, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "2_Normalize").mkdir()
    return folder


def make_encode(model: Path, name: str) -> Encode:
    if name == "sentence-transformers":
        return sentence_transformers(model)
    backend, dtype = name.split(":")
    encoder = M3Encoder.from_pretrained(str(model), backend=backend, dtype=dtype, device="cpu")
    return lambda texts: encoder.encode_passages(texts).dense


def flag_embedding(model: Path) -> Encode:
    from FlagEmbedding import BGEM3FlagModel

    peer = BGEM3FlagModel(str(model), use_fp16=False, pooling_method="mean", devices="cpu")

    def encode(texts: Sequence[str]) -> np.ndarray:
        output = peer.encode(
            [PREFIX + text for text in texts],
            max_length=MAX_LENGTH,
            return_dense=True,
            return_sparse=True,
            return_colbert_vecs=True,
        )
        return np.asarray(output["dense_vecs"], np.float32)

    return encode


def sentence_transformers(model: Path) -> Encode:
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(model), device="cpu")
    peer.max_seq_length = MAX_LENGTH
    return lambda texts: peer.encode([PREFIX + text for text in texts], show_progress_bar=False)


if __name__ == "__main__":
    main()

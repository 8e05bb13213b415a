"""Encoding passages side by side: FlagEmbedding, sentence-transformers and this package's engines, on one checkpoint.

python benchmarks/encoding.py DATA/scifact DATA/jaquad_ja [--passages 2000] [--rounds 5] [--threads N] [--only NAME ...]

The checkpoint is m3-mini in BGE-M3's layout, which all of them load. Each round encodes the same passages, drawn from
the folders in equal parts and mixed, once with each; printed are the medians of the seconds and of the ratios of the
rounds to FlagEmbedding's (its batches of 256, its float32), and how far the vectors are from its. sentence-transformers
computes dense vectors alone; all others all three modes. Needs the extras parity, onnx and openvino.
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
from m3_integrations.core.errors import M3Warning
from m3_integrations.evaluation.beir import read_passages

PEER = "FlagEmbedding"
ENGINES = ("torch:float32", "torch:bfloat16", "onnx:float32", "onnx:int8", "openvino:float32", "openvino:bfloat16")
PREFIX = "passage: "
MAX_LENGTH = 512

Encode = Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="BEIR folders")
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", default=["sentence-transformers", *ENGINES])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", M3Warning)
    texts = mixed(options.folders, options.passages)
    with tempfile.TemporaryDirectory() as folder:
        model = exported(Path(folder) / "m3-mini")
        encoders = {PEER: flag_embedding(model)}
        encoders |= {name: contender(model, name) for name in options.only}
        lengths = M3Encoder.from_pretrained(str(model)).token_count(texts)
        tokens = int(np.minimum(lengths, MAX_LENGTH).sum())
        print(f"{len(texts)} passages, {tokens} tokens, {options.threads} threads, {options.rounds} rounds")
        calls = {name: partial(encode, texts) for name, encode in encoders.items()}
        found = side_by_side(calls, options.rounds, show=True)
    print(f"{'':24}{'seconds':>10}{'tokens/s':>10}{'ratio':>8}{'least':>8}{'lowest cosine':>15}")
    for name, (took, vectors) in found.items():
        against = ratios(found[PEER][0], took)
        cosine = float(np.sum(vectors * found[PEER][1], axis=1).min())
        print(
            f"{name:24}{median(took):10.1f}{tokens / median(took):10.0f}{median(against):8.2f}{min(against):8.2f}"
            f"{cosine:15.6f}"
        )


def mixed(folders: Sequence[Path], count: int) -> list[str]:
    """As many passages of each folder, in an order that knows nothing of their length."""
    each = count // len(folders)
    texts = [text for folder in folders for text in some(folder, each)]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def some(folder: Path, count: int) -> list[str]:
    file = next(path for path in sorted(folder.iterdir()) if path.name.startswith(("corpus", "passages")))
    passages = list(read_passages(file))
    chosen = np.random.default_rng(0).permutation(len(passages))[:count]
    return [passages[i].text for i in chosen]


def exported(folder: Path) -> Path:
    """m3-mini in BGE-M3's layout, with sentence-transformers' modules beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", M3Warning)
        M3Encoder.from_pretrained().save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "2_Normalize").mkdir()
    return folder


def contender(model: Path, name: str) -> Encode:
    if name == "sentence-transformers":
        return sentence_transformers(model)
    backend, dtype = name.split(":")
    encoder = M3Encoder.from_pretrained(str(model), backend=backend, dtype=dtype, device="cpu")
    return lambda texts: encoder.encode_passages(texts).dense


def flag_embedding(model: Path) -> Encode:
    from FlagEmbedding import BGEM3FlagModel

    theirs = BGEM3FlagModel(str(model), use_fp16=False, pooling_method="mean", devices="cpu")

    def encode(texts: Sequence[str]) -> np.ndarray:
        found = theirs.encode(
            [PREFIX + text for text in texts],
            max_length=MAX_LENGTH,
            return_dense=True,
            return_sparse=True,
            return_colbert_vecs=True,
        )
        return np.asarray(found["dense_vecs"], np.float32)

    return encode


def sentence_transformers(model: Path) -> Encode:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(model), device="cpu")
    theirs.max_seq_length = MAX_LENGTH
    return lambda texts: theirs.encode([PREFIX + text for text in texts], show_progress_bar=False)


if __name__ == "__main__":
    main()

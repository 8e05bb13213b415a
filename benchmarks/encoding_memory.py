"""Peak memory of encoding beyond the loaded model, with one text of 8,192 tokens among thousands of short ones.

python benchmarks/encoding_memory.py [--texts 3000] [--layers 4] [--dtype float32]

The checkpoint is random, with BGE-M3's hidden size (1,024) and few layers, since each layer releases its memory before
the next. Prints the peak of this process beyond its memory before encoding (Linux), and the size of the result.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from m3_integrations import Encoded, M3Encoder
from m3_integrations.core import Mode

DIM, LENGTH, SHORT = 1024, 8192, 24
WORDS = [f"w{i}" for i in range(2000)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
MODE_SETS: tuple[tuple[Mode, ...], ...] = (("dense", "sparse"), ("dense", "sparse", "multi_vector"))
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), options.layers)
        encoder = M3Encoder.from_pretrained(folder, dtype=options.dtype, device="cpu")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, SHORT)) for _ in range(options.texts)]
    texts.insert(len(texts) // 2, " ".join(rng.choice(WORDS, LENGTH - 2)))
    print(f"{len(texts)} texts, the longest of {max(encoder.token_count(texts))} tokens, {encoder!r}")
    encoder.encode_passages(texts[:1])
    read_weights(encoder)
    for modes in MODE_SETS:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = status("VmRSS")
        encoded = encoder.encode_passages(texts, modes)
        peak = status("VmHWM") - before
        print(f"{'+'.join(modes)}: {peak / MB:.0f} MB beyond the model, result {size(encoded) / MB:.0f} MB")
        del encoded


def write_checkpoint(folder: Path, layers: int) -> None:
    """Write a checkpoint in BGE-M3's layout."""
    config = XLMRobertaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=DIM,
        num_hidden_layers=layers,
        num_attention_heads=16,
        intermediate_size=4 * DIM,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        pad_token_id=1,
    )
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    for name, outputs in (("sparse_linear", 1), ("colbert_linear", DIM)):
        torch.save(nn.Linear(DIM, outputs).state_dict(), folder / f"{name}.pt")
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"], special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=LENGTH, **{f"{name}_token": token for name, token in names.items()}
    ).save_pretrained(folder)


def read_weights(encoder: M3Encoder) -> None:
    """Read all weights, which are memory-mapped and otherwise would be loaded during the measurement."""
    for weights in encoder._runner.backend.model.parameters():
        weights.sum()


def status(name: str) -> int:
    """Read a memory figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def size(encoded: Encoded) -> int:
    sparse = encoded.sparse.data.nbytes + encoded.sparse.indices.nbytes if "sparse" in encoded.modes else 0
    multi_vector = encoded.multi_vector.values.nbytes if "multi_vector" in encoded.modes else 0
    return encoded.dense.nbytes + sparse + multi_vector


if __name__ == "__main__":
    main()

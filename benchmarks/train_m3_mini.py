"""Train m3-mini's heads on train splits, from idf and identity, over a frozen encoder.

    python benchmarks/train_m3_mini.py DATA WORK

DATA holds the BEIR folders listed in FOLDERS. WORK stores mined examples and checkpoints, from which an interrupted run
resumes. The last line printed is the path of the file that the package ships as
m3_integrations/models/m3_mini/heads.safetensors.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from m3_integrations import M3Encoder, MemoryIndex, Passage, Retriever, SearchPlan
from m3_integrations.errors import TextsTruncated
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.training import (
    Example,
    MiningOptions,
    Sampling,
    TrainConfig,
    load_examples,
    mine_each,
    read_examples,
    train,
    warm_up,
    write_mined,
)

# Train splits without SQuAD and XQuAD. SciFact and MedQuAD stay unseen, so that gains on them are due to nudging or
# fine-tuning alone.
FOLDERS = (
    "tydiqa/en",
    "tydiqa/ko",
    "jaquad_ja",
    "afriqa_fr",
    "arcd_ar",
    "facqa_id",
    "faquad_pt",
    "iapp_th",
)
QUESTIONS = 800  # per folder at most
LEXICAL_SCALE = 0.35  # of the idf, so that lexical scores have the scale of the others under one temperature
TRAINED_WEIGHT = 0.5  # of the trained multi-vector head in its average with the identity (WiSE-FT, arXiv 2109.01903)
SAMPLING = Sampling(tokens=40_000, rows=24, negatives=2, longest_query=64, longest_passage=256, shuffle=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    options.work.mkdir(parents=True, exist_ok=True)
    start = save_untrained(options.work / "start")
    sources = {name: load_mined(options.data / name, options.work / "mined", start) for name in FOLDERS}
    stage = warm_up(
        sources,
        steps=options.steps,
        variant="paper",
        weights={"dense": 0.3, "sparse": 0.3, "multi_vector": 1.0},
        warm_up=0.05,
        weight_decay=0.0,
        precision="bfloat16",
        sampling=SAMPLING,
    )
    trained = train(
        str(start), [stage], options.work / "trained", config=TrainConfig(evaluate_every=50, show_progress=True)
    )
    print(export_heads(trained.folder, options.work / "heads.safetensors"))


def save_untrained(folder: Path) -> Path:
    """Save m3-mini without trained heads and with a scaled idf."""
    if not folder.is_dir():
        mini = checkpoints.read_mini(trained=False)
        prior = mini.heads.token_prior
        assert prior is not None
        scaled = replace(mini, heads=replace(mini.heads, token_prior=LEXICAL_SCALE * prior))
        checkpoints.save(scaled, folder, scaled.conventions)
    return folder


def load_mined(folder: Path, cache: Path, model: Path) -> list[Example]:
    """Sample a folder's train questions, with hard negatives among the answers to the others."""
    path = cache / f"{folder.parent.name}_{folder.name}.jsonl"
    if not path.is_file():
        cache.mkdir(exist_ok=True)
        available = load_examples(folder)
        rows = np.random.default_rng(0).permutation(len(available))[:QUESTIONS]
        examples = [available[row] for row in rows]
        texts = dict.fromkeys(text for each in examples for text in each.positives)
        passages = [Passage(str(number), text) for number, text in enumerate(texts)]
        encoder = M3Encoder.from_pretrained(str(model), max_length=256)
        with MemoryIndex() as index:
            index.add(passages, encoder.encode_passages([passage.text for passage in passages], ["dense"]))
            retriever = Retriever(encoder, index, SearchPlan(propose=("dense",), weights={"dense": 1.0}))
            mining = MiningOptions(negatives=4, last=20)
            print(folder.name, write_mined(path, mine_each(examples, retriever, mining, rng=np.random.default_rng(0))))
    return list(read_examples(path))


def export_heads(trained: Path, path: Path) -> Path:
    """Write the heads alone, in the format of the package."""
    checkpoint = checkpoints.read(str(trained))
    heads = checkpoint.heads
    assert heads.sparse is not None
    assert heads.token_prior is not None
    tensors = {f"sparse.{name}": value for name, value in heads.sparse.state_dict().items()}
    dim = heads.multi_vector.weight.shape[0]
    tensors["multi_vector.weight"] = torch.lerp(torch.eye(dim), heads.multi_vector.weight, TRAINED_WEIGHT)
    tensors["multi_vector.bias"] = TRAINED_WEIGHT * heads.multi_vector.bias
    tensors["lexical_scale"] = heads.token_prior.max().reshape(1)  # the largest idf is 1
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


if __name__ == "__main__":
    main()

"""Train m3-mini: its heads over the frozen encoder, then heads and a low-rank update of the encoder, on train splits.

    python benchmarks/train_m3_mini.py DATA WORK [--steps 300] [--rank 16] [--interpolation 1] [--device cpu]

DATA holds the BEIR folders listed in FOLDERS. WORK stores mined examples and checkpoints, from which an interrupted run
resumes when it is called again with the same options. The last lines printed are the paths of the two files that the
package ships in m3_integrations/models/m3_mini. The heads take half an hour on a CPU; the update takes minutes on a GPU
and about a minute a step on a CPU.
"""

from __future__ import annotations

import argparse
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from m3_integrations import M3Encoder, MemoryIndex, Passage, Retriever, SearchPlan
from m3_integrations.core import Mode
from m3_integrations.data import read_beir
from m3_integrations.errors import TextsTruncated
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.models.checkpoint import Checkpoint
from m3_integrations.models.mini.low_rank import round_factors
from m3_integrations.models.mini.settings import mini_conventions
from m3_integrations.training import (
    Example,
    Margin,
    MiningOptions,
    Sampling,
    Stage,
    TrainConfig,
    load_examples,
    mine_each,
    read_examples,
    train,
    unified,
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
LEXICAL_SCALE = 0.35  # of the idf, so that lexical scores have the scale of the others under one temperature
TRAINED_WEIGHT = 0.5  # of the trained multi-vector head in its average with the identity (WiSE-FT, arXiv 2109.01903)
INTERPOLATION = 1.0  # of the update between the encoder before and after, chosen on dev splits (compare_models.py)
MODE_WEIGHTS: Mapping[Mode, float] = {"dense": 0.3, "sparse": 0.3, "multi_vector": 1.0}  # of the summed score
SAME_SCORE = Margin(relative=0.02)  # a passage above 98 % of the positive's score may be another positive


@dataclass(frozen=True)
class Recipe:
    """Data and mining of one stage.

    Attributes:
        questions: Questions per folder at most.
        mining: Selection of hard negatives by dense scores.
        whole: Whether negatives come from all passages of the folder, instead of the positives.
        sampling: Options of batch sampling.
    """

    questions: int
    mining: MiningOptions
    whole: bool
    sampling: Sampling


HEADS = Recipe(
    questions=800,
    mining=MiningOptions(negatives=4, last=20),
    whole=False,
    sampling=Sampling(tokens=40_000, rows=24, negatives=2, longest_query=64, longest_passage=256, shuffle=0.0),
)
ENCODER = Recipe(
    questions=8000,
    mining=MiningOptions(negatives=6, last=24, margin=SAME_SCORE),
    whole=True,
    sampling=Sampling(tokens=120_000, rows=192, negatives=3, longest_query=64, longest_passage=224, shuffle=0.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--head-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300, help="steps of the low-rank update")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--interpolation", type=float, default=INTERPOLATION)
    parser.add_argument("--device", help="cpu, or by default the accelerator if there is one")
    parser.add_argument("--folders", nargs="+", default=FOLDERS)
    parser.add_argument("--questions", type=int, help="questions per folder at most, to try the script")
    parser.add_argument("--rows", type=int, help="questions per batch at most, to try the script")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    options.work.mkdir(parents=True, exist_ok=True)
    heads = train_heads(options)
    trained = train_update(heads, options)
    for path in export(heads, trained, options):
        print(path)


def train_heads(options: argparse.Namespace) -> Path:
    """Train the heads from idf and identity over the frozen encoder; return the folder of the averaged model."""
    averaged: Path = options.work / "heads"
    if averaged.is_dir():
        return averaged
    start = save_untrained(options.work / "start")
    stage = warm_up(
        load_sources(HEADS, start, "mined-heads", options),
        steps=options.head_steps,
        variant="paper",
        weights=MODE_WEIGHTS,
        warm_up=0.05,
        weight_decay=0.0,
        precision="bfloat16",
        sampling=replace(HEADS.sampling, rows=options.rows or HEADS.sampling.rows),
    )
    return save(average_heads(run(start, stage, options.work / "heads-trained", options)), averaged)


def train_update(start: Path, options: argparse.Namespace) -> Path:
    """Train the heads further, with a low-rank update of the encoder; return the folder of the model."""
    stage = unified(
        load_sources(ENCODER, start, "mined-encoder", options),
        steps=options.steps,
        low_rank=options.rank,
        variant="paper",
        weights=MODE_WEIGHTS,
        temperature=0.02,
        learning_rate=1e-4,
        head_learning_rate=1e-4,
        warm_up=0.1,
        weight_decay=0.0,
        dropout=0.0,
        precision="bfloat16",
        sampling=replace(ENCODER.sampling, rows=options.rows or ENCODER.sampling.rows),
    )
    return run(start, stage, options.work / "trained", options)


def run(start: Path, stage: Stage, folder: Path, options: argparse.Namespace) -> Path:
    """Train one stage, or resume it; a finished one is kept."""
    if not folder.is_dir():
        config = TrainConfig(evaluate_every=50, show_progress=True, device=options.device)
        train(str(start), [stage], folder, config=config)
    return folder


def save(checkpoint: Checkpoint, folder: Path) -> Path:
    """Save a checkpoint to a temporary neighbor of the folder, then rename it."""
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    checkpoints.save(checkpoint, unfinished, checkpoint.conventions)
    return unfinished.rename(folder)


def save_untrained(folder: Path) -> Path:
    """Save multilingual-e5-small with a scaled idf and without trained heads."""
    if folder.is_dir():
        return folder
    mini = checkpoints.read_mini(trained=False)
    prior = mini.heads.token_prior
    assert prior is not None
    return save(replace(mini, heads=replace(mini.heads, token_prior=LEXICAL_SCALE * prior)), folder)


def average_heads(trained: Path) -> Checkpoint:
    """Return a model with the mean of its multi-vector head and the identity, and m3-mini's length normalization."""
    checkpoint = checkpoints.read(str(trained))
    head = checkpoint.heads.multi_vector
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(torch.lerp(torch.eye(len(head.weight)), head.weight, TRAINED_WEIGHT))
        head.bias.mul_(TRAINED_WEIGHT)
    return replace(checkpoint, conventions=mini_conventions())


def load_sources(recipe: Recipe, model: Path, name: str, options: argparse.Namespace) -> dict[str, list[Example]]:
    """Load the mined examples of each folder, mining those that are missing."""
    if options.questions:
        recipe = replace(recipe, questions=min(options.questions, recipe.questions))
    mined = options.work / name
    mined.mkdir(exist_ok=True)
    return {each: load_mined(options.data / each, mined, model, recipe, options.device) for each in options.folders}


def load_mined(folder: Path, cache: Path, model: Path, recipe: Recipe, device: str | None) -> list[Example]:
    """Sample a folder's train questions, with hard negatives by dense scores."""
    path = cache / f"{folder.parent.name}_{folder.name}.jsonl"
    if not path.is_file():
        available = load_examples(folder)
        rows = np.random.default_rng(0).permutation(len(available))[: recipe.questions]
        examples = [available[row] for row in rows]
        texts = [text for each in examples for text in each.positives]
        if recipe.whole:
            texts += [passage.text for passage in read_beir(folder, "train").passages]
        passages = [Passage(str(number), text) for number, text in enumerate(dict.fromkeys(texts))]
        encoder = M3Encoder.from_pretrained(str(model), max_length=256, device=device)
        with MemoryIndex() as index:
            index.add(passages, encoder.encode_passages([passage.text for passage in passages], ["dense"]))
            retriever = Retriever(encoder, index, SearchPlan(propose=("dense",), weights={"dense": 1.0}))
            mined = mine_each(examples, retriever, recipe.mining, rng=np.random.default_rng(0))
            print(folder.name, write_mined(path, mined))
    return list(read_examples(path))


def export(start: Path, trained: Path, options: argparse.Namespace) -> list[Path]:
    """Write the files of the package: heads and update between two models with the same idf."""
    before, after = (checkpoints.read(str(folder)) for folder in (start, trained))
    share, heads, update = options.interpolation, dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name in ("sparse", "multi_vector"):
        old, new = (getattr(each.heads, name).state_dict() for each in (before, after))
        heads |= {f"{name}.{part}": torch.lerp(old[part], new[part], share).contiguous() for part in old}
    assert before.heads.token_prior is not None
    heads["lexical_scale"] = before.heads.token_prior.max().reshape(1)  # the largest idf is 1
    old, new = (each.backbone.state_dict() for each in (before, after))
    for name, part in old.items():
        if part.ndim == 2 and not name.startswith("embeddings."):
            update |= factors(name.removesuffix(".weight"), share * (new[name] - part).double(), options.rank)
    files = {"heads.safetensors": heads, "low_rank.safetensors": update}
    for name, tensors in files.items():
        save_file(tensors, options.work / name)
    return [options.work / name for name in files]


def factors(name: str, difference: torch.Tensor, rank: int) -> dict[str, torch.Tensor]:
    """Return the factors of a low-rank difference of weights, as the package stores them."""
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    root = values[:rank].sqrt()
    up, down = round_factors((left[:, :rank] * root).numpy(), (root[:, None] * right[:rank]).numpy())
    return {f"{name}.lora_A": torch.from_numpy(down), f"{name}.lora_B": torch.from_numpy(up)}


if __name__ == "__main__":
    main()

"""How m3-mini's heads were trained: from the idf and the identity, over an encoder that rests, on train splits alone.

    python benchmarks/train_m3_mini.py DATA WORK

DATA holds BEIR folders, of which those named below are read. WORK keeps what is mined and trained; called again after
a stop, it goes on from there. The last line says where the file is that the package ships as
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
from m3_integrations.core import checkpoint as checkpoints
from m3_integrations.core.errors import TextsTruncated
from m3_integrations.training.data import Example, read_examples, read_source
from m3_integrations.training.mining import Mining, mine_each, write_mined
from m3_integrations.training.sampling import Sampling
from m3_integrations.training.stages import warm_up
from m3_integrations.training.train import train
from m3_integrations.training.trainer import Loop

# Train splits; nothing of SQuAD's or XQuAD's, no dev or test question. SciFact and MedQuAD stay unseen, so that what a
# nudge or a fine-tuning gains on them is gained by it alone.
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
QUESTIONS = 800  # of each folder at most
LEXICAL_SCALE = 0.35  # of the idf, so that lexical scores are of the size of the others under one temperature
KEPT = 0.5  # of what the late-interaction head learned, the identity being the rest (arXiv 2109.01903)
SAMPLING = Sampling(tokens=40_000, rows=24, negatives=2, longest_query=64, longest_passage=256, shuffle=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    warnings.simplefilter("ignore", TextsTruncated)
    asked.work.mkdir(parents=True, exist_ok=True)
    start = untrained(asked.work / "start")
    sources = {name: mined(asked.data / name, asked.work / "mined", start) for name in FOLDERS}
    stage = warm_up(
        sources,
        steps=asked.steps,
        variant="paper",
        weights={"dense": 0.3, "sparse": 0.3, "multi_vector": 1.0},
        warm_up=0.05,
        weight_decay=0.0,
        precision="bfloat16",
        sampling=SAMPLING,
    )
    trained = train(str(start), [stage], asked.work / "trained", loop=Loop(evaluate_every=50, show_progress=True))
    print(shipped(trained.folder, asked.work / "heads.safetensors"))


def untrained(folder: Path) -> Path:
    """m3-mini as it is without trained heads, its idf scaled."""
    if not folder.is_dir():
        parts = checkpoints.read_mini(trained=False)
        prior = parts.heads.token_prior
        assert prior is not None
        scaled = replace(parts, heads=replace(parts.heads, token_prior=LEXICAL_SCALE * prior))
        checkpoints.save(scaled, folder, scaled.conventions)
    return folder


def mined(folder: Path, kept: Path, model: Path) -> list[Example]:
    """A sample of a folder's train questions, with hard negatives among the passages that answer the others."""
    path = kept / f"{folder.parent.name}_{folder.name}.jsonl"
    if not path.is_file():
        kept.mkdir(exist_ok=True)
        every = read_source(folder)
        rows = np.random.default_rng(0).permutation(len(every))[:QUESTIONS]
        examples = [every[row] for row in rows]
        texts = dict.fromkeys(text for each in examples for text in each.positives)
        passages = [Passage(str(number), text) for number, text in enumerate(texts)]
        encoder = M3Encoder.from_pretrained(str(model), max_length=256)
        with MemoryIndex() as index:
            index.add(passages, encoder.encode_passages([passage.text for passage in passages], ["dense"]))
            retriever = Retriever(encoder, index, SearchPlan(propose=("dense",), weights={"dense": 1.0}))
            asked = Mining(negatives=4, last=20)
            print(folder.name, write_mined(path, mine_each(examples, retriever, asked, rng=np.random.default_rng(0))))
    return list(read_examples(path))


def shipped(trained: Path, path: Path) -> Path:
    """The heads alone, as the package ships them."""
    checkpoint = checkpoints.read(str(trained))
    heads = checkpoint.heads
    assert heads.sparse is not None
    assert heads.token_prior is not None
    tensors = {f"sparse.{name}": value for name, value in heads.sparse.state_dict().items()}
    width = heads.multi_vector.weight.shape[0]
    tensors["multi_vector.weight"] = torch.lerp(torch.eye(width), heads.multi_vector.weight, KEPT)
    tensors["multi_vector.bias"] = KEPT * heads.multi_vector.bias
    tensors["lexical_scale"] = heads.token_prior.max().reshape(1)  # the idf's largest is 1
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


if __name__ == "__main__":
    main()

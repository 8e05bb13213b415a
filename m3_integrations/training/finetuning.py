"""Fine-tuning in one call: mine hard negatives with the model itself, then learn from them in all modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from m3_integrations.core.encoder import M3Encoder
from m3_integrations.core.texts import Passage
from m3_integrations.evaluation.beir import Collection, read_beir
from m3_integrations.index.local import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Retriever
from m3_integrations.training.data import Example, examples_of, read_examples
from m3_integrations.training.mining import Mining, mine_each, write_mined
from m3_integrations.training.stages import unified
from m3_integrations.training.train import Trained, train
from m3_integrations.training.trainer import Loop
from m3_integrations.training.watching import Validation


def finetune(
    model: str,
    judged: Collection,
    validation: Collection | None,
    folder: str | Path,
    *,
    negatives: int = 3,
    metric: str = "ndcg@10",
    loop: Loop | None = None,
    **options: Any,
) -> Trained:
    """Train a model on judged questions over a corpus.

    negatives: mined for each question from the corpus; 0 mines none. metric: what the best model is chosen by, on
    `validation`. options: of the stage (`m3_integrations.training.stages.Stage`). What was mined stays in FOLDER.mined
    while the training lasts, so that a run that was stopped goes on. What is raised: `train`.
    """
    loop = loop or Loop()
    mined = Path(folder).with_name(f"{Path(folder).name}.mined.jsonl")
    examples = examples_of(judged)
    if negatives:
        examples = _mined(model, examples, judged, negatives, mined, loop)
    stage = unified({"judged": examples}, **options)
    checked = None if validation is None else Validation(validation, metric)
    trained = train(model, [stage], folder, validation=checked, loop=loop)
    mined.unlink(missing_ok=True)
    return trained


def _mined(
    model: str, examples: list[Example], judged: Collection, negatives: int, path: Path, loop: Loop
) -> list[Example]:
    if not path.is_file():
        encoder = M3Encoder.from_pretrained(model, device=loop.device)
        path.parent.mkdir(parents=True, exist_ok=True)
        mining = Mining(negatives=negatives, last=max(30, 4 * negatives))
        rng = np.random.default_rng(loop.seed)
        with _retriever_in_memory(encoder, judged.passages, loop.show_progress) as retriever:
            write_mined(path, mine_each(examples, retriever, mining, rng=rng))
    return list(read_examples(path))


@contextmanager
def retriever_over(
    encoder: M3Encoder, source: Path, examples: Sequence[Example], folder: Path | None = None
) -> Iterator[Retriever]:
    """A retriever over an index in a folder; without one, over the corpus of a BEIR folder, or over every passage that
    the examples of a file hold."""
    if folder is not None:
        with LocalIndex.open(folder, encoder) as index:
            yield Retriever(encoder, index)
        return
    with _retriever_in_memory(encoder, _passages(source, examples), True) as retriever:
        yield retriever


@contextmanager
def _retriever_in_memory(encoder: M3Encoder, passages: Sequence[Passage], show_progress: bool) -> Iterator[Retriever]:
    with MemoryIndex() as index:
        ingest(encoder, index, passages, show_progress=show_progress)
        yield Retriever(encoder, index)


def _passages(source: Path, examples: Sequence[Example]) -> list[Passage]:
    if source.is_dir():
        return read_beir(source, "train").passages
    texts = dict.fromkeys(text for each in examples for text in (*each.positives, *each.negatives))
    return [Passage(str(number), text) for number, text in enumerate(texts)]

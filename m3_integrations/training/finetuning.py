"""Fine-tuning in one call: hard-negative mining with the model itself, then training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from m3_integrations.core.types import Passage
from m3_integrations.data.beir import JudgedCollection, read_beir
from m3_integrations.encoders.m3 import M3Encoder
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.memory import MemoryIndex
from m3_integrations.retrieval.ingestion import ingest
from m3_integrations.retrieval.retriever import Retriever
from m3_integrations.training.data.examples import Example, read_examples, to_examples
from m3_integrations.training.mining import MiningOptions, mine_each, write_mined
from m3_integrations.training.monitoring import Validation
from m3_integrations.training.run import TrainingReport, train
from m3_integrations.training.stages import unified
from m3_integrations.training.trainer import TrainConfig


def finetune(
    model: str,
    judged: JudgedCollection,
    validation: JudgedCollection | None,
    folder: str | Path,
    *,
    negatives: int = 3,
    metric: str = "ndcg@10",
    config: TrainConfig | None = None,
    **options: Any,
) -> TrainingReport:
    """Fine-tune a model on judged queries over a corpus.

    Mined examples stay in <folder>.mined.jsonl until training is complete; call again with the same arguments to resume
    an interrupted run.

    Args:
        model: "m3-mini", a folder, or a hub id.
        judged: Passages and judged queries to train on.
        validation: Passages and judged queries that select the best checkpoint; None to keep the last.
        folder: New folder for the model.
        negatives: Hard negatives mined per query; 0 for none.
        metric: Metric on `validation`; default "ndcg@10".
        config: Options of the run; None for the defaults.
        options: Options of `Stage`, such as steps or learning_rate.

    Returns:
        The folder of the model, and the result of the stage.

    Raises:
        ValueError: As `train` does.
        FileExistsError: If the folder holds a model.
        TrainingDiverged: If a loss is not finite.
    """
    config = config or TrainConfig()
    mined = Path(folder).with_name(f"{Path(folder).name}.mined.jsonl")
    examples = to_examples(judged)
    if negatives:
        examples = _mine_once(model, examples, judged, negatives, mined, config)
    stage = unified({"judged": examples}, **options)
    evaluation = None if validation is None else Validation(validation, metric)
    trained = train(model, [stage], folder, validation=evaluation, config=config)
    mined.unlink(missing_ok=True)
    return trained


def _mine_once(
    model: str, examples: list[Example], judged: JudgedCollection, negatives: int, path: Path, config: TrainConfig
) -> list[Example]:
    if not path.is_file():
        encoder = M3Encoder.from_pretrained(model, device=config.device)
        path.parent.mkdir(parents=True, exist_ok=True)
        mining = MiningOptions(negatives=negatives, last=max(30, 4 * negatives))
        rng = np.random.default_rng(config.seed)
        with _open_retriever_in_memory(encoder, judged.passages, config.show_progress) as retriever:
            write_mined(path, mine_each(examples, retriever, mining, rng=rng))
    return list(read_examples(path))


@contextmanager
def open_retriever(
    encoder: M3Encoder, source: Path, examples: Sequence[Example], folder: Path | None = None
) -> Iterator[Retriever]:
    """Open a retriever to mine negatives from.

    Args:
        encoder: Encoder of queries and passages.
        source: BEIR folder or file of the examples.
        examples: Examples of the source.
        folder: Folder of a LocalIndex to search; None to index the corpus of a BEIR folder, or all passages of the
            examples of a file, in memory.

    Yields:
        The retriever; its index is closed on exit.
    """
    if folder is not None:
        with LocalIndex.open(folder, encoder) as index:
            yield Retriever(encoder, index)
        return
    with _open_retriever_in_memory(encoder, _passages(source, examples), True) as retriever:
        yield retriever


@contextmanager
def _open_retriever_in_memory(
    encoder: M3Encoder, passages: Sequence[Passage], show_progress: bool
) -> Iterator[Retriever]:
    with MemoryIndex() as index:
        ingest(encoder, index, passages, show_progress=show_progress)
        yield Retriever(encoder, index)


def _passages(source: Path, examples: Sequence[Example]) -> list[Passage]:
    if source.is_dir():
        return read_beir(source, "train").passages
    texts = dict.fromkeys(text for each in examples for text in (*each.positives, *each.negatives))
    return [Passage(str(number), text) for number, text in enumerate(texts)]

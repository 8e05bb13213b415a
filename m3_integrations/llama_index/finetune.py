"""Training at LlamaIndex's door: a finetuning engine that teaches the model from a dataset of questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from m3_integrations.core.extras import need
from m3_integrations.evaluation.beir import Collection
from m3_integrations.llama_index.embedding import M3Embedding
from m3_integrations.nudging.by_id import HELD_OUT
from m3_integrations.nudging.datasets import Source, collection_of
from m3_integrations.nudging.splits import split


class M3FinetuneEngine:
    """Fine-tunes a model in all its modes, in the shape of LlamaIndex's engines.

    dataset, val_dataset: anything with `.queries`, `.corpus` and `.relevant_docs`, the path of a JSON file of these, or
    a Collection of ours. No val_dataset: a fifth of the questions is held out, drawn by `seed`, no text on both sides;
    they choose the best model that was seen, which is the one that was given where none did better.
    model: "m3-mini", a folder, or a hub id; heads that it lacks are made. model_output_path: a new folder, which
    `M3Embedding`, M3Encoder and FlagEmbedding load. epochs: how often each question is learned from; steps takes its
    place. negatives: hard negatives that are mined for each question from the corpus with the model itself; 0 learns
    from the other answers of a batch alone. options: of the stage, such as low_rank=16 or parts=("sparse",); see
    `m3_integrations.training.stages.Stage`.
    """

    def __init__(
        self,
        dataset: Source,
        model: str = "m3-mini",
        model_output_path: str | Path = "finetuned",
        val_dataset: Source | None = None,
        *,
        epochs: int = 2,
        steps: int | None = None,
        negatives: int = 3,
        metric: str = "ndcg@10",
        seed: int = 0,
        device: str | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> None:
        """Raises MissingExtra without accelerate, and ValueError for a dataset that is none."""
        need("accelerate", extra="train")
        train, validation = collection_of(dataset), None if val_dataset is None else collection_of(val_dataset)
        if validation is None:
            parts = split(train.queries, (1 - HELD_OUT, HELD_OUT), np.random.default_rng(seed))
            train, validation = Collection(train.passages, parts[0]), Collection(train.passages, parts[1])
        self.model = model
        self.model_output_path = Path(model_output_path)
        self._train = train
        self._validation = validation
        self._negatives = negatives
        self._metric = metric
        self._seed = seed
        self._device = device
        self._show_progress = show_progress
        self._options = {"epochs": epochs, "steps": steps, **options}

    def finetune(self, **train_kwargs: Any) -> None:
        """Mine, and train. Stopped and called again, it goes on from its last checkpoint."""
        if train_kwargs:
            raise ValueError(
                f"finetune takes nothing here, got {sorted(train_kwargs)}; tell the engine when it is made"
            )
        from m3_integrations.training.finetuning import finetune
        from m3_integrations.training.trainer import Loop

        self.result = finetune(
            self.model,
            self._train,
            self._validation,
            self.model_output_path,
            negatives=self._negatives,
            metric=self._metric,
            loop=Loop(seed=self._seed, device=self._device, show_progress=self._show_progress),
            **self._options,
        )

    def get_finetuned_model(self, **model_kwargs: Any) -> M3Embedding:
        """The model that came of it; model_kwargs are M3Embedding's. Raises FileNotFoundError before finetune()."""
        if not self.model_output_path.is_dir():
            raise FileNotFoundError(f"there is no model in {self.model_output_path} yet; call finetune() first")
        return M3Embedding(str(self.model_output_path), **{"device": self._device, **model_kwargs})

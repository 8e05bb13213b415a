"""M3FinetuneEngine: fine-tuning of a model in all its modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from m3_integrations.adapters.store_vectors import HELD_OUT
from m3_integrations.core.optional import import_optional
from m3_integrations.data.beir import JudgedCollection
from m3_integrations.data.qa_json import Source, load_qa_dataset
from m3_integrations.data.splits import split_by_text
from m3_integrations.llama_index.embedding import M3Embedding


class M3FinetuneEngine:
    """Fine-tuning engine for all modes of a model.

    Args:
        dataset: Training queries and corpus: an object with `.queries`, `.corpus` and `.relevant_docs`, such as an
            EmbeddingQAFinetuneDataset, the path of a JSON file of one, or a JudgedCollection.
        model: "m3-mini" (default), a local folder or a hub id; missing heads are added.
        model_output_path: A new folder for the model, which M3Embedding, M3Encoder and FlagEmbedding load.
        val_dataset: Queries that choose the best checkpoint; the original model is kept if no checkpoint is better.
            Default: a fifth of the training queries, drawn by `seed`, with no text on both sides.
        epochs: Passes over the queries; default 2.
        steps: Training steps, instead of `epochs`.
        negatives: Hard negatives per query, mined from the corpus with the model; default 3. With 0, only the other
            passages of a batch are negatives.
        metric: Metric of the validation; default "ndcg@10".
        seed: Seed of the split and of the training.
        device: Device of the training; default the best available.
        show_progress: Show progress bars.
        **options: Options of `m3_integrations.training.Stage`, such as `low_rank=16` or `parts=("sparse",)`.

    Raises:
        MissingExtra: If accelerate is not installed.
        ValueError: If a dataset is invalid.
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
        import_optional("accelerate", extra="train")
        train, validation = load_qa_dataset(dataset), None if val_dataset is None else load_qa_dataset(val_dataset)
        if validation is None:
            parts = split_by_text(train.queries, (1 - HELD_OUT, HELD_OUT), np.random.default_rng(seed))
            train, validation = JudgedCollection(train.passages, parts[0]), JudgedCollection(train.passages, parts[1])
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
        """Mine hard negatives and train.

        After an interruption, call it again to resume from the last checkpoint.

        Args:
            **train_kwargs: None is supported.

        Raises:
            ValueError: If there are any.
        """
        if train_kwargs:
            raise ValueError(
                f"finetune takes no arguments, got {sorted(train_kwargs)}; pass them to M3FinetuneEngine(...)"
            )
        from m3_integrations.training.finetuning import finetune
        from m3_integrations.training.trainer import TrainConfig

        self.result = finetune(
            self.model,
            self._train,
            self._validation,
            self.model_output_path,
            negatives=self._negatives,
            metric=self._metric,
            config=TrainConfig(seed=self._seed, device=self._device, show_progress=self._show_progress),
            **self._options,
        )

    def get_finetuned_model(self, **model_kwargs: Any) -> M3Embedding:
        """Load the trained model.

        Args:
            **model_kwargs: Fields of M3Embedding.

        Returns:
            The embedding model.

        Raises:
            FileNotFoundError: If `finetune` was not called.
        """
        if not self.model_output_path.is_dir():
            raise FileNotFoundError(f"there is not a model in {self.model_output_path} yet; call finetune() first")
        return M3Embedding(str(self.model_output_path), **{"device": self._device, **model_kwargs})

"""One training step: the worker's shard of a batch, its tokens, and the stage's objective."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from m3_integrations.core.encoded import Mode, Modes, SparseScore
from m3_integrations.models.checkpoint import Checkpoint
from m3_integrations.models.tokenization import SequenceTokenizer
from m3_integrations.training.data.batch import Batch
from m3_integrations.training.data.sampler import Sampler, Sampling
from m3_integrations.training.objective.collectives import all_gather, local_rows
from m3_integrations.training.objective.losses import Loss, gte_loss, m3_loss
from m3_integrations.training.objective.model import Representations, TokenBatch
from m3_integrations.training.objective.scores import ScoreLayout, lexical_mass, score_matrices, score_modes
from m3_integrations.training.stages import Stage


@dataclass(frozen=True)
class WorkerBatch:
    """One worker's shard of a batch.

    Attributes:
        batch: Its rows. If there are fewer rows than workers, an idle worker encodes another's row, so that all workers
            take part in collective calls.
        scale: Factor of its loss, so that the mean over workers equals the mean over rows.
        idle_passages: True for passages encoded by idle workers, which are not negatives; shape (passages of all
            workers,).
    """

    batch: Batch
    scale: float
    idle_passages: np.ndarray

    @classmethod
    def of(cls, batch: Batch, rank: int, workers: int) -> WorkerBatch:
        """Take the shard of worker `rank` out of `workers`."""
        shards = [batch.shard(each, workers) for each in range(workers)]
        counts = [len(each.rows) for each in shards]
        encoded = [each if each.rows else replace(batch, rows=batch.rows[:1]) for each in shards]
        idle = [np.full(len(each.passages), not count) for each, count in zip(encoded, counts, strict=True)]
        return cls(encoded[rank], counts[rank] * workers / len(batch.rows), np.concatenate(idle))


class BatchTokenizer:
    """Tokenizer of batches, with the prefixes and length limits of queries and passages."""

    def __init__(self, checkpoint: Checkpoint, sampling: Sampling) -> None:
        conventions, special = checkpoint.conventions, checkpoint.special
        self._pad = special.pad
        self._prefixes = (conventions.query_prefix, conventions.passage_prefix)
        self._tokenizers = [
            SequenceTokenizer(checkpoint.tokenizer, special, limit)
            for limit in sampling.max_lengths(conventions.max_length)
        ]

    def tokenize(self, batch: Batch) -> tuple[TokenBatch, TokenBatch]:
        """Tokenize the queries and the passages of a batch, each padded to the longest."""
        sides = zip(self._tokenizers, (batch.queries, batch.passages), self._prefixes, strict=True)
        queries, passages = (
            TokenBatch.of(tokenizer.sequences(texts, prefix)[0], self._pad) for tokenizer, texts, prefix in sides
        )
        return queries, passages


class TokenizedBatch(NamedTuple):
    """A worker's shard of a batch, and the tokens of its queries and passages."""

    shard: WorkerBatch
    queries: TokenBatch
    passages: TokenBatch


class WorkerBatches(Dataset[dict[str, TokenizedBatch]]):
    """Tokenized shards of one worker by step, each in a dict, as transformers' Trainer requires.

    A thread prepares the next step while the current one is trained.
    """

    def __init__(self, sampler: Sampler, tokenizer: BatchTokenizer, steps: int, rank: int, workers: int) -> None:
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._steps = steps
        self._rank = rank
        self._workers = workers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="m3-batches")
        self._next: tuple[int, Future[TokenizedBatch]] | None = None

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, TokenizedBatch]:
        ahead, self._next = self._next, None
        current = ahead[1] if ahead and ahead[0] == step else self._thread.submit(self._prepare, step)
        if step + 1 < self._steps:
            self._next = step + 1, self._thread.submit(self._prepare, step + 1)
        return {"batch": current.result()}

    def _prepare(self, step: int) -> TokenizedBatch:
        shard = WorkerBatch.of(self._sampler.batch(step), self._rank, self._workers)
        return TokenizedBatch(shard, *self._tokenizer.tokenize(shard.batch))


@dataclass(frozen=True)
class StageObjective:
    """Objective of a stage on one worker batch.

    Attributes:
        stage: Stage with the objective and its options.
        modes: Modes to train.
        weights: Weights of the modes in the summed score.
        sparse_score: Sparse score in the summed score, as the checkpoint's convention.
        worker_batch: The worker's shard of the batch.
    """

    stage: Stage
    modes: Modes
    weights: Mapping[Mode, float]
    sparse_score: SparseScore
    worker_batch: WorkerBatch

    def __call__(self, queries: Representations, passages: Representations) -> Loss:
        """Compute the loss of this worker's queries against the passages of all workers."""
        device = passages.ids.device
        groups = torch.from_numpy(self.worker_batch.batch.groups).to(device)
        layout = local_rows(ScoreLayout.of(groups, len(passages.ids)))
        return (self._gte if self.stage.objective == "gte" else self._m3)(queries, passages, layout)

    def _m3(self, queries: Representations, passages: Representations, layout: ScoreLayout) -> Loss:
        teacher = self.worker_batch.batch.teacher_scores
        return m3_loss(
            score_modes(queries, all_gather(passages), self.modes, reduced=self.stage.precision == "bfloat16"),
            layout,
            temperature=self.stage.temperature,
            variant=self.stage.variant,
            self_distillation=self.stage.self_distillation and len(self.modes) > 1,
            weights=self.weights_of(queries),
            teacher=None if teacher is None else torch.from_numpy(teacher).to(layout.groups.device),
            excluded=self._excluded_passages(layout),
        )

    def weights_of(self, queries: Representations) -> Mapping[Mode, float | Tensor]:
        """Return the weights of the summed score; for means of sparse weights one for each query."""
        weight = self.weights.get("sparse")
        if self.sparse_score == "sum" or not weight or "sparse" not in self.modes:
            return self.weights
        return {**self.weights, "sparse": weight / lexical_mass(queries.tensor("sparse"), queries.ids)[:, None]}

    def _gte(self, queries: Representations, passages: Representations, layout: ScoreLayout) -> Loss:
        all_queries, all_passages, excluded = all_gather(queries), all_gather(passages), self._excluded_passages(layout)
        terms = {
            str(mode): gte_loss(
                score_matrices(mode, all_queries, all_passages, layout),
                layout,
                temperature=self.stage.temperature,
                excluded=excluded,
            )
            for mode in self.modes
        }
        total = torch.stack(list(terms.values())).mean()
        return Loss(total, {name: term.detach() for name, term in terms.items()})

    def _excluded_passages(self, layout: ScoreLayout) -> Tensor | None:
        if not self.worker_batch.idle_passages.any():
            return None
        idle = torch.from_numpy(self.worker_batch.idle_passages).to(layout.groups.device).expand(len(layout.groups), -1)
        return idle.scatter(1, layout.positive[:, None], False)

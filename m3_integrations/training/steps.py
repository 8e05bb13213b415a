"""One step: the texts of a batch as tokens, this process's share of them, and what is asked of their scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from m3_integrations.core.checkpoint import Checkpoint
from m3_integrations.core.encoded import Mode
from m3_integrations.core.sequences import Sequencer
from m3_integrations.training.batch import Batch
from m3_integrations.training.losses import Loss, gte, m3
from m3_integrations.training.model import Representations, TokenBatch
from m3_integrations.training.processes import gather, spread
from m3_integrations.training.sampling import Sampler, Sampling
from m3_integrations.training.scores import Layout, directions, scores
from m3_integrations.training.stages import Stage


@dataclass(frozen=True)
class Share:
    """What one of several workers does of a batch.

    batch: its rows; where there are fewer rows than workers, an idle worker encodes one that is not its own, so that
    all work in step. scale: what its loss counts for, so that the mean over workers is the mean over all rows.
    idle: (passages of all workers,) True for those that idle workers encode, which are nobody's negatives.
    """

    batch: Batch
    scale: float
    idle: np.ndarray

    @classmethod
    def of(cls, batch: Batch, rank: int, workers: int) -> Share:
        shares = [batch.share(each, workers) for each in range(workers)]
        counts = [len(each.rows) for each in shares]
        working = [each if each.rows else replace(batch, rows=batch.rows[:1]) for each in shares]
        idle = [np.full(len(each.passages), not count) for each, count in zip(working, counts, strict=True)]
        return cls(working[rank], counts[rank] * workers / len(batch.rows), np.concatenate(idle))


class Shares(Dataset[dict[str, Share]]):
    """Step -> one worker's share of its batch. A dict, since transformers' Trainer carries nothing else."""

    def __init__(self, sampler: Sampler, steps: int, rank: int, workers: int) -> None:
        self._sampler = sampler
        self._steps = steps
        self._rank = rank
        self._workers = workers

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Share]:
        return {"share": Share.of(self._sampler.batch(step), self._rank, self._workers)}


class Reader:
    """Texts to batches of tokens, as a checkpoint reads queries and passages."""

    def __init__(self, checkpoint: Checkpoint, sampling: Sampling) -> None:
        conventions, special = checkpoint.conventions, checkpoint.special
        self._pad = special.pad
        self._prefixes = (conventions.query_prefix, conventions.passage_prefix)
        self._sequencers = [
            Sequencer(checkpoint.tokenizer, special, longest) for longest in sampling.longest(conventions.max_length)
        ]

    def read(self, batch: Batch) -> tuple[TokenBatch, TokenBatch]:
        """(queries, passages) of a batch, padded to the longest."""
        sides = zip(self._sequencers, (batch.queries, batch.passages), self._prefixes, strict=True)
        queries, passages = (
            TokenBatch.of(sequencer.sequences(texts, prefix)[0], self._pad) for sequencer, texts, prefix in sides
        )
        return queries, passages


@dataclass(frozen=True)
class Asked:
    """What a stage asks of the representations of one share: its objective, callable once a batch.

    weights: of the summed score that teaches.
    """

    stage: Stage
    modes: Collection[Mode]
    weights: Mapping[Mode, float]
    share: Share

    def __call__(self, queries: Representations, passages: Representations) -> Loss:
        device = passages.ids.device
        groups = torch.from_numpy(self.share.batch.groups).to(device)
        layout = spread(Layout.of(groups, len(passages.ids)))
        return (self._gte if self.stage.objective == "gte" else self._m3)(queries, passages, layout)

    def _m3(self, queries: Representations, passages: Representations, layout: Layout) -> Loss:
        teacher = self.share.batch.teacher
        return m3(
            scores(queries, gather(passages), self.modes),
            layout,
            temperature=self.stage.temperature,
            variant=self.stage.variant,
            self_distillation=self.stage.self_distillation and len(self.modes) > 1,
            weights=self.weights,
            teacher=None if teacher is None else torch.from_numpy(teacher).to(layout.groups.device),
            excluded=self._excluded(layout),
        )

    def _gte(self, queries: Representations, passages: Representations, layout: Layout) -> Loss:
        asked, answers, excluded = gather(queries), gather(passages), self._excluded(layout)
        terms = {
            str(mode): gte(
                directions(mode, asked, answers, layout), layout, temperature=self.stage.temperature, excluded=excluded
            )
            for mode in self.modes
        }
        total = torch.stack(list(terms.values())).mean()
        return Loss(total, {name: term.detach() for name, term in terms.items()})

    def _excluded(self, layout: Layout) -> Tensor | None:
        if not self.share.idle.any():
            return None
        idle = torch.from_numpy(self.share.idle).to(layout.groups.device).expand(len(layout.groups), -1)
        return idle.scatter(1, layout.positive[:, None], False)

"""Batches larger than memory: gradients by way of the representations (GradCache, Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs the representations of the whole batch, but each text's representation needs that text alone.
So every sub-batch is first encoded without a graph; the loss on the joined representations gives their gradients; and
each sub-batch is encoded again, with a graph, to carry its part of these gradients into the weights. The gradient is
the whole batch's; the activations are one sub-batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from m3_integrations.core.encoded import Mode
from m3_integrations.training.losses import Loss
from m3_integrations.training.model import Representations, TokenBatch, join

Objective = Callable[[Representations, Representations], Loss]


@dataclass(frozen=True)
class GradientCache:
    """Encodes in sub-batches of `rows` texts and gives each weight the gradient of the whole batch.

    model: a TrainableM3, or what wraps one (DistributedDataParallel, whose gradients are shared once a batch). modes:
    what to encode; None is all that the model has. Under autocast the model runs in the precision that autocast
    names, and the loss in float32. Dropout falls alike both times that a sub-batch is encoded.
    """

    model: nn.Module
    rows: int
    modes: Collection[Mode] | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a sub-batch has at least 1 text, got rows={self.rows}")

    def backward(self, queries: TokenBatch, passages: TokenBatch, objective: Objective, scale: float = 1.0) -> Loss:
        """Add to each weight's gradient `scale` times the objective's, and answer the loss, unscaled and detached.

        objective: from the representations of queries and passages to a Loss. It sees them in float32.
        A batch that needs no cutting is encoded once.
        """
        if max(len(queries.ids), len(passages.ids)) <= self.rows:
            return self._whole(queries, passages, objective, scale)
        device = queries.ids.device
        loss, asked = self._asked((queries, passages), objective, scale)
        after = RandomState.of(device)
        for i, (batch, random, gradients) in enumerate(asked, start=1):
            random.restore(device)
            with _unshared(self.model) if i < len(asked) else nullcontext():
                self._carry(batch, gradients)
        after.restore(device)
        return loss

    def _whole(self, queries: TokenBatch, passages: TokenBatch, objective: Objective, scale: float) -> Loss:
        found = self._encode(queries), self._encode(passages)
        with torch.autocast(queries.ids.device.type, enabled=False):
            loss = objective(*found)
            (scale * loss.total).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return Loss(loss.total.detach(), loss.terms)

    def _asked(self, batches: Sequence[TokenBatch], objective: Objective, scale: float) -> tuple[Loss, list[_Asked]]:
        """The loss, and what it asks of every sub-batch."""
        pieces, leaves = zip(*(self._encoded(batch) for batch in batches), strict=True)
        with torch.autocast(leaves[0].ids.device.type, enabled=False):
            loss = objective(*leaves)
            (scale * loss.total).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        asked = [each for some, whole in zip(pieces, leaves, strict=True) for each in _gradients(some, whole)]
        return Loss(loss.total.detach(), loss.terms), asked

    @torch.no_grad()
    def _encoded(self, batch: TokenBatch) -> tuple[list[_Piece], Representations]:
        """The sub-batches of a batch, and its representations: leaves of a new graph, without one of their own."""
        pieces, found = [], []
        for start in range(0, len(batch.ids), self.rows):
            some = batch.rows(start, start + self.rows)
            pieces.append(_Piece(some, RandomState.of(some.ids.device)))
            found.append(self._encode(some))
        whole = join(found)
        for mode in whole.modes:
            whole.part(mode).requires_grad_()
        return pieces, whole

    def _encode(self, batch: TokenBatch) -> Representations:
        with _same_precision(batch.ids.device):
            found: Representations = self.model(batch, self.modes)
            return found

    def _carry(self, batch: TokenBatch, gradients: Mapping[Mode, Tensor]) -> None:
        """From the gradients of a sub-batch's representations to those of the weights."""
        found = self._encode(batch)
        learning = [mode for mode in gradients if found.part(mode).requires_grad]
        if learning:
            with torch.autocast(batch.ids.device.type, enabled=False):
                torch.autograd.backward([found.part(mode) for mode in learning], [gradients[mode] for mode in learning])


class RandomState(NamedTuple):
    """Where torch's random numbers stand, on the CPU and on one device."""

    cpu: Tensor
    device: Tensor | None

    @classmethod
    def of(cls, device: torch.device) -> RandomState:
        there = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(*_named(device))
        return cls(torch.get_rng_state(), there)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(device).set_rng_state(self.device, *_named(device))


def _named(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # of which there is one


class _Piece(NamedTuple):
    """A sub-batch, and where the random numbers stood before it was encoded."""

    batch: TokenBatch
    random: RandomState


class _Asked(NamedTuple):
    """A sub-batch, where the random numbers stood, and the gradients of its representations."""

    batch: TokenBatch
    random: RandomState
    gradients: Mapping[Mode, Tensor]


def _gradients(pieces: Sequence[_Piece], whole: Representations) -> Iterator[_Asked]:
    """What is asked of each sub-batch, from the gradients of the whole; a mode that was not judged has none."""
    start = 0
    for batch, random in pieces:
        texts, length = batch.ids.shape
        gradients = {
            mode: gradient[start : start + texts]
            for mode in whole.modes
            if (gradient := whole.part(mode).grad) is not None
        }
        cut = {mode: each if mode == "dense" else each[:, :length] for mode, each in gradients.items()}
        yield _Asked(batch, random, cut)
        start += texts


def _same_precision(device: torch.device) -> AbstractContextManager[Any]:
    """The autocast that is on, keeping no converted weights: in older versions of torch, those that a pass without a
    graph left would cut the next pass off from its gradients."""
    kind = device.type
    on = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False) if on else nullcontext()


def _unshared(model: nn.Module) -> AbstractContextManager[Any]:
    """Until the last sub-batch, DistributedDataParallel need not share gradients between processes."""
    no_sync = getattr(model, "no_sync", None)
    return nullcontext() if no_sync is None else no_sync()

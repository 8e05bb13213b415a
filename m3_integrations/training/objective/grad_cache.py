"""Gradient caching for batches beyond memory (GradCache, Gao et al., arXiv 2101.06983).

A contrastive loss needs the representations of the whole batch, but each representation depends on its own text only.
Every sub-batch is first encoded without a graph. The loss on all representations gives their gradients. Each sub-batch
is then encoded again, with a graph, and its share of these gradients is backpropagated into the weights. The result is
the gradient of the whole batch with the activations of one sub-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from m3_integrations.core.encoded import Mode, Modes
from m3_integrations.training.objective.losses import Loss
from m3_integrations.training.objective.model import Representations, TokenBatch, concatenate

_PASSES = 2  # fastest of 1, 2, 3 and 5 on an H100
_WORTHWHILE = 0.9  # of the padded tokens, at most, for several passes

Objective = Callable[[Representations, Representations], Loss]


@dataclass(frozen=True)
class GradientCache:
    """Backpropagation of a batch in sub-batches.

    Under autocast, the model runs in autocast's precision and the loss in float32. Both passes over a sub-batch draw
    the same dropout.

    Attributes:
        model: A TrainableM3 or a wrapper of one; DistributedDataParallel synchronizes gradients once per batch.
        rows: Texts per sub-batch.
        modes: Modes to encode; None for all modes of the model.

    Raises:
        ValueError: If rows is below 1.
    """

    model: nn.Module
    rows: int
    modes: Modes | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def backward(self, queries: TokenBatch, passages: TokenBatch, objective: Objective, scale: float = 1.0) -> Loss:
        """Add the gradient of `scale` times the loss to the weights.

        A batch of at most `rows` texts per side is encoded once.

        Args:
            queries: Tokens of the queries.
            passages: Tokens of the passages.
            objective: Maps the float32 representations of queries and passages to a loss.
            scale: Factor of the gradient; default 1.

        Returns:
            The loss, unscaled and detached.
        """
        if max(len(queries.ids), len(passages.ids)) <= self.rows:
            return self._backward_once(queries, passages, objective, scale)
        device = queries.ids.device
        loss, replays = self._representation_gradients((queries, passages), objective, scale)
        after = RngState.of(device)
        for i, (batch, rng, gradients) in enumerate(replays, start=1):
            rng.restore(device)
            with _no_sync(self.model) if i < len(replays) else nullcontext():
                self._backpropagate(batch, gradients)
        after.restore(device)
        return loss

    def _backward_once(self, queries: TokenBatch, passages: TokenBatch, objective: Objective, scale: float) -> Loss:
        representations = self._encode(queries), self._encode(passages)
        with torch.autocast(queries.ids.device.type, enabled=False):
            loss = objective(*representations)
            (scale * loss.total).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return Loss(loss.total.detach(), loss.terms)

    def _representation_gradients(
        self, batches: Sequence[TokenBatch], objective: Objective, scale: float
    ) -> tuple[Loss, list[_ReplayBatch]]:
        """The loss, and its gradients with respect to every sub-batch's representations."""
        sub_batches, leaves = zip(*(self._encode_without_graph(batch) for batch in batches), strict=True)
        with torch.autocast(leaves[0].ids.device.type, enabled=False):
            loss = objective(*leaves)
            (scale * loss.total).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        replays = [each for side in zip(sub_batches, leaves, strict=True) for each in _split_gradients(*side)]
        return Loss(loss.total.detach(), loss.terms), replays

    @torch.no_grad()
    def _encode_without_graph(self, batch: TokenBatch) -> tuple[list[_SubBatch], Representations]:
        """The sub-batches of a batch, and its representations as leaves of a new graph."""
        sub_batches, encoded = [], []
        for start in range(0, len(batch.ids), self.rows):
            rows = batch.rows(start, start + self.rows)
            sub_batches.append(_SubBatch(rows, RngState.of(rows.ids.device)))
            with _autocast_without_cache(rows.ids.device):
                encoded.append(self._encode(rows))
        leaves = concatenate(encoded)
        for mode in leaves.modes:
            leaves.tensor(mode).requires_grad_()
        return sub_batches, leaves

    def _encode(self, batch: TokenBatch) -> Representations:
        if batch.ids.device.type == "cpu":
            return cast(Representations, self.model(batch, self.modes))
        return encode_by_length(self.model, batch, self.modes)

    def _backpropagate(self, batch: TokenBatch, gradients: Mapping[Mode, Tensor]) -> None:
        """Backpropagate the gradients of a sub-batch's representations into the weights."""
        with _autocast_without_cache(batch.ids.device):
            encoded = self._encode(batch)
        modes = [mode for mode in gradients if encoded.tensor(mode).requires_grad]
        if modes:
            with torch.autocast(batch.ids.device.type, enabled=False):
                torch.autograd.backward([encoded.tensor(mode) for mode in modes], [gradients[mode] for mode in modes])


def encode_by_length(model: nn.Module, batch: TokenBatch, modes: Modes | None) -> Representations:
    """Encode a batch in a few passes of texts of similar length, if that saves much padding.

    Returns:
        The same representations, in the order of the batch.
    """
    lengths = batch.mask.sum(1).cpu()
    order = lengths.argsort()
    parts = [rows for rows in order.tensor_split(_PASSES) if len(rows)]
    padded = sum(len(rows) * int(lengths[rows[-1]]) for rows in parts)
    if padded > _WORTHWHILE * batch.ids.numel():
        return cast(Representations, model(batch, modes))
    joined = concatenate([model(batch.take(rows.to(batch.ids.device)), modes) for rows in parts])
    return joined.take(order.argsort().to(batch.ids.device))


class RngState(NamedTuple):
    """State of torch's random number generators of the CPU and of one device."""

    cpu: Tensor
    device: Tensor | None

    @classmethod
    def of(cls, device: torch.device) -> RngState:
        """Read the current state; `device` may be the CPU."""
        state = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(*_device_args(device))
        return cls(torch.get_rng_state(), state)

    def restore(self, device: torch.device) -> None:
        """Set the generators to this state."""
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(device).set_rng_state(self.device, *_device_args(device))


def _device_args(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # its functions take no device: there is one


class _SubBatch(NamedTuple):
    """A sub-batch and the random state before it was encoded."""

    batch: TokenBatch
    rng: RngState


class _ReplayBatch(NamedTuple):
    """A sub-batch, the random state before its encoding, and its representations' gradients."""

    batch: TokenBatch
    rng: RngState
    gradients: Mapping[Mode, Tensor]


def _split_gradients(sub_batches: Sequence[_SubBatch], leaves: Representations) -> Iterator[_ReplayBatch]:
    """Split a batch's gradients among its sub-batches; modes unused by the loss have none."""
    start = 0
    for batch, rng in sub_batches:
        texts, length = batch.ids.shape
        gradients = {
            mode: gradient[start : start + texts]
            for mode in leaves.modes
            if (gradient := leaves.tensor(mode).grad) is not None
        }
        cut = {mode: each if mode == "dense" else each[:, :length] for mode, each in gradients.items()}
        yield _ReplayBatch(batch, rng, cut)
        start += texts


def _autocast_without_cache(device: torch.device) -> AbstractContextManager[Any]:
    """The active autocast without its cache of converted weights.

    In older versions of torch, weights cached in a pass without a graph block the gradients of the next pass.
    """
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.get_autocast_dtype(device.type), cache_enabled=False)


def _no_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """Skip DistributedDataParallel's synchronization, needed by the last sub-batch only."""
    no_sync = getattr(model, "no_sync", None)
    return nullcontext() if no_sync is None else no_sync()

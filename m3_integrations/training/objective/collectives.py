"""Cross-process negatives: a differentiable all-gather, and the layout of local rows."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn import functional

from m3_integrations.training.objective.model import Representations
from m3_integrations.training.objective.scores import ScoreLayout

T = TypeVar("T")


def all_gather(local: Representations) -> Representations:
    """Gather the representations of all processes, in order of rank; differentiable.

    A collective call: every process takes part, with the same modes; numbers of texts and lengths may differ. The
    gradient is the sum over all processes. If the loss is a mean over each process's rows and gradients are averaged
    over processes with equal numbers of rows, the result equals one process with the joined batch.

    Args:
        local: Representations of this process's texts.

    Returns:
        Representations of all texts; `local` itself in a single process.
    """
    if not _is_distributed():
        return local
    shapes = _gather_tensors(torch.tensor(local.ids.shape, device=local.ids.device))
    texts, length = (int(size) for size in shapes.max(dim=0).values)
    counts = shapes[:, 0].tolist()

    def gather(tensor: Tensor) -> Tensor:
        shape = (texts, *tensor.shape[1:]) if tensor is local.dense else (texts, length, *tensor.shape[2:])
        stacked: Tensor = _AllGather.apply(_pad(tensor, shape))  # type: ignore[no-untyped-call]  # torch's own
        return torch.cat([stacked[rank, :count] for rank, count in enumerate(counts)])

    return Representations(
        None if local.dense is None else gather(local.dense),
        None if local.sparse is None else gather(local.sparse),
        None if local.multi_vector is None else gather(local.multi_vector),
        gather(local.ids),
        gather(local.content.byte()).bool(),  # gloo carries no bool
    )


def local_rows(local: ScoreLayout) -> ScoreLayout:
    """Lay out this process's rows against the columns of all processes.

    Args:
        local: Layout of this process alone.

    Returns:
        Layout whose columns are in the order of `all_gather`; `local` itself in a single process.
    """
    if not _is_distributed():
        return local
    counts = _gather_tensors(torch.tensor([len(local.positives), local.passages], device=local.groups.device))
    queries, passages = counts[: distributed.get_rank()].sum(dim=0).tolist()
    longest = int(counts[:, 0].max())
    positives = _gather_tensors(functional.pad(local.positives, (0, longest - len(local.positives))))
    starts = counts.cumsum(dim=0)[:, 1] - counts[:, 1]
    return ScoreLayout(
        local.query + queries,
        torch.where(local.missing_mask(), -1, local.groups + passages),
        torch.cat([positives[rank, : counts[rank, 0]] + starts[rank] for rank in range(len(counts))]),
        int(counts[:, 1].sum()),
    )


def broadcast(value: T) -> T:
    """Return the first process's value in every process."""
    if not _is_distributed():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


class _AllGather(torch.autograd.Function):
    """Differentiable `_gather_tensors`."""

    @staticmethod
    def forward(_ctx: Any, local: Tensor) -> Tensor:
        return _gather_tensors(local)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # all_reduce works in place
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _gather_tensors(local: Tensor) -> Tensor:
    """Stack the equally shaped tensors of all processes, shape (processes, ...)."""
    tensors = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
    distributed.all_gather(tensors, local.contiguous())
    return torch.stack(tensors)


def _pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    missing = [target - size for target, size in zip(shape, tensor.shape, strict=True)]
    return functional.pad(tensor, [each for size in reversed(missing) for each in (0, size)]).contiguous()

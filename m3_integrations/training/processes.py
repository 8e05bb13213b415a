"""Negatives from all processes: representations gathered so that gradients find their way back."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn import functional

from m3_integrations.training.model import Representations
from m3_integrations.training.scores import Layout

T = TypeVar("T")


def gather(mine: Representations) -> Representations:
    """The texts of all processes, by rank; what comes back as gradient is the sum of what all of them ask.

    Every process calls it at the same time, with the same modes; they may differ in texts and lengths. Where the loss
    is a mean over each process's own rows and gradients are averaged over processes that have equally many, it all
    equals one process with the joined batch. A process alone is answered its own texts.
    """
    if not _in_company():
        return mine
    shapes = _everyone(torch.tensor(mine.ids.shape, device=mine.ids.device))
    texts, length = (int(size) for size in shapes.max(dim=0).values)
    counts = shapes[:, 0].tolist()

    def gathered(part: Tensor) -> Tensor:
        shape = (texts, *part.shape[1:]) if part is mine.dense else (texts, length, *part.shape[2:])
        everyone: Tensor = _AllGather.apply(_padded(part, shape))  # type: ignore[no-untyped-call]  # torch's own
        return torch.cat([everyone[rank, :count] for rank, count in enumerate(counts)])

    return Representations(
        None if mine.dense is None else gathered(mine.dense),
        None if mine.sparse is None else gathered(mine.sparse),
        None if mine.multi_vector is None else gathered(mine.multi_vector),
        gathered(mine.ids),
        gathered(mine.kept.byte()).bool(),  # gloo carries no bool
    )


def spread(mine: Layout) -> Layout:
    """This process's rows against the columns of all processes, in the order in which `gather` joins them."""
    if not _in_company():
        return mine
    counts = _everyone(torch.tensor([len(mine.positives), mine.passages], device=mine.groups.device))
    queries, passages = counts[: distributed.get_rank()].sum(dim=0).tolist()
    most = int(counts[:, 0].max())
    positives = _everyone(functional.pad(mine.positives, (0, most - len(mine.positives))))
    starts = counts.cumsum(dim=0)[:, 1] - counts[:, 1]
    return Layout(
        mine.query + queries,
        torch.where(mine.absent(), -1, mine.groups + passages),
        torch.cat([positives[rank, : counts[rank, 0]] + starts[rank] for rank in range(len(counts))]),
        int(counts[:, 1].sum()),
    )


def told(value: T) -> T:
    """What the first process says, in every process."""
    if not _in_company():
        return value
    said: list[Any] = [value]
    distributed.broadcast_object_list(said)
    first: T = said[0]
    return first


class _AllGather(torch.autograd.Function):
    """(processes, ...) out of every process's tensor, which have one shape."""

    @staticmethod
    def forward(_ctx: Any, mine: Tensor) -> Tensor:
        return _everyone(mine)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # all_reduce writes into it
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


def _in_company() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _everyone(mine: Tensor) -> Tensor:
    """(processes, ...) every process's tensor, which have one shape."""
    everyone = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, mine.contiguous())
    return torch.stack(everyone)


def _padded(part: Tensor, shape: tuple[int, ...]) -> Tensor:
    missing = [size - there for size, there in zip(shape, part.shape, strict=True)]
    return functional.pad(part, [each for size in reversed(missing) for each in (0, size)]).contiguous()

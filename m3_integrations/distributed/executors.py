"""Executors: this process, a pool of processes on this machine, or actors on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from m3_integrations.core.optional import import_optional

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 2  # items submitted per worker: it is never idle, and a stream is not read far before it is needed
# The rest is for the tasks that read the passages, which would otherwise never be scheduled, and for restarting the
# actors of a lost machine on another.
_ACTOR_CPU_FRACTION = 0.4


class Executor(Protocol):
    """Applies one function to many items, with state that each worker loads once."""

    def map(self, load: Callable[[], S], work: Callable[[S, T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield work(load(), item) for each item, in order.

        Items are taken from the stream as workers become idle.

        Args:
            load: Loads the state of a worker, once per worker.
            work: Function of a worker's state and an item.
            items: Items.

        All arguments and results must be picklable: functions of a module, and picklable values.
        """


class InProcess:
    """Executor in this process, for small inputs and tests."""

    def map(self, load: Callable[[], S], work: Callable[[S, T], R], items: Iterable[T]) -> Iterator[R]:
        shared = load()
        return (work(shared, item) for item in items)


@dataclass(frozen=True)
class ProcessPool:
    """Executor on spawned processes.

    Args:
        count: Number of processes; None for one per CPU core.
    """

    count: int | None = None

    def map(self, load: Callable[[], S], work: Callable[[S, T], R], items: Iterable[T]) -> Iterator[R]:
        count = self.count or os.cpu_count() or 1
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        with ProcessPoolExecutor(count, context, _load, (load,)) as pool:
            yield from _in_order(lambda item: pool.submit(_work, work, item), Future.result, items, count * _AHEAD)


@dataclass(frozen=True)
class RayActors:
    """Executor on actors of the Ray cluster that this process is connected to.

    If the process is not connected, it connects to a cluster, or starts one on this machine. The actors of a lost
    machine restart on another and repeat their items.

    Args:
        count: Number of actors; None for one per CPU core, or per GPU if `gpus` is not 0.
        gpus: GPUs per actor; may be a fraction.

    Raises:
        MissingExtra: In `map`, if Ray is not installed.
    """

    count: int | None = None
    gpus: float = 0.0

    def map(self, load: Callable[[], S], work: Callable[[S, T], R], items: Iterable[T]) -> Iterator[R]:
        ray: Any = import_optional("ray", extra="ray")
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        resources = ray.cluster_resources()
        count = self.count or max(1, int(resources.get("GPU", 0) / self.gpus if self.gpus else resources["CPU"]))
        cores = min(1.0, _ACTOR_CPU_FRACTION * resources["CPU"] / count)
        actor = ray.remote(num_cpus=cores, num_gpus=self.gpus, max_restarts=-1, max_task_retries=-1)(_Actor)
        actors = deque(actor.remote(load) for _ in range(count))

        def submit(item: T) -> Any:
            actors.rotate(-1)
            return actors[0].work.remote(work, item)

        try:
            yield from _in_order(submit, ray.get, items, count * _AHEAD)
        finally:
            for each in actors:
                ray.kill(each)


class _Actor:
    def __init__(self, load: Callable[[], Any]) -> None:
        self.shared = load()

    def work(self, work: Callable[[Any, Any], Any], item: Any) -> Any:
        return work(self.shared, item)


def _in_order(submit: Callable[[T], Any], result: Callable[[Any], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Submit items, at most `ahead` at a time, and yield their results in order."""
    pending: deque[Any] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= ahead:
            yield result(pending.popleft())
    while pending:
        yield result(pending.popleft())


_shared: Any = None


def _load(load: Callable[[], Any]) -> None:
    global _shared  # the state of a process in the pool, loaded once
    _shared = load()


def _work(work: Callable[[Any, Any], R], item: Any) -> R:
    return work(_shared, item)

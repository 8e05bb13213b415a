"""Who does the work: a pool of processes on this machine, or actors on a Ray cluster."""

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
_AHEAD = 2  # items a worker has waiting: it never idles, and a stream is not read far before it is needed
# Of a cluster's cores what actors claim: whatever feeds them needs some too and would else wait for ever, and an actor
# whose machine is lost must find room on another.
_ROOM = 0.4


class Executor(Protocol):
    """Does the same to many things. What they share is loaded once a worker."""

    def map(self, load: Callable[[], S], work: Callable[[S, T], R], items: Iterable[T]) -> Iterator[R]:
        """work(load(), item) for every item, in their order; items are taken from the stream as workers come free.

        load, work and items travel to other processes: functions of a module, values that can be pickled.
        """


class InProcess:
    """This process: for what is small, and for tests."""

    def map(self, load: Callable[[], S], work: Callable[[S, T], R], items: Iterable[T]) -> Iterator[R]:
        shared = load()
        return (work(shared, item) for item in items)


@dataclass(frozen=True)
class ProcessPool:
    """A pool of processes, spawned. count: how many; None: one for each core."""

    count: int | None = None

    def map(self, load: Callable[[], S], work: Callable[[S, T], R], items: Iterable[T]) -> Iterator[R]:
        count = self.count or os.cpu_count() or 1
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        with ProcessPoolExecutor(count, context, _load, (load,)) as pool:
            yield from _in_order(lambda item: pool.submit(_work, work, item), Future.result, items, count * _AHEAD)


@dataclass(frozen=True)
class RayActors:
    """Actors on the Ray cluster that this process is connected to; it connects, or starts one here, where it is not.

    count: how many actors; None: one for each core, or GPU. gpus: how much of a GPU each has. An actor that is lost
    with its machine is started anew elsewhere and its items are done again. Raises MissingExtra.
    """

    count: int | None = None
    gpus: float = 0.0

    def map(self, load: Callable[[], S], work: Callable[[S, T], R], items: Iterable[T]) -> Iterator[R]:
        ray: Any = import_optional("ray", extra="ray")
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        there = ray.cluster_resources()
        count = self.count or max(1, int(there.get("GPU", 0) / self.gpus if self.gpus else there["CPU"]))
        cores = min(1.0, _ROOM * there["CPU"] / count)
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
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= ahead:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


_shared: Any = None


def _load(load: Callable[[], Any]) -> None:
    global _shared  # what a process of the pool keeps between its items
    _shared = load()


def _work(work: Callable[[Any, Any], R], item: Any) -> R:
    return work(_shared, item)

"""Micro-batching of concurrent calls from any event loop and thread, and async wrappers."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar

from m3_integrations.core.forking import ForkSafeLock

T = TypeVar("T")
Item = TypeVar("Item")
Call: TypeAlias = "Callable[[list[Item]], Sequence[T]]"
MAX_BATCH = 64
LONGEST_WAIT = 0.002
_QUIET = 0.0005


class _Request(NamedTuple):
    item: Any
    size: int
    result: Future[Any]


# A call has a queue only while requests wait in it.
_queues: dict[Call[Any, Any], deque[_Request]] = {}
_lock = ForkSafeLock()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_queues.clear)  # their threads and callers are the parent's


async def micro_batched(call: Call[Item, T], item: Item, size: int = 1) -> T:
    """Return `call([item])[0]`, computed together with the items of concurrent calls.

    An item, such as a text, waits half a millisecond for others, at most `LONGEST_WAIT` (2 ms); items that arrive while
    the call runs form the next batch, whose sizes add up to at most `MAX_BATCH` (64). If a call fails, halves of its
    batch are tried, so that an error reaches only the item that causes it. Items whose task was cancelled before the
    call are skipped.

    Args:
        call: Function from items to results in their order; it runs on a thread. Equal functions share batches: a bound
            method of one object does, a lambda does not.
        item: The item.
        size: Number of texts in the item; one above `MAX_BATCH` has a batch of its own.
    """
    request = _Request(item, size, Future())
    _enqueue(call, request)
    result: T = await asyncio.wrap_future(request.result)
    return result


def _enqueue(call: Call[Any, Any], request: _Request) -> None:
    with _lock:
        if call in _queues:
            _queues[call].append(request)
            return
        # The thread waits for this lock, and ends with its queue.
        threading.Thread(target=_serve, args=(call,), name="m3-microbatch").start()
        _queues[call] = deque([request])


def _serve(call: Call[Any, Any]) -> None:
    """Answer the requests of a call until none are left."""
    while batch := _next(call):
        waiting = [request for request in batch if request.result.set_running_or_notify_cancel()]
        if waiting:
            _answer(call, waiting)


def _next(call: Call[Any, Any]) -> list[_Request]:
    """Return requests of together at most `MAX_BATCH`, or one; an empty queue is removed."""
    with _lock:
        queue = _queues[call]
    _wait_for_more(queue)
    with _lock:
        if not queue:
            del _queues[call]
        batch: list[_Request] = []
        size = 0
        while queue and (not batch or size + queue[0].size <= MAX_BATCH):
            size += queue[0].size
            batch.append(queue.popleft())
        return batch


def _wait_for_more(queue: deque[_Request]) -> None:
    """Wait while requests keep arriving."""
    until = time.monotonic() + LONGEST_WAIT
    seen = 0
    while seen < len(queue) < MAX_BATCH and time.monotonic() < until:
        seen = len(queue)
        time.sleep(_QUIET)


def _answer(call: Call[Any, Any], requests: Sequence[_Request]) -> None:
    try:
        answered = list(zip(requests, call([each.item for each in requests]), strict=True))
    except BaseException as error:  # every caller waits for a result or an error
        if len(requests) == 1:
            requests[0].result.set_exception(error)
            return
    else:
        for each, result in answered:
            each.result.set_result(result)
        return
    half = len(requests) // 2
    _answer(call, requests[:half])
    _answer(call, requests[half:])


P = ParamSpec("P")
S = TypeVar("S")


async def to_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call on a thread and await it."""
    return await asyncio.to_thread(call, *args, **kwargs)


def as_async(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Return an async version of a method, which runs on a thread."""

    @wraps(method)
    async def on_a_thread(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await to_thread(method, self, *args, **kwargs)

    return on_a_thread

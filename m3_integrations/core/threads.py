"""Async over sync: the one place where a blocking call leaves the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


async def on_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await a blocking call on a thread, so that the event loop goes on."""
    return await asyncio.to_thread(call, *args, **kwargs)


def awaited(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The same method, to be awaited: it runs on a thread, so that the event loop goes on."""

    @wraps(method)
    async def on_a_thread(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await on_thread(method, self, *args, **kwargs)

    return on_a_thread

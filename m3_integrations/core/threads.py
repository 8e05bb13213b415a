"""Async over sync: the one place where a blocking call leaves the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def on_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await a blocking call on a thread, so that the event loop goes on."""
    return await asyncio.to_thread(call, *args, **kwargs)

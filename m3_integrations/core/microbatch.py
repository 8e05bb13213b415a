"""Single texts that are asked for at the same time, from any event loop and thread, answered by one forward pass."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")
Call: TypeAlias = "Callable[[list[str]], Sequence[T]]"

MOST = 64
LONGEST_WAIT = 0.002
_QUIET = 0.0005


class _Asked(NamedTuple):
    text: str
    answer: Future[Any]


# A call has a line here only while somebody waits in it: nothing is kept that could go stale.
_lines: dict[Call[Any], deque[_Asked]] = {}
_lock = threading.Lock()


async def gathered(call: Call[T], text: str) -> T:
    """What `call([text])[0]` answers, computed together with the texts that others ask the same call for meanwhile.

    call: answers a list of texts one by one, in their order; it runs on a thread. Calls are the same where they are
    equal, as the bound method of one object is, so that a lambda gathers nothing.
    A text on an idle line goes half a millisecond after the last that came with it, and no later than `LONGEST_WAIT`
    (2 ms); one that comes while the call runs goes in the next, and at most `MOST` (64) go together. Where a call
    fails, its texts are asked again in halves: an error reaches those alone who get it alone too. A text whose asker
    was cancelled before the call began is left out.
    """
    asked = _Asked(text, Future())
    _queue(call, asked)
    answer: T = await asyncio.wrap_future(asked.answer)
    return answer


def _queue(call: Call[Any], asked: _Asked) -> None:
    with _lock:
        if call in _lines:
            _lines[call].append(asked)
            return
        # The thread ends with its line, which it finds once this lock is free.
        threading.Thread(target=_serve, args=(call,), name="m3-microbatch").start()
        _lines[call] = deque([asked])


def _serve(call: Call[Any]) -> None:
    """Answer all who wait for a call, and those who come meanwhile."""
    while batch := _next(call):
        waiting = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
        if waiting:
            _answer(call, waiting)


def _next(call: Call[Any]) -> list[_Asked]:
    """The first in line, up to `MOST`; a line in which nobody waits is closed."""
    with _lock:
        line = _lines[call]
    _linger(line)
    with _lock:
        if not line:
            del _lines[call]
        return [line.popleft() for _ in range(min(MOST, len(line)))]


def _linger(line: deque[_Asked]) -> None:
    """Wait while others keep coming."""
    until = time.monotonic() + LONGEST_WAIT
    seen = 0
    while seen < len(line) < MOST and time.monotonic() < until:
        seen = len(line)
        time.sleep(_QUIET)


def _answer(call: Call[Any], asked: Sequence[_Asked]) -> None:
    try:
        found = list(zip(asked, call([each.text for each in asked]), strict=True))
    except BaseException as error:  # whatever it is, somebody waits to hear of it
        if len(asked) == 1:
            asked[0].answer.set_exception(error)
            return
    else:
        for each, answer in found:
            each.answer.set_result(answer)
        return
    half = len(asked) // 2
    _answer(call, asked[:half])
    _answer(call, asked[half:])

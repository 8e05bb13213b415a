"""Locks and native code across `os.fork`: forks wait until they are free.

A forked child has only the thread that forked. A lock that another thread held stays locked in it for ever, and so do
the locks inside SQLite and torch.
"""

from __future__ import annotations

import os
import sys
import threading
from weakref import WeakSet

from m3_integrations.core.errors import ForkedProcess

FORK_WAIT = 10.0  # seconds


class _ForkBarrier:
    """Threads inside a block that a fork waits for; blocks may be nested."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._depths: dict[int, int] = {}
        self._forking: int | None = None
        self.was_entered = False

    def enter(self) -> None:
        thread = threading.get_ident()
        with self._changed:
            while self._forking not in (None, thread) and thread not in self._depths:
                self._changed.wait()
            self._depths[thread] = self._depths.get(thread, 0) + 1
            self.was_entered = True

    def leave(self) -> None:
        thread = threading.get_ident()
        with self._changed:
            self._depths[thread] -= 1
            if not self._depths[thread]:
                del self._depths[thread]
            if self._forking is not None:
                self._changed.notify_all()

    def before_fork(self) -> None:
        thread = threading.get_ident()
        self._changed.acquire()
        self._forking = thread
        self._changed.wait_for(lambda: self._depths.keys() <= {thread}, FORK_WAIT)

    def after_fork_in_parent(self) -> None:
        self._forking = None
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        thread = threading.get_ident()
        self._changed = threading.Condition(threading.Lock())
        self._depths = {id: depth for id, depth in self._depths.items() if id == thread}
        self._forking = None


_barrier = _ForkBarrier()


class delay_forks:  # a context manager, named as a function
    """Context manager: forks of this process wait until the block is left, at most FORK_WAIT seconds."""

    def __enter__(self) -> None:
        _barrier.enter()

    def __exit__(self, *_: object) -> None:
        _barrier.leave()


class ForkSafeLock:
    """A reentrant lock that is free in a forked child, with the values that it protects complete."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None
        _locks.add(self)

    def acquire(self, blocking: bool = True) -> bool:
        """Acquire the lock; return False if it is not free and `blocking` is False."""
        _barrier.enter()
        acquired = self._lock.acquire(blocking)
        if acquired:
            self._owner = threading.get_ident()
        else:
            _barrier.leave()
        return acquired

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()
        _barrier.leave()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def after_fork_in_child(self) -> None:
        """Replace a lock of another thread, which held it for longer than the fork waited."""
        if self._owner != threading.get_ident():
            self._lock = threading.RLock()


_locks: WeakSet[ForkSafeLock] = WeakSet()


class ProcessBound:
    """A check that an object is used in the process that made it.

    Args:
        name: What cannot be used after a fork, for the error.
    """

    def __init__(self, name: str) -> None:
        self._name, self._process = name, os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this is a forked child of the process that made the object."""
        return self._process != os.getpid()

    def check(self) -> None:
        """Raise ForkedProcess in a forked child."""
        if self.is_forked:
            raise ForkedProcess(
                f"{self._name} cannot be used after a fork of the process that made it; make it in the child process, "
                "or start processes with multiprocessing.get_context('spawn')"
            )


def _after_fork_in_child() -> None:
    _barrier.after_fork_in_child()
    for lock in list(_locks):
        lock.after_fork_in_child()
    if _barrier.was_entered:
        _use_one_thread()


def _use_one_thread() -> None:
    """Compute on one thread: the pools of OpenMP refer to threads that only the parent has, and would wait for them."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if faiss := sys.modules.get("faiss"):
        faiss.omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_barrier.before_fork,
        after_in_parent=_barrier.after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )

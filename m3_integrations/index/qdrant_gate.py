"""Many readers or one writer, so that within this process a search sees all of a write or nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """A writer waits for the readers that are in, and lets no new ones in before it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._writing, self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._writing:
            with self._changed:
                self._changed.wait_for(lambda: not self._readers)
            yield

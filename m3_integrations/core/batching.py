"""Batches of sequences of like length, bounded by the tokens that they hold once padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Batches:
    """Takes sequences longest first, in batches of at most `tokens` padded tokens; a longer one is a batch of its own.

    The longest come first so that memory which does not suffice shows at once, and `halve` answers it.
    padding: the tokens of padding in a batch at most; None sets no bound. Computing them costs time, as a batch does.
    """

    def __init__(self, lengths: Sequence[int], tokens: int, padding: int | None = None) -> None:
        if tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {tokens}")
        self._lengths = np.asarray(lengths, np.int64)
        self._order = np.argsort(-self._lengths, kind="stable")
        self._start = 0
        self._padding = padding
        self.tokens = tokens

    @property
    def left(self) -> int:
        """How many sequences were not taken yet."""
        return len(self._order) - self._start

    def peek(self) -> npt.NDArray[np.int64]:
        """The positions of the next batch."""
        longest = max(1, int(self._lengths[self._order[self._start]]))
        batch = self._order[self._start : self._start + max(1, self.tokens // longest)]
        if self._padding is None:
            return batch
        padding = np.cumsum(longest - self._lengths[batch])
        return batch[: max(1, int(np.searchsorted(padding, self._padding, side="right")))]

    def take(self) -> None:
        """The next batch is done."""
        self._start += len(self.peek())

    def halve(self) -> None:
        """Make the next batch, and all that follow, half as large."""
        batch = self.peek()
        self.tokens = max(1, len(batch) * int(self._lengths[batch[0]]) // 2)

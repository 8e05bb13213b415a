"""Batches of sequences of like length, bounded by the tokens that they hold once padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Batches:
    """Takes sequences longest first, in batches of at most `tokens` tokens; a longer one is a batch of its own.

    The longest come first so that memory which does not suffice shows at once, and `halve` answers it.
    padded: whether each sequence counts as long as the longest of its batch.
    """

    def __init__(self, lengths: Sequence[int], tokens: int, *, padded: bool = True) -> None:
        if tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {tokens}")
        self._lengths = np.asarray(lengths, np.int64)
        self._order = np.argsort(-self._lengths, kind="stable")
        self._start = 0
        self._padded = padded
        self.tokens = tokens

    @property
    def left(self) -> int:
        """How many sequences were not taken yet."""
        return len(self._order) - self._start

    def peek(self) -> npt.NDArray[np.int64]:
        """The positions of the next batch."""
        longest = max(1, int(self._lengths[self._order[self._start]]))
        if self._padded:
            return self._order[self._start : self._start + max(1, self.tokens // longest)]
        some = self._order[self._start : self._start + self.tokens]
        held = np.cumsum(self._lengths[some])
        return some[: max(1, int(np.searchsorted(held, self.tokens, side="right")))]

    def take(self) -> None:
        """The next batch is done."""
        self._start += len(self.peek())

    def halve(self) -> None:
        """Make the next batch, and all that follow, half as large."""
        batch = self._lengths[self.peek()]
        self.tokens = max(1, int(len(batch) * batch[0] if self._padded else batch.sum()) // 2)

"""Batches of sequences of similar length, bounded by their number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Batches:
    """Iterate over sequences from longest to shortest in batches of bounded size.

    The longest come first, so that insufficient memory shows at once; the caller then halves the batches.

    Args:
        lengths: Tokens of each sequence.
        tokens: Tokens per batch; a longer sequence is a batch of its own.
        padded: Count each sequence with the length of the longest in its batch.
        most: Most sequences per batch; None for any number.

    Raises:
        ValueError: If `tokens` is below 1.
    """

    def __init__(self, lengths: Sequence[int], tokens: int, *, padded: bool = True, most: int | None = None) -> None:
        if tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {tokens}")
        self._lengths = np.asarray(lengths, np.int64)
        self._order = np.argsort(-self._lengths, kind="stable")
        self._start = 0
        self._padded = padded
        self._most = most or max(1, len(self._order))
        self.tokens = tokens

    @property
    def remaining(self) -> int:
        """Number of sequences that were not popped."""
        return len(self._order) - self._start

    def peek(self) -> npt.NDArray[np.int64]:
        """Return the positions of the next batch."""
        longest = max(1, int(self._lengths[self._order[self._start]]))
        if self._padded:
            return self._order[self._start : self._start + min(self._most, max(1, self.tokens // longest))]
        upcoming = self._order[self._start : self._start + min(self._most, self.tokens)]
        totals = np.cumsum(self._lengths[upcoming])
        return upcoming[: max(1, int(np.searchsorted(totals, self.tokens, side="right")))]

    def pop(self) -> None:
        """Remove the next batch."""
        self._start += len(self.peek())

    def halve(self) -> None:
        """Halve the size of the next batch and of all that follow."""
        batch = self._lengths[self.peek()]
        self.tokens = max(1, int(len(batch) * batch[0] if self._padded else batch.sum()) // 2)

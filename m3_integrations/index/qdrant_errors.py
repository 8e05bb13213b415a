"""What can go wrong between here and a Qdrant collection."""

from __future__ import annotations

from collections.abc import Sequence

from m3_integrations.core.errors import M3Error


class QdrantUnreachable(M3Error, ConnectionError):
    """No Qdrant answers there, or it refuses the key."""


class WrongCollection(M3Error, ValueError):
    """A collection that no QdrantIndex made, or one that cannot do what was asked of it."""


class PartlyWritten(M3Error):
    """A write that failed half-way. Writing the same again is safe: what is there is replaced by itself.

    written, left: ids of passages, those that arrived and those that did not or may not have.
    """

    def __init__(self, written: Sequence[str], left: Sequence[str], reason: Exception) -> None:
        self.written, self.left = list(written), list(left)
        super().__init__(
            f"{len(self.written)} of {len(self.written) + len(self.left)} passages were written before {reason}; "
            "the ids are in .written and .left: write the rest again"
        )

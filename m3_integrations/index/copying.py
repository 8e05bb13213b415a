"""From one index to another, vectors and all."""

from __future__ import annotations

from m3_integrations.index.base import Index

_AT_ONCE = 512


def copy_passages(source: Index, target: Index) -> None:
    """Add every passage of one index to another with the vectors that it has; ids that are there are replaced."""
    ids = source.ids()
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        target.add(source.passages(some), source.vectors(some))

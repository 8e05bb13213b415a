"""Splitting judged queries so that no question stands on both sides."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from m3_integrations.core.texts import Query


def normalised(text: str) -> str:
    """A text without what does not make another question: case, width, spacing, a mark at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" ?!.。؟؛…")


def split(queries: Sequence[Query], shares: Sequence[float], rng: np.random.Generator) -> list[list[Query]]:
    """As many parts as shares, each near its share of the queries; queries of equal normalised text stay together.

    shares: above 0; what counts is their ratio. Within a part, queries keep their order.
    Raises ValueError for shares that are none.
    """
    if not shares or min(shares) <= 0:
        raise ValueError(f"shares are above 0, such as (0.8, 0.2), got {tuple(shares)}")
    groups: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        groups.setdefault(normalised(query.text), []).append(place)
    together = list(groups.values())
    edges = np.cumsum(shares) / np.sum(shares) * len(queries)
    parts: list[list[int]] = [[] for _ in shares]
    seen = 0
    for which in rng.permutation(len(together)):
        group = together[which]
        # A group goes where its middle falls.
        part = int(np.searchsorted(edges, seen + len(group) / 2))
        parts[min(part, len(parts) - 1)] += group
        seen += len(group)
    return [[queries[place] for place in sorted(part)] for part in parts]

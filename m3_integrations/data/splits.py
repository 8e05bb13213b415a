"""Splits of judged queries without text overlap."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from m3_integrations.core.types import Query


def normalize_question(text: str) -> str:
    """Normalize case, width, spacing and final punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" ?!.。؟؛…")


def split_by_text(queries: Sequence[Query], shares: Sequence[float], rng: np.random.Generator) -> list[list[Query]]:
    """Split queries into parts; queries of equal normalized text stay together.

    Args:
        queries: Queries.
        shares: Relative sizes of the parts, above 0.
        rng: Random generator.

    Returns:
        One list per share, in the order of `queries`.

    Raises:
        ValueError: If a share is not above 0.
    """
    if not shares or min(shares) <= 0:
        raise ValueError(f"shares must be above 0, such as (0.8, 0.2), got {tuple(shares)}")
    groups: dict[str, list[int]] = {}
    for position, query in enumerate(queries):
        groups.setdefault(normalize_question(query.text), []).append(position)
    groups_by_text = list(groups.values())
    edges = np.cumsum(shares) / np.sum(shares) * len(queries)
    parts: list[list[int]] = [[] for _ in shares]
    seen = 0
    for which in rng.permutation(len(groups_by_text)):
        group = groups_by_text[which]
        # A group goes to the part that holds its middle.
        part = int(np.searchsorted(edges, seen + len(group) / 2))
        parts[min(part, len(parts) - 1)] += group
        seen += len(group)
    return [[queries[position] for position in sorted(part)] for part in parts]

"""A built problem for nudging: people ask by words of their own, which no passage holds and the questions share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from m3_integrations.core.texts import Query

PASSAGES = 40
_WORDS = [f"word{i}" for i in range(200)]
_ROWS = np.random.default_rng(0).integers(0, len(_WORDS), (PASSAGES, 12))
CORPUS = {f"d{i}": " ".join(_WORDS[j] for j in row) for i, row in enumerate(_ROWS)}


def queries(part: str, each: int) -> list[Query]:
    """`each` questions a passage: its slang, a word of it, and a word that means nothing."""
    rng = np.random.default_rng(sum(map(ord, part)))
    asked = []
    for i in range(each * PASSAGES):
        id = f"d{i % PASSAGES}"
        text = f"slang{i % PASSAGES} {rng.choice(CORPUS[id].split())} {rng.choice(_WORDS)} {part}{i}"
        asked.append(Query(f"{part}-{i}", text, {id: 1.0}))
    return asked


def dataset(part: str, each: int) -> SimpleNamespace:
    """The same in the shape of LlamaIndex's EmbeddingQAFinetuneDataset."""
    asked = queries(part, each)
    return SimpleNamespace(
        queries={query.id: query.text for query in asked},
        corpus=dict(CORPUS),
        relevant_docs={query.id: list(query.relevant) for query in asked},
    )

"""A constructed nudging problem: queries use slang words that occur in no passage."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from m3_integrations.core.types import Query

PASSAGES = 40
_WORDS = [f"word{i}" for i in range(200)]
_ROWS = np.random.default_rng(0).integers(0, len(_WORDS), (PASSAGES, 12))
CORPUS = {f"d{i}": " ".join(_WORDS[j] for j in row) for i, row in enumerate(_ROWS)}


def queries(part: str, each: int) -> list[Query]:
    """Make `each` queries per passage: its slang word, one of its own words, and a random word."""
    rng = np.random.default_rng(sum(map(ord, part)))
    made = []
    for i in range(each * PASSAGES):
        id = f"d{i % PASSAGES}"
        text = f"slang{i % PASSAGES} {rng.choice(CORPUS[id].split())} {rng.choice(_WORDS)} {part}{i}"
        made.append(Query(f"{part}-{i}", text, {id: 1.0}))
    return made


def dataset(part: str, each: int) -> SimpleNamespace:
    """Make the same queries in the shape of LlamaIndex's EmbeddingQAFinetuneDataset."""
    made = queries(part, each)
    return SimpleNamespace(
        queries={query.id: query.text for query in made},
        corpus=dict(CORPUS),
        relevant_docs={query.id: list(query.relevant) for query in made},
    )

"""Shuffling the segments of a long text, so that a model does not learn to read its beginning alone."""

from __future__ import annotations

import numpy as np

_SEGMENTS = 3
_LONG = 100  # characters; shorter texts are left as they are, as in FlagEmbedding's training


def shuffled_segments(text: str, rng: np.random.Generator) -> str:
    """A long text with its thirds in another order, cut between words where it has words (arXiv 2402.03216, 3.3).

    Texts of up to 100 characters stay as they are.
    """
    if len(text) <= _LONG:
        return text
    cuts = [_between_words(text, len(text) * i // _SEGMENTS) for i in range(1, _SEGMENTS)]
    segments = [text[start:end].strip() for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    order = rng.permutation(_SEGMENTS)
    while (order == np.arange(_SEGMENTS)).all():
        order = rng.permutation(_SEGMENTS)
    return " ".join(segments[i] for i in order if segments[i])


def _between_words(text: str, place: int) -> int:
    """The first white space from a place on, or the place itself in writing that sets none within 50 characters."""
    near = text[place : place + _LONG // 2]
    return place + next((i for i, letter in enumerate(near) if letter.isspace()), 0)

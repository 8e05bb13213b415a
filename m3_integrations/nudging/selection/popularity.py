"""Passages that a log names with no regard to the question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3_integrations.nudging.judged import Floats, Ints, Judged

MANY = 10  # questions that name a passage, from which it is tested
ALIKE = 4.0  # standard deviations by which its questions must be more alike than questions drawn at random
DRAWS = 64
SEED = 0


def indiscriminate_passages(vectors: Floats, judged: Judged) -> Ints:
    """Return the rows of passages that many questions name which have nothing in common, ascending.

    Questions that one passage answers resemble each other. If those that name it are no more alike than questions drawn
    at random, it was chosen for another reason, for instance because it is popular or always shown first. Likeness is
    the length of the sum of the questions' centered vectors. A log that names one passage alone has none.

    Args:
        vectors: A vector of each question, shape (queries, dim).
        judged: The questions, each different.
    """
    named = np.bincount(judged.rows)
    popular = np.flatnonzero(named >= MANY)
    if not len(popular) or len(np.unique(judged.rows)) == 1:
        return popular[:0]
    order = np.lexsort(vectors.T[:1])  # draws do not depend on the order of the log
    centered = (vectors - vectors.mean(axis=0, dtype=np.float64)).astype(np.float32)
    limits = {size: _random_likeness(centered[order], size) for size in {_round(each) for each in named[popular]}}
    return np.array(
        [
            row
            for row in popular.tolist()
            if _likeness(centered[judged.query_ids[judged.rows == row]], len(judged)) <= limits[_round(named[row])]
        ],
        np.int64,
    )


def _likeness(chosen: Floats, total: int) -> float:
    """Return the squared length of the sum of vectors, in units of its mean over random choices of as many."""
    count = len(chosen)
    if count == total:
        return 0.0  # every question names the passage
    return float(np.square(chosen.sum(axis=0, dtype=np.float64)).sum()) * (total - 1) / (count * (total - count))


def _random_likeness(centered: Floats, size: int) -> float:
    """Return the likeness that random choices of questions hardly reach."""
    rng, total = np.random.default_rng(SEED), len(centered)
    size = min(size, total - 1)
    found: Sequence[float] = [_likeness(centered[rng.choice(total, size, replace=False)], total) for _ in range(DRAWS)]
    return float(np.mean(found) + ALIKE * np.std(found))


def _round(count: int) -> int:
    return int(2 ** round(np.log2(count)))

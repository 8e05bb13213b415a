"""Closed forms of NUDGE-M and NUDGE-N (Zeighami et al. 2024, arXiv 2409.02343)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.sparse

from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.nudging.judged import Floats, Ints, Judged

UNIT = 1e-3  # tolerance of unit lengths, enough for vectors stored as float16


def pull(judged: Judged, n: int) -> Floats:
    """Compute the pull of each passage: the sum of the queries that it answers, by weight and grade.

    Args:
        judged: Queries and their answers.
        n: Number of passages.

    Returns:
        Pulls of shape (n, dim) in the queries' precision; zeros for a passage that answers nothing.

    Raises:
        WrongDimension: If an answer is beyond n.
    """
    judged.require_rows(n)
    rows, vectors = pulls_of_rows(judged)
    pulls = np.zeros((n, judged.queries.shape[1]), judged.queries.dtype)
    pulls[rows] = vectors
    return pulls


def pulls_of_rows(judged: Judged, center: float = 0.0) -> tuple[Ints, Floats]:
    """Return the rows with a pull, ascending (m,), and their pulls (m, dim) in the queries' precision.

    `center` is the fraction of the mean query that is subtracted from each query: the part that all queries share says
    nothing about a passage, and would bring the pulled passages nearer to every query.
    """
    rows, shares = shares_of_rows(judged)
    queries = judged.queries.astype(np.float64, copy=False)
    vectors = shares @ (queries - center * queries.mean(axis=0) if center and len(queries) else queries)
    return rows, vectors.astype(judged.queries.dtype, copy=False)


def shares_of_rows(judged: Judged) -> tuple[Ints, scipy.sparse.csr_array]:
    """Return the rows with a pull, ascending (m,), and the weight of each query's pull (m, queries)."""
    pulling = np.flatnonzero(judged.pair_weights)
    rows, places = np.unique(judged.rows[pulling], return_inverse=True)
    pairs = judged.pair_weights[pulling], (places, judged.query_ids[pulling])
    return rows, scipy.sparse.csr_array(pairs, shape=(len(rows), len(judged)))


class Direction(NamedTuple):
    """Unit direction to rotate in, orthogonal to the passage (n, dim), and the angle to the pull (n,), 0 to π."""

    tangent: Floats
    angle: Floats


def direction_to(passages: Floats, pulls: Floats) -> Direction:
    """Return the direction from each passage to its pull along the sphere.

    A zero pull, or one along the passage, gives angle 0; an opposite one gives π and some orthogonal direction.
    """
    straight = unit(passages)
    target = unit(pulls)
    along = _dot(target, straight)
    tangent = target - along[:, None] * straight
    tangent -= _dot(tangent, straight)[:, None] * straight  # twice: the first pass leaves rounding errors
    across = np.linalg.norm(tangent, axis=1)
    # Components below this are rounding errors.
    degenerate = across <= 8 * np.finfo(passages.dtype).eps
    tangent /= np.where(degenerate, 1, across)[:, None]
    tangent[degenerate] = 0
    angle = np.where(degenerate, 0, np.arctan2(across, along))
    opposite = np.flatnonzero(degenerate & (along < 0))
    tangent[opposite] = _any_orthogonal(straight[opposite])
    angle[opposite] = math.pi
    return Direction(tangent, angle.astype(passages.dtype, copy=False))


def rotate(passages: Floats, pulls: Floats, gamma: float) -> Floats:
    """Rotate each unit passage towards its pull by a chord of at most sqrt(gamma) (NUDGE-N, arXiv 2409.02343).

    Args:
        passages: Unit vectors, shape (n, dim).
        pulls: Pull vectors, shape (n, dim); a zero pull leaves its passage unchanged.
        gamma: Largest squared chord, 0 to 4.

    Returns:
        Unit vectors, shape (n, dim).

    Raises:
        ValueError: If gamma is outside [0, 4] or a passage is not a unit vector.
    """
    if not 0 <= gamma <= 4:
        raise ValueError(f"gamma is a squared chord of the unit sphere: 0 <= gamma <= 4, got {gamma}")
    passages, pulls = _checked(passages, pulls)
    _require_unit(passages)
    return rotate_along(passages, direction_to(passages, pulls), gamma)


def rotate_along(passages: Floats, trajectory: Direction, gamma: float) -> Floats:
    """Rotate passages along directions that are known already."""
    angle = np.minimum(chord_angle(gamma), trajectory.angle)[:, None]
    rotated = np.cos(angle) * passages + np.sin(angle) * trajectory.tangent
    return np.where(angle > 0, rotated, passages).astype(passages.dtype, copy=False)


def chord_angle(gamma: float) -> float:
    """Return the angle in radians, 0 to π, of a chord with squared length gamma."""
    return 2 * math.asin(math.sqrt(gamma) / 2)


def translate(passages: Floats, pulls: Floats, gamma: float) -> Floats:
    """Translate each passage by a length of gamma along its pull (NUDGE-M, arXiv 2409.02343); lengths change.

    Args:
        passages: Vectors, shape (n, dim).
        pulls: Pull vectors, shape (n, dim); a zero pull leaves its passage unchanged.
        gamma: Length, finite and at least 0.

    Returns:
        Vectors of shape (n, dim), to be compared by dot product.

    Raises:
        ValueError: If gamma is negative or infinite.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is a length: finite and at least 0, got {gamma}")
    passages, pulls = _checked(passages, pulls)
    return (passages + passages.dtype.type(gamma) * unit(pulls)).astype(passages.dtype, copy=False)


def unit(vectors: Floats) -> Floats:
    """Divide each row by its length, shape (n, dim); zero rows stay zero."""
    # Scaled by the largest coordinate first: squares of very small or very large pulls would under- or overflow.
    scale = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    scaled = vectors / np.where(scale > 0, scale, 1)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    scaled /= np.where(lengths > 0, lengths, 1)
    return scaled


def _dot(a: Floats, b: Floats) -> Floats:
    products: Floats = np.einsum("nd,nd->n", a, b)
    return products


def _any_orthogonal(vectors: Floats) -> Floats:
    """Return a unit vector orthogonal to each, shape (n, dim), from the axis with the smallest component."""
    axes = np.zeros_like(vectors)
    axes[np.arange(len(vectors)), np.abs(vectors).argmin(axis=1)] = 1
    for _ in range(2):
        axes -= _dot(axes, vectors)[:, None] * vectors
    return unit(axes)


def _checked(passages: Floats, pulls: Floats) -> tuple[Floats, Floats]:
    passages, pulls = np.asarray(passages), np.asarray(pulls)
    if passages.dtype not in (np.float32, np.float64):
        passages = passages.astype(np.float32)
    if passages.ndim != 2 or passages.shape != pulls.shape:
        raise WrongDimension(
            f"passages and pulls are (n, dim) and of one shape, got {passages.shape} and {pulls.shape}; "
            "a passage without queries has a pull of zeros"
        )
    for name, vectors in (("passages", passages), ("pulls", pulls)):
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise NonFiniteVector(f"the {name} hold NaN or infinity, first in row {int(np.argmin(finite))}")
    return passages, pulls.astype(passages.dtype, copy=False)


def _require_unit(passages: Floats) -> None:
    lengths = np.linalg.norm(passages, axis=1)
    wrong = np.abs(lengths - 1) > UNIT
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"passage {row} has length {lengths[row]:.4g} and rotating needs length 1; "
            "divide each row by its length, or use method='nudge-m'"
        )

"""The closed forms of NUDGE (Zeighami et al. 2024, arXiv 2409.02343): what pulls each passage, and where it goes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.sparse

from m3_integrations.core.errors import NonFiniteVector, WrongDimension
from m3_integrations.nudging.judged import Floats, Ints, Judged

UNIT = 1e-3  # how far from 1 a length may be: vectors that were stored as float16 come back so


def pull(judged: Judged, n: int) -> Floats:
    """The pull of each of n passages: the sum of the queries that it answers, by weight and grade.

    Returns (n, dim) in the queries' precision; a passage that answers nothing has a pull of zeros.
    Raises WrongDimension for an answer beyond n.
    """
    judged.require_rows(n)
    rows, vectors = pulls_of_rows(judged)
    pulls = np.zeros((n, judged.queries.shape[1]), judged.queries.dtype)
    pulls[rows] = vectors
    return pulls


def pulls_of_rows(judged: Judged, centre: float = 0.0) -> tuple[Ints, Floats]:
    """The rows that some query pulls, ascending (m,), and their pulls (m, dim) in the queries' precision.

    centre: how much of the mean query is taken from each query first. What all queries share says nothing about a
    passage, and brings those that were asked for nearer to every question; without it they crowd out the rest less.
    """
    rows, shares = shares_of_rows(judged)
    queries = judged.queries.astype(np.float64, copy=False)
    vectors = shares @ (queries - centre * queries.mean(axis=0) if centre and len(queries) else queries)
    return rows, vectors.astype(judged.queries.dtype, copy=False)


def shares_of_rows(judged: Judged) -> tuple[Ints, scipy.sparse.csr_array]:
    """The rows that some query pulls, ascending (m,), and how hard each query pulls each of them (m, queries)."""
    pulling = np.flatnonzero(judged.strengths)
    rows, places = np.unique(judged.rows[pulling], return_inverse=True)
    pairs = judged.strengths[pulling], (places, judged.askers[pulling])
    return rows, scipy.sparse.csr_array(pairs, shape=(len(rows), len(judged)))


class Bearing(NamedTuple):
    """How each passage lies to its pull: the unit direction to turn in, and how far the pull is.

    sideways: (n, dim), orthogonal to the passage, zeros where there is nowhere to turn; angle: (n,) radians, 0 to π.
    """

    sideways: Floats
    angle: Floats


def bearing(passages: Floats, pulls: Floats) -> Bearing:
    """The way from each passage to its pull along the sphere.

    A zero pull, and one along the passage, give angle 0; one exactly opposite gives π and some orthogonal direction.
    """
    straight = unit(passages)
    target = unit(pulls)
    along = _dot(target, straight)
    sideways = target - along[:, None] * straight
    sideways -= (
        _dot(sideways, straight)[:, None] * straight
    )  # once more: the first pass leaves rounding of its own size
    across = np.linalg.norm(sideways, axis=1)
    # What is left below this is rounding, not direction.
    lost = across <= 8 * np.finfo(passages.dtype).eps
    sideways /= np.where(lost, 1, across)[:, None]
    sideways[lost] = 0
    angle = np.where(lost, 0, np.arctan2(across, along))
    opposite = np.flatnonzero(lost & (along < 0))
    sideways[opposite] = _any_orthogonal(straight[opposite])
    angle[opposite] = math.pi
    return Bearing(sideways, angle.astype(passages.dtype, copy=False))


def turn(passages: Floats, pulls: Floats, gamma: float) -> Floats:
    """Turn each unit passage towards its pull by a chord of at most √gamma (NUDGE-N, arXiv 2409.02343).

    passages, pulls: (n, dim), passages of length 1; a zero pull leaves its passage alone. Returns (n, dim), length 1.
    Raises ValueError unless 0 <= gamma <= 4, and for passages of another length.
    """
    if not 0 <= gamma <= 4:
        raise ValueError(f"gamma is a squared chord of the unit sphere: 0 <= gamma <= 4, got {gamma}")
    passages, pulls = _checked(passages, pulls)
    _require_unit(passages)
    return turn_by(passages, bearing(passages, pulls), gamma)


def turn_by(passages: Floats, way: Bearing, gamma: float) -> Floats:
    """`turn`, for bearings that are known already."""
    angle = np.minimum(chord_angle(gamma), way.angle)[:, None]
    turned = np.cos(angle) * passages + np.sin(angle) * way.sideways
    return np.where(angle > 0, turned, passages).astype(passages.dtype, copy=False)


def chord_angle(gamma: float) -> float:
    """The angle in radians, 0 to π, whose chord has the squared length gamma."""
    return 2 * math.asin(math.sqrt(gamma) / 2)


def push(passages: Floats, pulls: Floats, gamma: float) -> Floats:
    """Push each passage by a length of gamma along its pull (NUDGE-M, arXiv 2409.02343); lengths change.

    passages, pulls: (n, dim); a zero pull leaves its passage alone. Returns (n, dim), to be compared by dot product.
    Raises ValueError unless gamma is finite and at least 0.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is a length: finite and at least 0, got {gamma}")
    passages, pulls = _checked(passages, pulls)
    return (passages + passages.dtype.type(gamma) * unit(pulls)).astype(passages.dtype, copy=False)


def unit(vectors: Floats) -> Floats:
    """(n, dim): each row divided by its length; a row of zeros stays."""
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
    """(n, dim): one unit vector orthogonal to each, from the axis that it leans on least; zeros in one dimension."""
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
            f"passage {row} has length {lengths[row]:.4g} and turning needs length 1; "
            "divide each row by its length, or use method='m'"
        )

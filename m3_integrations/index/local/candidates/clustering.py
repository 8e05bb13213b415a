"""Centroids of many vectors: spherical k-means in two levels, so that assigning a vector takes few comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array, Ints

_ITERATIONS = 5
_CELLS = 2  # compared with a vector
_BLOCK_VECTORS = 1 << 14
_INERTIA = 1e-6  # weight of a centroid in the next one, so that one without vectors keeps its direction


class Centroids(NamedTuple):
    """Unit centroids, in cells around coarse centroids.

    Attributes:
        coarse: Centroid of each cell, shape (cells, dim).
        starts: First centroid of each cell, shape (cells + 1,); every cell has one.
        fine: The centroids, shape (centroids, dim).
    """

    coarse: Array
    starts: npt.NDArray[np.int64]
    fine: Array

    def assign(self, vectors: Array) -> tuple[Ints, Array]:
        """Return the nearest centroid of each vector in the nearest cells, and their inner product."""
        assigned, best = np.zeros(len(vectors), np.int64), np.full(len(vectors), -np.inf, np.float32)
        for start in range(0, len(vectors), _BLOCK_VECTORS):
            block = slice(start, start + _BLOCK_VECTORS)
            for cells in _nearest_cells(vectors[block], self.coarse):
                self._assign_in_cells(vectors[block], cells, assigned[block], best[block])
        return assigned, best

    def _assign_in_cells(self, vectors: Array, cells: Ints, assigned: Ints, best: Array) -> None:
        """Update the nearest centroids of vectors by those in one cell for each."""
        for cell, own in _groups(cells, len(self.coarse)):
            similarities = vectors[own] @ self.fine[self.starts[cell] : self.starts[cell + 1]].T
            nearest = similarities.argmax(axis=1)
            similarity = similarities[np.arange(len(own)), nearest]
            is_nearer = similarity > best[own]
            assigned[own[is_nearer]] = self.starts[cell] + nearest[is_nearer]
            best[own[is_nearer]] = similarity[is_nearer]


def find_centroids(vectors: Array, count: int, random: np.random.Generator) -> Centroids:
    """Cluster vectors by their directions.

    Args:
        vectors: At least one finite vector, shape (vectors, dim).
        count: Approximate number of centroids.
        random: Generator of the initial centroids.
    """
    vectors = _normalized(vectors)
    coarse = _k_means(vectors, max(1, round(count**0.5)), random)
    cells = dict(_groups(_nearest(vectors, coarse), len(coarse)))
    fine = [
        _k_means(vectors[cells[cell]], max(1, round(count * len(cells[cell]) / len(vectors))), random)
        if cell in cells
        else coarse[cell : cell + 1]
        for cell in range(len(coarse))
    ]
    return Centroids(coarse, np.cumsum([0, *map(len, fine)]), np.concatenate(fine))


def _k_means(vectors: Array, count: int, random: np.random.Generator) -> Array:
    """Return at most `count` unit centroids of unit vectors; one that loses its vectors stays where it is."""
    centroids = vectors[np.sort(random.permutation(len(vectors))[:count])]
    for _ in range(_ITERATIONS if len(centroids) < len(vectors) else 0):
        sums = centroids * np.float32(_INERTIA)
        for centroid, own in _groups(_nearest(vectors, centroids), len(centroids)):
            sums[centroid] += vectors[own].sum(axis=0)
        centroids = _normalized(sums)
    return centroids


def _nearest_cells(vectors: Array, coarse: Array) -> Iterator[Ints]:
    """Iterate over the nearest cells of each vector, in no order."""
    count = min(_CELLS, len(coarse))
    nearest = np.argpartition(vectors @ coarse.T, len(coarse) - count, axis=1)[:, len(coarse) - count :]
    return iter(nearest.T)


def _nearest(vectors: Array, centroids: Array) -> Ints:
    """Return the centroid with the largest inner product of each vector."""
    starts = range(0, len(vectors), _BLOCK_VECTORS)
    blocks = ((vectors[start : start + _BLOCK_VECTORS] @ centroids.T).argmax(axis=1) for start in starts)
    nearest: Ints = np.concatenate([np.empty(0, np.int64), *blocks])
    return nearest


def _groups(labels: Ints, count: int) -> Iterator[tuple[int, Ints]]:
    """Iterate over the labels below `count` in use, with the positions of each."""
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(count + 1))
    for label in np.flatnonzero(np.diff(bounds)).tolist():
        yield label, order[bounds[label] : bounds[label + 1]]


def _normalized(vectors: Array) -> Array:
    """Return unit vectors; a zero vector stays."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)  # first, so that no square overflows
    scaled = vectors / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(norms > 0, norms, 1), np.float32)

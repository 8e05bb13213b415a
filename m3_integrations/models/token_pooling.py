"""Token pooling: similar token vectors are clustered, and each cluster keeps its mean.

Clavié et al. 2024, "Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Impact via Token Pooling"
(arXiv 2409.14683): hierarchical clustering by Ward's criterion. Rounding decides between equally good clusterings.
"""

from __future__ import annotations

from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage

from m3_integrations.core.encoded import Array, MultiVectors

Groups = npt.NDArray[np.int64]
_STRETCH = 512  # tokens clustered at once: the distances between all of them take 1 MB
_CANCELLED = 1e-6


def pool_tokens(vectors: MultiVectors, factor: int) -> MultiVectors:
    """Pool the vectors of each text.

    Args:
        vectors: Unit vectors of each text.
        factor: Average number of tokens per vector; 1 returns `vectors`.

    Returns:
        At most ceil(tokens / factor) unit vectors per text.
    """
    if factor == 1:
        return vectors
    return MultiVectors.of([means(each, groups_of(each, factor)) for each in vectors], vectors.width)


def groups_of(vectors: Array, factor: int) -> Groups:
    """Assign the tokens of a text to groups.

    Texts of more than 512 tokens are clustered in stretches, so that memory grows linearly with length.

    Args:
        vectors: Unit vectors, shape (tokens, dim).
        factor: Average number of tokens per group.

    Returns:
        Group of each token, shape (tokens,), numbered by first tokens; at most ceil(tokens / factor) groups.
    """
    if factor == 1:
        return np.arange(len(vectors))
    found = [np.empty(0, np.int64)]
    count, length = 0, _stretch(len(vectors), factor)
    for start in range(0, len(vectors), length):
        stretch = vectors[start : start + length]
        found.append(count + _clusters(stretch, ceil(len(stretch) / factor)))
        count = int(found[-1].max()) + 1
    return np.concatenate(found)


def means(vectors: Array, groups: Groups) -> Array:
    """Return the normalized mean of each group's vectors, shape (groups, dim)."""
    _, firsts = np.unique(groups, return_index=True)
    sums = np.zeros((len(firsts), vectors.shape[1]), np.float32)
    np.add.at(sums, groups, vectors)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    # Vectors that cancel out have no mean direction; their first vector represents them.
    return np.asarray(np.where(lengths > _CANCELLED, sums / np.maximum(lengths, _CANCELLED), vectors[firsts]))


def _stretch(tokens: int, factor: int) -> int:
    """Return how many tokens are clustered at once: a multiple of the factor."""
    most = max(1, _STRETCH // factor) * factor
    stretches = max(1, ceil(tokens / most))
    return max(1, ceil(tokens / stretches / factor)) * factor


def _clusters(vectors: Array, most: int) -> Groups:
    if most == 1:
        return np.zeros(len(vectors), np.int64)
    apart = np.sqrt(np.maximum(2 - 2 * (vectors @ vectors.T), 0))  # of vectors of length 1
    tree = linkage(apart[np.triu_indices(len(vectors), 1)], "ward")
    _, firsts, clusters = np.unique(fcluster(tree, most, "maxclust"), return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(firsts))[clusters], np.int64)

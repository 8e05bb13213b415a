"""Assembly of the model's states, batch by batch, into vectors in the caller's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from torch import Tensor

from m3_integrations.core.encoded import Array, Encoded, Mode, MultiVectors
from m3_integrations.models.backends.states import HostStates, has_text_rows
from m3_integrations.models.conventions import PivotedLengthNormalization
from m3_integrations.models.token_pooling import pool_tokens
from m3_integrations.models.tokenization import TokenSequence


class EncodedBuilder:
    """Collects states of sequences in any order and builds one `Encoded`.

    Args:
        sequences: All sequences; those of a text follow each other.
        texts: Number of texts.
        widths: Mode to the dimension of its vectors; for sparse, the number of columns.
        special_ids: Token ids without a lexical weight.
        normalize: Normalize dense vectors.
        lexical_length: Length normalization of lexical weights; None for none.
        token_pooling: Average number of tokens per vector of a multi-vector.
        truncate_dim: Leading dimensions of dense vectors to return; None returns all.
        max_terms: Largest lexical weights of a text to keep; None keeps all.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        texts: int,
        *,
        widths: Mapping[Mode, int],
        special_ids: Sequence[int],
        normalize: bool,
        lexical_length: PivotedLengthNormalization | None = None,
        token_pooling: int = 1,
        truncate_dim: int | None = None,
        max_terms: int | None = None,
    ) -> None:
        self._sequences = sequences
        self._texts = texts
        self._widths = widths
        self._special_ids = np.array(special_ids)
        self._normalize = normalize
        self._lexical_length = lexical_length
        self._token_pooling = token_pooling
        self._dense_dim = truncate_dim
        self._max_terms = max_terms
        self._sums = torch.zeros(texts, widths.get("dense", 0))
        self._columns = widths.get("sparse", 0)
        self._keys: list[npt.NDArray[np.int64]] = []  # of text and token
        self._weights: list[Array] = []
        if "multi_vector" in widths:
            counts = [each.vector_count for each in sequences]
            self._starts = np.cumsum([0, *counts])
            # numpy asks the system for huge pages, which are touched for the first time much faster.
            self._values = np.empty((int(self._starts[-1]), widths["multi_vector"]), np.float32)

    def add_batch(self, batch: Sequence[int], states: HostStates) -> None:
        """Add the states of a batch.

        Args:
            batch: Positions of its sequences.
            states: States by mode, token after token; row j of dense is that of sequence batch[j].
        """
        sequences = [self._sequences[i] for i in batch]
        starts = np.cumsum([0, *(len(each.ids) for each in sequences)])
        positions = [start + each.content_positions() for start, each in zip(starts, sequences, strict=False)]
        if "dense" in states:
            texts = torch.tensor([each.text for each in sequences])
            self._sums.index_add_(0, texts, states["dense"].float())
        if "sparse" in states:
            if has_text_rows("sparse", states["sparse"]):
                self._add_terms(sequences, states["sparse"].numpy())
            else:
                self._add_lexical(sequences, positions, states["sparse"].float().numpy())
        if "multi_vector" in states:
            values = torch.from_numpy(self._values)
            if sequences and sequences[0].vectors is not None:
                positions = [start + each.vectors for start, each in zip(starts, sequences, strict=False)]
            for i, tokens in zip(batch, positions, strict=True):
                values[self._starts[i] : self._starts[i + 1]] = _rows(states["multi_vector"], tokens)

    def _add_lexical(
        self, sequences: Sequence[TokenSequence], positions: Sequence[npt.NDArray[np.int64]], weights: Array
    ) -> None:
        texts = np.repeat([each.text for each in sequences], [len(tokens) for tokens in positions])
        tokens = np.concatenate(positions)
        ids = np.concatenate([each.ids for each in sequences])[tokens]
        weighted = (weights[tokens] > 0) & ~np.isin(ids, self._special_ids)
        keys, best = _largest(texts[weighted] * self._columns + ids[weighted], weights[tokens[weighted]])
        self._keys.append(keys)
        self._weights.append(best)

    def _add_terms(self, sequences: Sequence[TokenSequence], weights: Array) -> None:
        rows, columns = np.nonzero(weights)
        keys = np.array([each.text for each in sequences], np.int64)[rows] * self._columns + columns
        order = np.argsort(keys)
        self._keys.append(keys[order])
        self._weights.append(weights[rows, columns][order])

    def add_static_weights(self, weights: Array) -> None:
        """Give every token of the texts, without cls and eos, a weight by its id.

        Args:
            weights: Weight of each token id, shape (vocabulary,).
        """
        ids = np.concatenate([np.empty(0, np.int64), *(each.ids[1:-1] for each in self._sequences)])
        texts = np.repeat([each.text for each in self._sequences], [len(each.ids) - 2 for each in self._sequences])
        found = weights[ids.astype(np.int64)]
        keys = texts * self._columns + ids
        self._keys.append(keys[found > 0].astype(np.int64))
        self._weights.append(found[found > 0])

    def build(self) -> Encoded:
        """Return the vectors of all texts; every sequence must have been added."""
        return Encoded(
            dense=self._dense() if "dense" in self._widths else None,
            sparse=self._sparse() if "sparse" in self._widths else None,
            multi_vector=self._multi_vector() if "multi_vector" in self._widths else None,
        )

    def _dense(self) -> Array:
        """Return the mean of each text's sequences, normalized if the model does so."""
        counts = np.bincount([each.text for each in self._sequences], minlength=self._texts).astype(np.float32)
        sums: Array = self._sums.numpy()
        means: Array = (sums / counts[:, None])[:, : self._dense_dim]
        if not self._normalize:
            return means
        lengths = np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return np.asarray(means / lengths, np.float32)

    def _sparse(self) -> scipy.sparse.csr_array:
        """Return the largest weight of each token of a text, without vocabulary-wide arrays."""
        keys = np.concatenate([np.empty(0, np.int64), *self._keys])
        keys, weights = _largest(keys, np.concatenate([np.empty(0, np.float32), *self._weights]))
        texts, tokens = np.divmod(keys, max(1, self._columns))
        if self._max_terms is not None:
            kept = largest_of_rows(texts, weights, self._max_terms)
            texts, tokens, weights = texts[kept], tokens[kept], weights[kept]
        offsets = np.cumsum([0, *np.bincount(texts, minlength=self._texts)])
        data = self._length_normalized(texts, weights)
        return scipy.sparse.csr_array((data, tokens.astype(np.int32), offsets), shape=(self._texts, self._columns))

    def _length_normalized(self, texts: npt.NDArray[np.int64], weights: Array) -> Array:
        if self._lexical_length is None:
            return weights
        norms = np.sqrt(np.bincount(texts, weights.astype(np.float64) ** 2, self._texts))
        return np.asarray(weights * self._lexical_length.scale(norms)[texts], np.float32)

    def _multi_vector(self) -> MultiVectors:
        ends = np.searchsorted([each.text for each in self._sequences], np.arange(self._texts), side="right")
        whole = MultiVectors(self._values, np.concatenate([[0], self._starts[ends]]))
        return pool_tokens(whole, self._token_pooling)


def largest_of_rows(rows: npt.NDArray[np.int64], weights: Array, most: int) -> npt.NDArray[np.int64]:
    """Return the positions of the `most` largest weights of each row, ascending.

    Args:
        rows: Row of each weight, ascending.
        weights: Weights; the first of equal ones come first.
        most: Weights to keep per row.
    """
    order = np.lexsort((-weights, rows))
    sizes = np.bincount(rows) if len(rows) else np.zeros(0, np.int64)
    ranks = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[ranks < most])


def _rows(states: Tensor, positions: npt.NDArray[np.int64]) -> Tensor:
    """Return rows of states; consecutive ones are not copied."""
    if not len(positions):
        return states[:0]
    first, last = int(positions[0]), int(positions[-1])
    return states[first : last + 1] if last - first + 1 == len(positions) else states[torch.from_numpy(positions)]


def _largest(keys: npt.NDArray[np.int64], weights: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the different keys, ascending, and the largest weight of each."""
    if not len(keys):
        return keys, weights
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    return keys[starts], np.maximum.reduceat(weights, starts)

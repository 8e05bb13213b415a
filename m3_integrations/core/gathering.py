"""From the states of sequences, batch by batch and longest first, to the vectors of texts in the caller's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, MultiVectors
from m3_integrations.core.lexical import LexicalLength
from m3_integrations.core.model import States
from m3_integrations.core.sequences import TokenSequence
from m3_integrations.core.token_pooling import pool_tokens

StateArrays: TypeAlias = dict[Mode, Array]
_ENTRY = np.dtype([("text", np.int64), ("token", np.int32), ("weight", np.float32)])


def on_cpu(states: States) -> StateArrays:
    """The states of a batch as numpy arrays, by mode."""
    parts = {mode: getattr(states, mode) for mode in MODES}
    return {mode: part.cpu().numpy() for mode, part in parts.items() if part is not None}


def not_finite(states: StateArrays, lengths: Sequence[int]) -> list[int]:
    """Which texts of a batch have NaN or infinity in their states; lengths: their tokens."""
    if all(np.isfinite(part).all() for part in states.values()):
        return []
    bad = np.zeros(len(lengths), bool)
    text_of = np.repeat(np.arange(len(lengths)), lengths)
    for mode, part in states.items():
        rows = np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(axis=1))
        bad[rows if mode == "dense" else text_of[rows]] = True
    return np.flatnonzero(bad).tolist()


def replace_texts(states: StateArrays, texts: Sequence[int], lengths: Sequence[int], others: StateArrays) -> None:
    """Put the states of text j of `others` where those of text texts[j] stood; lengths: the tokens of all texts."""
    tokens = np.isin(np.repeat(np.arange(len(lengths)), lengths), texts)
    for mode, part in states.items():
        part[texts if mode == "dense" else tokens] = others[mode]


class Gathering:
    """Takes the states of sequences in any order and gives one Encoded.

    widths: mode -> the width of a dense vector, the number of sparse columns, the width of a multi-vector's vectors.
    silent: token ids that have no lexical weight. lexical_length: how the others are made to fit a text's length; None
    leaves them. token_pooling: tokens a vector of a multi-vector stands for, about.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        texts: int,
        *,
        widths: Mapping[Mode, int],
        silent: Sequence[int],
        normalise: bool,
        lexical_length: LexicalLength | None = None,
        token_pooling: int = 1,
    ) -> None:
        self._sequences = sequences
        self._texts = texts
        self._widths = widths
        self._silent = np.array(silent)
        self._normalise = normalise
        self._lexical_length = lexical_length
        self._token_pooling = token_pooling
        self._sums = np.zeros((texts, widths.get("dense", 0)), np.float32)
        self._entries: list[npt.NDArray[np.void]] = [np.empty(0, _ENTRY)]
        if "multi_vector" in widths:
            kept = [len(each.ids) - each.prefix - len(each.cls) for each in sequences]
            self._starts = np.cumsum([0, *kept])
            self._values = np.empty((int(self._starts[-1]), widths["multi_vector"]), np.float32)

    def put(self, batch: Sequence[int], states: StateArrays) -> None:
        """The states are those of the sequences of `batch`, token after token; text j of dense is sequence batch[j]."""
        some = [self._sequences[i] for i in batch]
        starts = np.cumsum([0, *(len(each.ids) for each in some)])
        kept = [start + each.kept() for start, each in zip(starts, some, strict=False)]
        if "dense" in states:
            np.add.at(self._sums, [each.text for each in some], states["dense"])
        if "sparse" in states:
            self._entries.append(self._weighted(some, kept, states["sparse"]))
        if "multi_vector" in states:
            for i, places in zip(batch, kept, strict=True):
                self._values[self._starts[i] : self._starts[i + 1]] = states["multi_vector"][places]

    def _weighted(
        self, some: Sequence[TokenSequence], kept: Sequence[npt.NDArray[np.int64]], weights: Array
    ) -> npt.NDArray[np.void]:
        texts = np.repeat([each.text for each in some], [len(places) for places in kept])
        places, ids = np.concatenate(kept), np.concatenate([each.ids for each in some])
        heard = (weights[places] > 0) & ~np.isin(ids[places], self._silent)
        entries = np.empty(int(heard.sum()), _ENTRY)
        entries["text"], entries["token"] = texts[heard], ids[places[heard]]
        entries["weight"] = weights[places[heard]]
        return entries

    def encoded(self) -> Encoded:
        """All texts, once every sequence was put."""
        return Encoded(
            dense=self._dense() if "dense" in self._widths else None,
            sparse=self._sparse() if "sparse" in self._widths else None,
            multi_vector=self._multi_vector() if "multi_vector" in self._widths else None,
        )

    def _dense(self) -> Array:
        """The mean of the states of each text's sequences, brought to length 1 where the model normalises."""
        counts = np.bincount([each.text for each in self._sequences], minlength=self._texts).astype(np.float32)
        means: Array = self._sums / counts[:, None]
        if not self._normalise:
            return means
        lengths = np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return np.asarray(means / lengths, np.float32)

    def _sparse(self) -> scipy.sparse.csr_array:
        """The largest weight of each token of a text, found by sorting: no array is as wide as the vocabulary."""
        entries = np.concatenate(self._entries)
        entries = entries[np.lexsort((entries["weight"], entries["token"], entries["text"]))]
        changes = (np.diff(entries["text"]) != 0) | (np.diff(entries["token"]) != 0)
        best = entries[np.append(changes, True)] if len(entries) else entries
        offsets = np.cumsum([0, *np.bincount(best["text"], minlength=self._texts)])
        shape = (self._texts, self._widths["sparse"])
        return scipy.sparse.csr_array((self._fitted(best), best["token"], offsets), shape=shape)

    def _fitted(self, best: npt.NDArray[np.void]) -> Array:
        """The weights of these entries, fitted to the length of their texts."""
        weights: Array = best["weight"]
        if self._lexical_length is None:
            return weights
        norms = np.sqrt(np.bincount(best["text"], weights.astype(np.float64) ** 2, self._texts))
        return np.asarray(weights * self._lexical_length.share(norms)[best["text"]], np.float32)

    def _multi_vector(self) -> MultiVectors:
        ends = np.searchsorted([each.text for each in self._sequences], np.arange(self._texts), side="right")
        whole = MultiVectors(self._values, np.concatenate([[0], self._starts[ends]]))
        return pool_tokens(whole, self._token_pooling)

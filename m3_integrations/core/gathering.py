"""From the states of sequences, batch by batch and longest first, to the vectors of texts in the caller's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse

from m3_integrations.core.encoded import MODES, Array, Encoded, Mode, MultiVectors
from m3_integrations.core.model import States
from m3_integrations.core.sequences import TokenSequence

StateArrays: TypeAlias = dict[Mode, Array]
_ENTRY = np.dtype([("text", np.int64), ("token", np.int32), ("weight", np.float32)])


def on_cpu(states: States) -> StateArrays:
    """The states of a batch as numpy arrays, by mode."""
    parts = {mode: getattr(states, mode) for mode in MODES}
    return {mode: part.cpu().numpy() for mode, part in parts.items() if part is not None}


def is_finite(states: StateArrays, row: int, length: int) -> bool:
    """Whether a row holds no NaN and no infinity in its first `length` places; what stands on padding is nothing."""
    return all(
        bool(np.isfinite(part[row] if mode == "dense" else part[row, :length]).all()) for mode, part in states.items()
    )


def replace_rows(states: StateArrays, rows: Sequence[int], others: StateArrays) -> None:
    """Put row j of `others`, which may be padded to fewer places, where row rows[j] stood."""
    for mode, part in states.items():
        other = others[mode]
        places = slice(None) if mode == "dense" else slice(other.shape[1])
        part[rows, places] = other


class Gathering:
    """Takes the states of sequences in any order and gives one Encoded.

    widths: mode -> the width of a dense vector, the number of sparse columns, the width of a multi-vector's vectors.
    silent: token ids that have no lexical weight.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        texts: int,
        *,
        widths: Mapping[Mode, int],
        silent: Sequence[int],
        normalise: bool,
    ) -> None:
        self._sequences = sequences
        self._texts = texts
        self._widths = widths
        self._silent = np.array(silent)
        self._normalise = normalise
        self._sums = np.zeros((texts, widths.get("dense", 0)), np.float32)
        self._entries: list[npt.NDArray[np.void]] = [np.empty(0, _ENTRY)]
        if "multi_vector" in widths:
            kept = [len(each.ids) - each.prefix - len(each.cls) for each in sequences]
            self._starts = np.cumsum([0, *kept])
            self._values = np.empty((int(self._starts[-1]), widths["multi_vector"]), np.float32)

    def put(self, batch: Sequence[int], states: StateArrays) -> None:
        """Row j of the states is sequence batch[j]."""
        for row, i in enumerate(batch):
            sequence = self._sequences[i]
            kept = sequence.kept()
            if "dense" in states:
                self._sums[sequence.text] += states["dense"][row]
            if "sparse" in states:
                self._entries.append(self._weighted(sequence, kept, states["sparse"][row]))
            if "multi_vector" in states:
                self._values[self._starts[i] : self._starts[i + 1]] = states["multi_vector"][row, kept]

    def _weighted(self, sequence: TokenSequence, kept: npt.NDArray[np.int64], weights: Array) -> npt.NDArray[np.void]:
        places = kept[(weights[kept] > 0) & ~np.isin(sequence.ids[kept], self._silent)]
        entries = np.empty(len(places), _ENTRY)
        entries["text"], entries["token"], entries["weight"] = sequence.text, sequence.ids[places], weights[places]
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
        return scipy.sparse.csr_array((best["weight"], best["token"], offsets), shape=shape)

    def _multi_vector(self) -> MultiVectors:
        ends = np.searchsorted([each.text for each in self._sequences], np.arange(self._texts), side="right")
        return MultiVectors(self._values, np.concatenate([[0], self._starts[ends]]))

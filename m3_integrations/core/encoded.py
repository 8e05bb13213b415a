"""Embeddings of texts in up to three modes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence, Set
from copy import copy
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse

from m3_integrations.core.errors import MissingMode, NonFiniteVector, WrongDimension

Mode = Literal["dense", "sparse", "multi_vector"]
"""A mode of embeddings: "dense", "sparse" or "multi_vector"."""
MODES: tuple[Mode, ...] = get_args(Mode)
"""All modes, in the order in which they are reported."""
Modes: TypeAlias = Sequence[Mode] | Set[Mode]  # mypy rejects ("dense",) as a Modes
"""Several modes, as a sequence or a set."""
SparseScore = Literal["sum", "mean", "idf"]
SPARSE_SCORES: tuple[SparseScore, ...] = get_args(SparseScore)
Fusion = Literal["sum", "rrf"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
DENSE: tuple[Mode, ...] = ("dense",)
Array: TypeAlias = npt.NDArray[np.float32]
"""An array of numbers."""
Ints: TypeAlias = npt.NDArray[np.integer[Any]]
Rows: TypeAlias = "Sequence[int] | Ints"


class MultiVectors:
    """Vectors of n texts: text i has rows `offsets[i]:offsets[i + 1]` of `values`.

    Args:
        values: Vectors, shape (total, dim), float32.
        offsets: Ascending from 0 to total, shape (n + 1,), int64.

    Raises:
        WrongDimension: If shapes or offsets do not match.
    """

    __slots__ = ("offsets", "values")
    values: Array
    offsets: npt.NDArray[np.int64]

    def __init__(self, values: npt.ArrayLike, offsets: npt.ArrayLike) -> None:
        self.values = _read_only(_real(values))
        self.offsets = _read_only(np.asarray(offsets, dtype=np.int64))
        if self.values.ndim != 2:
            raise WrongDimension(f"multi-vector values are (total, width), got shape {self.values.shape}")
        ends_meet = self.offsets.ndim == 1 and len(self.offsets) > 0 and self.offsets[0] == 0
        if not ends_meet or self.offsets[-1] != len(self.values) or np.any(np.diff(self.offsets) < 0):
            raise WrongDimension(f"offsets must rise from 0 to {len(self.values)}, one more of them than texts")

    @classmethod
    def of(cls, vectors: Sequence[npt.ArrayLike], width: int | None = None) -> MultiVectors:
        """Join one array per text.

        Args:
            vectors: Arrays of shape (tokens, dim).
            width: Dimension, needed only if there are no texts.

        Returns:
            The vectors, text by text.

        Raises:
            WrongDimension: If arrays have other shapes.
        """
        arrays = [_real(each) for each in vectors]
        if not arrays:
            return cls(np.zeros((0, width or 0), np.float32), np.zeros(1, np.int64))
        if len({each.shape[1:] for each in arrays}) != 1 or arrays[0].ndim != 2:
            raise WrongDimension(f"every text needs (tokens, width), got shapes {sorted({a.shape for a in arrays})}")
        return cls(np.concatenate(arrays), np.cumsum([0, *(len(each) for each in arrays)]))

    @property
    def width(self) -> int:
        return int(self.values.shape[1])

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of vectors of each text, shape (n,)."""
        return np.diff(self.offsets)

    def counts_of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return the number of vectors of each of these texts, shape (rows,).

        Args:
            rows: Row numbers.
        """
        begins = np.asarray(rows, np.int64)
        return self.offsets[begins + 1] - self.offsets[begins]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Array:
        i = range(len(self))[i]
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[Array]:
        return (self.values[begin:end] for begin, end in pairwise(self.offsets.tolist()))

    def take(self, rows: Rows) -> MultiVectors:
        """Return these texts in this order; rows may repeat.

        Args:
            rows: Row numbers.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        counts = self.counts[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        where = np.repeat(self.offsets[:-1][chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        return MultiVectors(self.values[where], offsets)

    def __repr__(self) -> str:
        return f"MultiVectors({len(self)} texts, {len(self.values)} vectors of {self.width})"


class Encoded:
    """Embeddings of n texts in some modes; immutable. One text is a batch of one.

    Reading a mode that is absent raises MissingMode. With `sparse_score` "mean", each row of `sparse` is divided by the
    sum of its weights, so that a query's sparse score is a mean over its weights as late interaction is one over its
    tokens. With "idf", an index multiplies each weight by a power of its token's inverse document frequency first;
    outside an index, "idf" is the same as "mean".

    Args:
        dense: Dense vectors, shape (n, dim), float32.
        sparse: Non-negative weights, shape (n, vocabulary), float32; the column is the model's token id.
        multi_vector: Vectors of n texts.

    Raises:
        MissingMode: If no mode is given.
        WrongDimension: If the modes hold different numbers of texts, or a sparse column is not below `vocabulary`.
        NonFiniteVector: If a value is NaN or infinite.
        ValueError: If a sparse weight is negative.
        TypeError: If vectors are not real numbers.
    """

    __slots__ = ("_idf", "_parts", "sparse_score")
    _parts: dict[Mode, Any]
    _idf: Array | None  # by token, shape (vocabulary,); 0 for tokens of no query
    sparse_score: SparseScore

    def __init__(
        self,
        dense: npt.ArrayLike | None = None,
        sparse: scipy.sparse.csr_array | None = None,
        multi_vector: MultiVectors | None = None,
    ) -> None:
        parts: dict[Mode, Any] = {}
        if dense is not None:
            parts["dense"] = _checked_dense(dense)
        if sparse is not None:
            parts["sparse"] = _checked_sparse(sparse)
        if multi_vector is not None:
            parts["multi_vector"] = _checked_multi_vector(multi_vector)
        if not parts:
            raise MissingMode(f"an Encoded needs at least one of {list(MODES)}")
        counts = {mode: row_count(part) for mode, part in parts.items()}
        if len(set(counts.values())) != 1:
            raise WrongDimension(f"every mode must hold the same number of texts, got {counts}")
        self._parts, self._idf = parts, None
        self.sparse_score = "sum"

    @classmethod
    def _from_parts(
        cls, parts: dict[Mode, Any], sparse_score: SparseScore = "sum", idf: Array | None = None
    ) -> Encoded:
        """Make an Encoded of validated parts."""
        encoded = cls.__new__(cls)
        encoded._parts, encoded._idf = parts, idf
        encoded.sparse_score = sparse_score
        return encoded

    @property
    def modes(self) -> frozenset[Mode]:
        return frozenset(self._parts)

    @property
    def dense(self) -> Array:
        dense: Array = self._part("dense")
        return dense

    @property
    def sparse(self) -> scipy.sparse.csr_array:
        rows: scipy.sparse.csr_array = self._part("sparse")
        if self.sparse_score == "sum":
            return rows
        return _divide_by_sums(rows if self._idf is None else _times_idf(rows, self._idf))

    @property
    def multi_vector(self) -> MultiVectors:
        vectors: MultiVectors = self._part("multi_vector")
        return vectors

    def _part(self, mode: Mode) -> Any:
        try:
            return self._parts[mode]
        except KeyError:
            raise _missing(mode, self.modes) from None

    def __len__(self) -> int:
        return row_count(next(iter(self._parts.values())))

    def take(self, rows: Rows) -> Encoded:
        """Return these rows in this order; rows may repeat.

        Args:
            rows: Row numbers.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        parts = {mode: _take(part, chosen) for mode, part in self._parts.items()}
        return Encoded._from_parts(parts, self.sparse_score, self._idf)

    def only(self, modes: Modes) -> Encoded:
        """Return the same texts in these modes only.

        Args:
            modes: Modes to keep.

        Raises:
            MissingMode: If a mode is absent.
        """
        if not modes:
            raise MissingMode(f"an Encoded needs at least one of {sorted(self.modes)}")
        parts = {mode: self._part(mode) for mode in MODES if mode in modes}
        return Encoded._from_parts(parts, self.sparse_score, self._idf)

    def join(self, *others: Encoded) -> Encoded:
        """Return these texts followed by those of the others.

        Args:
            others: Batches with the same modes and dimensions.

        Raises:
            MissingMode: If modes differ.
            WrongDimension: If dimensions differ.
            ValueError: If they have different sparse scores, or the idf of an index and none.
        """
        idfs = [each._idf for each in (self, *others)]
        known = [idf for idf in idfs if idf is not None]
        if any(other.sparse_score != self.sparse_score for other in others) or 0 < len(known) < len(idfs):
            raise ValueError("cannot join different sparse scores; use with_sparse_score of both first")
        for other in others:
            if other.modes != self.modes:
                raise MissingMode(
                    f"cannot join {sorted(self.modes)} with {sorted(other.modes)}; take .only(modes) of both first"
                )
        parts = {mode: _join([each._parts[mode] for each in (self, *others)]) for mode in self._parts}
        return Encoded._from_parts(parts, self.sparse_score, np.maximum.reduce(known) if known else None)

    def merge_queries(self) -> Encoded:
        """Merge phrasings of one query into one text that scores as their mean.

        Dense and sparse rows are averaged; all vectors of the multi-vectors are kept. An index applies idf to the mean.

        Returns:
            One query.

        Raises:
            ValueError: If there is no text.
        """
        if len(self) == 0:
            raise ValueError("there is no text to merge; pass at least one")
        parts: dict[Mode, Any] = {}
        for mode, part in self._parts.items():
            if mode == "multi_vector":
                parts[mode] = MultiVectors(part.values, [0, len(part.values)])
            elif mode == "dense":
                parts[mode] = _read_only(part.mean(axis=0, keepdims=True))
            else:
                share = scipy.sparse.csr_array(np.full((1, len(self)), 1 / len(self), np.float32))
                parts[mode] = _checked_sparse(share @ self.sparse)
        return Encoded._from_parts(parts, "idf" if self.sparse_score == "idf" and self._idf is None else "sum")

    def with_dense(self, dense: npt.ArrayLike) -> Encoded:
        """Return the same texts with other dense vectors.

        Args:
            dense: Vectors, shape (n, dim).
        """
        return self._with(dense=dense)

    def with_sparse(self, sparse: scipy.sparse.csr_array) -> Encoded:
        """Return the same texts with other sparse rows, which are not divided.

        Args:
            sparse: Rows, shape (n, vocabulary).
        """
        return Encoded(**{**self._named(), "sparse": sparse})

    def with_multi_vector(self, multi_vector: MultiVectors) -> Encoded:
        """Return the same texts with other multi-vectors.

        Args:
            multi_vector: Vectors of the n texts.
        """
        return self._with(multi_vector=multi_vector)

    def with_sparse_score(self, sparse_score: SparseScore) -> Encoded:
        """Return the same queries with their sparse scores as sums, or as means over the weights of a query.

        Args:
            sparse_score: "sum" for the weights as the model gives them, "mean" to divide each row by its sum, "idf" for
                an index to multiply by idf first. Each can be undone by the others.

        Raises:
            ValueError: If it is none of them.
        """
        check_sparse_score(sparse_score)
        return Encoded._from_parts(self._parts, sparse_score)

    def with_idf(self, idf_of: Callable[[Ints], Array]) -> Encoded:
        """Return the same queries with the idf of an index, as far as `sparse_score` is "idf".

        Each weight is multiplied by the square root of its token's idf, and each row then divided by its sum.

        Args:
            idf_of: Maps tokens, ascending, to the inverse document frequency of each.
        """
        if self.sparse_score != "idf" or "sparse" not in self._parts:
            return self
        rows = self._part("sparse")
        tokens = np.unique(rows.indices)
        idf = np.zeros(rows.shape[1], np.float32)
        idf[tokens] = idf_of(tokens)
        return Encoded._from_parts(self._parts, self.sparse_score, idf)

    def _with(self, **part: Any) -> Encoded:
        return Encoded._from_parts(Encoded(**{**self._named(), **part})._parts, self.sparse_score, self._idf)

    def _named(self) -> dict[str, Any]:
        return {str(mode): part for mode, part in self._parts.items()}

    def __repr__(self) -> str:
        return f"Encoded({len(self)} texts, {[mode for mode in MODES if mode in self._parts]})"


def row_count(part: Any) -> int:
    """Return the number of texts in a part of an Encoded, in any mode."""
    return int(part.shape[0]) if hasattr(part, "shape") else len(part)


def check_sparse_score(sparse_score: str) -> None:
    """Check that a sparse score is "sum", "mean" or "idf".

    Raises:
        ValueError: If it is none of them.
    """
    if sparse_score not in SPARSE_SCORES:
        raise ValueError(f"sparse_score is one of {list(SPARSE_SCORES)}, got {sparse_score!r}")


def check_modes(modes: Collection[str], available: Collection[Mode]) -> frozenset[Mode]:
    """Return modes as a set.

    Raises:
        MissingMode: If a mode is unknown or not available, or there is none.
    """
    if isinstance(modes, str):
        raise MissingMode(f"modes is a collection, got {modes!r}; write modes=({modes!r},)")
    if not modes:
        raise MissingMode(f"modes is empty; pass at least one of {sorted(available)}")
    for mode in sorted(modes):
        if mode not in available:
            raise _missing(mode, available)
    return frozenset(mode for mode in MODES if mode in modes)


def _missing(mode: str, present: Collection[str]) -> MissingMode:
    if mode not in MODES:
        return MissingMode(f"{mode!r} is not a mode; the modes are {list(MODES)}")
    wanted = tuple(each for each in MODES if each in {*present, mode})
    return MissingMode(
        f"{mode!r} is not available: these vectors are {sorted(present)}; pass modes={wanted!r} to the encoder"
    )


def _checked_dense(dense: npt.ArrayLike) -> Array:
    if np.ndim(dense) != 2:
        raise WrongDimension(
            f"dense vectors are (texts, dim), got shape {np.shape(dense)}; write vectors[None] for one text"
        )
    array = np.ascontiguousarray(_real(dense))  # sums depend on the memory layout
    _require_finite("dense", array)
    return _read_only(array)


def _real(values: npt.ArrayLike) -> Array:
    """Return real numbers as float32; numpy would drop imaginary parts and parse strings."""
    array = np.asarray(values)
    if array.dtype.kind in "cSUmM":
        raise TypeError(f"vectors are arrays of real numbers, got {array.dtype}; convert them with .astype(np.float32)")
    with np.errstate(over="ignore"):  # infinity is refused by name
        return np.asarray(array, np.float32)


def _checked_sparse(sparse: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    _require_columns_in_range(sparse)
    rows = scipy.sparse.csr_array(sparse, dtype=np.float32)
    if not rows.has_canonical_format or np.any(rows.data == 0):
        rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    _require_finite("sparse", rows.data, rows.indptr)
    if np.any(rows.data < 0):
        raise ValueError("sparse weights are never negative; clip them with numpy.maximum(weights, 0)")
    return rows


def _require_columns_in_range(sparse: Any) -> None:
    """Raise WrongDimension for a matrix that scipy would read beyond its memory: it does not check."""
    if not scipy.sparse.issparse(sparse):
        return
    if sparse.ndim != 2:
        raise WrongDimension(f"sparse rows are (texts, vocabulary), got shape {sparse.shape}")
    kind = sparse.format
    if kind == "coo":
        for indices, size in zip((sparse.row, sparse.col), sparse.shape, strict=True):
            _require_below(indices, size)
    elif kind in ("csr", "csc", "bsr"):
        blocks = sparse.blocksize if kind == "bsr" else (1, 1)
        major, minor = (size // block for size, block in zip(sparse.shape, blocks, strict=True))
        if kind == "csc":
            major, minor = minor, major
        indptr, indices = sparse.indptr, sparse.indices
        stored = min(len(indices), len(sparse.data))
        if len(indptr) != major + 1 or indptr[0] != 0 or indptr[-1] > stored or np.any(np.diff(indptr) < 0):
            raise WrongDimension(f"sparse offsets must rise from 0 to at most {stored}, one more of them than texts")
        _require_below(indices[: indptr[-1]], minor)


def _require_below(indices: Ints, size: int) -> None:
    if len(indices) and not 0 <= indices.min() <= indices.max() < size:
        raise WrongDimension(
            f"sparse columns are 0 to {size - 1}, got {indices.min()} to {indices.max()}; use the ids of the model's "
            "tokens and its vocabulary size"
        )


def _times_idf(rows: scipy.sparse.csr_array, idf: Array) -> scipy.sparse.csr_array:
    weighted = copy(rows)
    weighted.data = rows.data * np.sqrt(idf[rows.indices])
    return weighted


def _divide_by_sums(rows: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Return rows that add up to 1; empty rows stay empty. A row does not depend on the others."""
    row_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    sums = np.bincount(row_of, weights=rows.data, minlength=rows.shape[0])
    means = copy(rows)  # shallow, many times as fast as a new array, which is checked again
    means.data = (rows.data / sums[row_of]).astype(np.float32)
    return means


def _checked_multi_vector(vectors: MultiVectors) -> MultiVectors:
    if not isinstance(vectors, MultiVectors):
        raise WrongDimension(
            f"multi_vector is a MultiVectors, got {type(vectors).__name__}; write MultiVectors.of(arrays)"
        )
    _require_finite("multi_vector", vectors.values, vectors.offsets)
    return vectors


def _require_finite(mode: Mode, values: Array, offsets: npt.NDArray[np.integer[Any]] | None = None) -> None:
    """Raise NonFiniteVector for NaN or infinity; `offsets` mark the starts of texts."""
    # A finite sum has finite terms (infinities that cancel give NaN): one pass, no copy. BLAS sums rows in threads.
    with np.errstate(over="ignore", invalid="ignore"):
        sums = values @ np.ones(values.shape[1], values.dtype) if values.ndim == 2 else np.sum(values)
        if np.isfinite(sums).all() or bool(np.isfinite(values).all()):
            return
    bad = int(np.argwhere(~np.isfinite(values))[0][0])
    row = bad if offsets is None else int(np.searchsorted(offsets, bad, side="right")) - 1
    message = f"the {mode} vectors hold NaN or infinity, first in row {{position}}; remove or re-encode that text"
    raise NonFiniteVector(message, row)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _take(part: Any, rows: npt.NDArray[np.int64]) -> Any:
    if isinstance(part, MultiVectors):
        return part.take(rows)
    return _read_only(part[rows]) if isinstance(part, np.ndarray) else part[rows]


def _join(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], MultiVectors):
        _require_one_width("multi-vector", [part.width for part in parts])
        starts = np.cumsum([0, *(len(part.values) for part in parts)])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        return MultiVectors(np.concatenate([part.values for part in parts]), np.concatenate([[0], *offsets]))
    _require_one_width("dense" if isinstance(parts[0], np.ndarray) else "sparse", [part.shape[1] for part in parts])
    if isinstance(parts[0], np.ndarray):
        return _read_only(np.concatenate(parts))
    return scipy.sparse.vstack(parts, format="csr")


def _require_one_width(mode: str, widths: Sequence[int]) -> None:
    if len(set(widths)) > 1:
        raise WrongDimension(f"cannot join {mode} vectors of different widths {sorted(set(widths))}")


Arrays = dict[str, npt.NDArray[Any]]


def vector_arrays(encoded: Encoded, mode: Mode) -> tuple[npt.NDArray[Any], ...]:
    """Return the arrays of one mode's vectors, in a fixed order and type, for digests."""
    if mode == "dense":
        return (encoded.dense,)
    if mode == "sparse":
        rows = encoded.sparse
        return rows.data, rows.indices.astype(np.int64), rows.indptr.astype(np.int64)
    return encoded.multi_vector.values, encoded.multi_vector.offsets

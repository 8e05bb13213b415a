"""What comes out: texts as vectors in up to three modes, and how they score against each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse

from m3_integrations.core.errors import MissingMode, NonFiniteVector, WrongDimension

Mode = Literal["dense", "sparse", "multi_vector"]
MODES: tuple[Mode, ...] = get_args(Mode)
DENSE: tuple[Mode, ...] = ("dense",)
Array: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]
Rows: TypeAlias = "Sequence[int] | Ints"
# OpenBLAS gives a product of fewer multiplications than this to one thread. To wake others for less costs more than it
# wins, and where the cores are busy a thousand times as much.
_ON_ONE_THREAD = (1 << 19) - 1
_SIMILARITIES_AT_ONCE = 1 << 18
_BUCKETS = 1 << 12


class MultiVectors:
    """The vectors of n texts, ragged: text i owns the rows `offsets[i]:offsets[i + 1]` of `values`.

    values: (total, width) float32; offsets: (n + 1,) int64, from 0 to total, never falling.
    """

    __slots__ = ("offsets", "values")
    values: Array
    offsets: npt.NDArray[np.int64]

    def __init__(self, values: npt.ArrayLike, offsets: npt.ArrayLike) -> None:
        self.values = _read_only(np.asarray(values, dtype=np.float32))
        self.offsets = _read_only(np.asarray(offsets, dtype=np.int64))
        if self.values.ndim != 2:
            raise WrongDimension(f"multi-vector values are (total, width), got shape {self.values.shape}")
        ends_meet = self.offsets.ndim == 1 and len(self.offsets) > 0 and self.offsets[0] == 0
        if not ends_meet or self.offsets[-1] != len(self.values) or np.any(np.diff(self.offsets) < 0):
            raise WrongDimension(f"offsets must rise from 0 to {len(self.values)}, one more of them than texts")

    @classmethod
    def of(cls, vectors: Sequence[npt.ArrayLike], width: int | None = None) -> MultiVectors:
        """Join one (tokens_i, width) array a text; `width` says it where there is no text to tell."""
        arrays = [np.asarray(each, dtype=np.float32) for each in vectors]
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
        """(n,) how many vectors each text has."""
        return np.diff(self.offsets)

    def counts_of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """(rows,) how many vectors each of these texts has."""
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
        chosen = np.asarray(rows, dtype=np.int64)
        counts = self.counts[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        where = np.repeat(self.offsets[:-1][chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        return MultiVectors(self.values[where], offsets)

    def __repr__(self) -> str:
        return f"MultiVectors({len(self)} texts, {len(self.values)} vectors of {self.width})"


class Encoded:
    """n texts in some modes; immutable. One text is a batch of one.

    dense: (n, dim) float32. sparse: (n, vocab) float32 csr_array, >= 0, column = token id of the model.
    multi_vector: MultiVectors of n texts. A mode that is not there raises MissingMode when touched.
    Raises WrongDimension when the modes disagree on n, NonFiniteVector on NaN or infinity, ValueError on a negative
    sparse weight.
    """

    __slots__ = ("_parts",)
    _parts: dict[Mode, Any]

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
        counts = {mode: rows_of(part) for mode, part in parts.items()}
        if len(set(counts.values())) != 1:
            raise WrongDimension(f"every mode must hold the same number of texts, got {counts}")
        self._parts = parts

    @classmethod
    def _of(cls, parts: dict[Mode, Any]) -> Encoded:
        """From parts that were checked before."""
        encoded = cls.__new__(cls)
        encoded._parts = parts
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
        return self._part("sparse")

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
        return rows_of(next(iter(self._parts.values())))

    def take(self, rows: Rows) -> Encoded:
        """These texts, in this order; a row may come twice."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Encoded._of({mode: _take(part, chosen) for mode, part in self._parts.items()})

    def only(self, modes: Collection[Mode]) -> Encoded:
        """The same texts in these modes alone. Raises MissingMode for one that is not there."""
        if not modes:
            raise MissingMode(f"an Encoded needs at least one of {sorted(self.modes)}")
        return Encoded._of({mode: self._part(mode) for mode in MODES if mode in modes})

    def join(self, *others: Encoded) -> Encoded:
        """These texts, then those of the others, all in the same modes."""
        for other in others:
            if other.modes != self.modes:
                raise MissingMode(
                    f"cannot join {sorted(self.modes)} with {sorted(other.modes)}; take .only(modes) of both first"
                )
        parts = {mode: _join([each._parts[mode] for each in (self, *others)]) for mode in self._parts}
        return Encoded._of(parts)

    def merged(self) -> Encoded:
        """One text out of several phrasings of it, which scores as their mean: dense and sparse rows averaged, all
        vectors kept."""
        if len(self) == 0:
            raise ValueError("there is nothing to merge; give at least one text")
        parts: dict[Mode, Any] = {}
        for mode, part in self._parts.items():
            if mode == "multi_vector":
                parts[mode] = MultiVectors(part.values, [0, len(part.values)])
            elif mode == "dense":
                parts[mode] = _read_only(part.mean(axis=0, keepdims=True))
            else:
                share = scipy.sparse.csr_array(np.full((1, len(self)), 1 / len(self), np.float32))
                parts[mode] = _checked_sparse(share @ part)
        return Encoded._of(parts)

    def with_dense(self, dense: npt.ArrayLike) -> Encoded:
        """The same texts with other dense vectors."""
        return Encoded(**{**self._named(), "dense": dense})

    def with_sparse(self, sparse: scipy.sparse.csr_array) -> Encoded:
        """The same texts with other sparse rows."""
        return Encoded(**{**self._named(), "sparse": sparse})

    def with_multi_vector(self, multi_vector: MultiVectors) -> Encoded:
        """The same texts with other multi-vectors."""
        return Encoded(**{**self._named(), "multi_vector": multi_vector})

    def _named(self) -> dict[str, Any]:
        return {str(mode): part for mode, part in self._parts.items()}

    def __repr__(self) -> str:
        return f"Encoded({len(self)} texts, {[mode for mode in MODES if mode in self._parts]})"


def score(queries: Encoded, passages: Encoded, weights: Mapping[Mode, float]) -> Array:
    """(queries, passages): the weighted sum of the exact scores of each weighted mode (arXiv 2402.03216, section 3.2).

    Raises MissingMode where a weighted mode is absent on either side, ValueError where no mode has a weight.
    """
    weighted = {mode: weight for mode, weight in weights.items() if weight}
    if not weighted:
        raise ValueError(f"give at least one of {list(MODES)} a weight, got {dict(weights)}")
    total = np.zeros((len(queries), len(passages)), np.float32)
    for mode, weight in weighted.items():
        total += np.float32(weight) * score_mode(mode, queries, passages)
    return total


def score_mode(mode: Mode, queries: Encoded, passages: Encoded) -> Array:
    """(queries, passages): the exact scores of one mode."""
    if mode == "dense":
        return dense_scores(queries.dense, passages.dense)
    if mode == "sparse":
        return sparse_scores(queries.sparse, passages.sparse)
    if mode == "multi_vector":
        return multi_vector_scores(queries.multi_vector, passages.multi_vector)
    raise MissingMode(f"{mode!r} is no mode; the modes are {list(MODES)}")


def dense_scores(queries: Array, passages: Array) -> Array:
    """(queries, passages): inner products, each rounded alike whatever else is scored beside it."""
    if queries.shape[1] != passages.shape[1]:
        raise WrongDimension(f"the query has {queries.shape[1]} dimensions and the passages {passages.shape[1]}")
    scores = np.empty((len(queries), len(passages)), np.float32)
    for i, query in enumerate(queries):
        # Not a matrix product: BLAS rounds a pair differently in batches of other shapes, and ties would break by luck.
        np.einsum("pd,d->p", passages, query, out=scores[i])
    return scores


def sparse_scores(queries: scipy.sparse.csr_array, passages: scipy.sparse.csr_array | scipy.sparse.csc_array) -> Array:
    """(queries, passages): the sum over shared tokens of the products of their weights, added by ascending token.

    passages: by row; or by column, which spares many queries from turning them.
    """
    if queries.shape[1] != passages.shape[1]:
        raise WrongDimension(f"the query has {queries.shape[1]} sparse columns and the passages {passages.shape[1]}")
    # Not scipy's product, whose compiler may join a product and a sum: both ways below add the same, to the bit.
    if passages.format == "csr" and queries.shape[0] == 1:
        return shared_weights(queries.indices, queries.data, passages.indptr, passages.indices, passages.data)[None]
    turned = passages.tocsc()
    scores = np.zeros((queries.shape[0], passages.shape[0]), np.float32)
    for i, (tokens, weights) in enumerate(entries_of(queries)):
        _add_by_token(scores[i], tokens, weights, turned)
    return scores


def entries_of(rows: scipy.sparse.csr_array) -> Iterator[tuple[Ints, Array]]:
    """The columns and the weights of each row."""
    for begin, end in pairwise(rows.indptr.tolist()):
        yield rows.indices[begin:end], rows.data[begin:end]


def _add_by_token(scores: Array, tokens: Ints, weights: Array, passages: scipy.sparse.csc_array) -> None:
    for token, weight in zip(tokens.tolist(), weights, strict=True):
        listed = slice(passages.indptr[token], passages.indptr[token + 1])
        np.add.at(scores, passages.indices[listed], weight * passages.data[listed])


def shared_weights(tokens: Ints, importances: Array, offsets: Ints, columns: Ints, weights: Array) -> Array:
    """(rows,): the sparse scores of one query with rows that are said as in a csr_array, added by ascending token.

    tokens, importances: the query's, tokens ascending. offsets: (rows + 1,). columns, weights: (total,), each row's
    columns ascending.
    """
    alike = np.zeros(_BUCKETS, bool)
    alike[tokens % _BUCKETS] = True
    found = np.flatnonzero(alike[columns % _BUCKETS])  # few: only these are looked up
    places = np.minimum(np.searchsorted(tokens, columns[found]), len(tokens) - 1)
    shared = tokens[places] == columns[found]
    found, places = found[shared], places[shared]
    scores = np.zeros(len(offsets) - 1, np.float32)
    rows = np.searchsorted(offsets, found, side="right") - 1
    np.add.at(scores, rows, importances[places] * weights[found])
    return scores


def multi_vector_scores(queries: MultiVectors, passages: MultiVectors) -> Array:
    """(queries, passages): the late-interaction score of each pair."""
    if queries.width != passages.width:
        raise WrongDimension(f"query vectors are {queries.width} wide and passage vectors {passages.width}")
    scores = [late_interactions(query, passages, passages.counts) for query in queries]
    return np.array(scores, np.float32).reshape(len(queries), len(passages))


def late_interactions(query: Array, passages: Iterable[Array], counts: npt.NDArray[np.int64]) -> Array:
    """(passages,): the mean over the query's vectors of the maximum over the passage's (MaxSim).

    0 where either has none. A pair is rounded alike whatever else is scored beside it.
    query: (query tokens, width). passages: (tokens_i, width) each, taken one at a time; counts: (passages,) the tokens.
    """
    if not len(query):
        return np.zeros(len(counts), np.float32)
    coming, parts = iter(passages), in_parts(counts * len(query), _SIMILARITIES_AT_ONCE)
    return np.concatenate([_late_interactions(query, islice(coming, len(part)), counts[part]) for part in parts])


def _late_interactions(query: Array, passages: Iterable[Array], counts: npt.NDArray[np.int64]) -> Array:
    starts = np.concatenate([[0], np.cumsum(counts)])
    similarities = np.empty((len(query), starts[-1]), np.float32)
    step = max(1, _ON_ONE_THREAD // max(1, query.size))
    # The query stands first: with vectors of 384 that takes a fifth less than the other way round, of 1,024 as long.
    for passage, (start, stop) in zip(passages, pairwise(starts.tolist()), strict=True):
        if stop - start > step:
            _multiply(query, passage, step, similarities[:, start:stop])
        elif stop > start:
            np.matmul(query, passage.T, out=similarities[:, start:stop])
    scores, some = np.zeros(len(counts), np.float32), np.flatnonzero(counts)
    if len(some):
        nearest = np.maximum.reduceat(similarities, starts[some], axis=1).T
        scores[some] = np.ascontiguousarray(nearest).sum(axis=1) / np.float32(len(query))
    return scores


def _multiply(query: Array, passage: Array, step: int, out: Array) -> None:
    """out = query @ passage.T, `step` rows at a time: numpy goes through the steps without coming back to Python."""
    whole = len(passage) // step * step
    steps = passage[:whole].reshape(-1, step, passage.shape[1])
    np.matmul(query, steps.transpose(0, 2, 1), out=out[:, :whole].reshape(len(query), -1, step).transpose(1, 0, 2))
    if whole < len(passage):
        np.matmul(query, passage[whole:].T, out=out[:, whole:])


def in_parts(sizes: npt.NDArray[np.int64], at_once: int) -> list[npt.NDArray[np.int64]]:
    """The places of the sizes in consecutive parts, each of which is about `at_once` together, or one of more."""
    every, totals = np.arange(len(sizes)), np.cumsum(sizes)
    if not len(sizes) or totals[-1] < at_once:
        return [every]
    return np.split(every, np.flatnonzero(np.diff(totals // at_once)) + 1)


def rows_of(part: Any) -> int:
    """How many texts a part of an Encoded holds, whichever mode it is."""
    return int(part.shape[0]) if hasattr(part, "shape") else len(part)


def check_modes(modes: Collection[str], available: Collection[Mode]) -> frozenset[Mode]:
    """The modes as a set. Raises MissingMode for a word that is none, one that is not available, or none at all."""
    if isinstance(modes, str):
        raise MissingMode(f"modes is a collection, got {modes!r}; write modes=({modes!r},)")
    if not modes:
        raise MissingMode(f"ask for at least one of {sorted(available)}")
    for mode in sorted(modes):
        if mode not in available:
            raise _missing(mode, available)
    return frozenset(mode for mode in MODES if mode in modes)


def _missing(mode: str, present: Collection[str]) -> MissingMode:
    if mode not in MODES:
        return MissingMode(f"{mode!r} is no mode; the modes are {list(MODES)}")
    wanted = tuple(each for each in MODES if each in {*present, mode})
    return MissingMode(
        f"{mode!r} was asked for, but these vectors are {sorted(present)}; pass modes={wanted!r} to the encoder"
    )


def _checked_dense(dense: npt.ArrayLike) -> Array:
    array = np.ascontiguousarray(dense, dtype=np.float32)  # another layout would be summed in another order
    if np.ndim(dense) != 2:
        raise WrongDimension(
            f"dense vectors are (texts, dim), got shape {np.shape(dense)}; write vectors[None] for one text"
        )
    _require_finite("dense", array)
    return _read_only(array)


def _checked_sparse(sparse: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    rows = scipy.sparse.csr_array(sparse, dtype=np.float32)
    if not rows.has_canonical_format or np.any(rows.data == 0):
        rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    _require_finite("sparse", rows.data, rows.indptr)
    if np.any(rows.data < 0):
        raise ValueError("sparse weights are never negative; clip them with numpy.maximum(weights, 0)")
    return rows


def _checked_multi_vector(vectors: MultiVectors) -> MultiVectors:
    if not isinstance(vectors, MultiVectors):
        raise WrongDimension(
            f"multi_vector is a MultiVectors, got {type(vectors).__name__}; write MultiVectors.of(arrays)"
        )
    _require_finite("multi_vector", vectors.values, vectors.offsets)
    return vectors


def _require_finite(mode: Mode, values: Array, offsets: npt.NDArray[np.integer[Any]] | None = None) -> None:
    """offsets: where each text's values begin; None where text i is row i."""
    # A sum is finite only where every term is (or where infinities do not cancel: those give NaN): one pass, no copy.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(values)) or bool(np.isfinite(values).all()):
            return
    bad = int(np.argwhere(~np.isfinite(values))[0][0])
    row = bad if offsets is None else int(np.searchsorted(offsets, bad, side="right")) - 1
    raise NonFiniteVector(f"the {mode} vectors hold NaN or infinity, first in row {row}; remove or re-encode that text")


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

"""Segments: files with the vectors of one mode for some passages, written once and mapped into memory.

Each row has the slot of its passage, a number that the catalogue gives once and never again. A slot that comes in two
segments of a mode has its vectors in the later one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse

from m3_integrations.core.encoded import (
    Array,
    Encoded,
    Ints,
    Mode,
    MultiVectors,
    in_parts,
    late_interactions,
)
from m3_integrations.index.arrays import Arrays, Mapped, Stamp, damaged, map_arrays, write_arrays
from m3_integrations.index.byte_vectors import BYTES, LEFT_OUT, REACH, are_limits, byte_vectors, reach_of
from m3_integrations.index.coarse import COARSE, WIDEST, coarse_copy, is_coarse_copy, longest_of
from m3_integrations.index.codes import Bytes, Codes, Coding

Longs: TypeAlias = npt.NDArray[np.int64]


class Segment(NamedTuple):
    """One mapped segment. arrays: what `_SHAPES` and `_shapes_coded` say; coding: None where values are kept."""

    mode: Mode
    width: int
    path: Path
    arrays: Mapped
    coding: Coding | None = None

    @property
    def slots(self) -> Longs:
        """(rows,) the slot of each row."""
        return self.arrays["slots"]

    @property
    def written(self) -> Longs:
        """(rows,) the generation in which each row's vectors were made; merging does not change it."""
        return self.arrays["written"]

    @property
    def longest(self) -> float:
        """How long its longest dense vector is at most. Before format 4 squares in float32 could be 0 or infinite."""
        least, most = (limit * math.sqrt(self.width) for limit in _LENGTHS)
        return min(max(float(self.arrays["longest"][0]), least), most)

    @property
    def is_copied(self) -> bool:
        """Whether its dense vectors have a coarse copy: not before format 4, and not where they are too wide."""
        return "copy" in self.arrays

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, rows: Longs) -> Encoded:
        """A copy of these rows. Raises DamagedFolder where what is there cannot be vectors."""
        try:
            return _TAKE[self.mode](self, rows)
        except (IndexError, ValueError) as error:
            raise damaged(self.path, f"holds what cannot be vectors ({error})") from error


class Ragged(NamedTuple):
    """Rows whose vectors lie one row after the other in segments. numbers: of which one; begins, ends: where in it."""

    segments: Mapping[int, Segment]
    numbers: Longs
    begins: Longs
    ends: Longs

    @property
    def counts(self) -> Longs:
        return self.ends - self.begins

    def some(self, which: npt.NDArray[Any]) -> Ragged:
        return Ragged(self.segments, self.numbers[which], self.begins[which], self.ends[which])

    def joined(self) -> Ragged:
        """The same vectors; rows that follow one another in a segment are one."""
        apart = (self.numbers[1:] != self.numbers[:-1]) | (self.begins[1:] != self.ends[:-1])
        first, last = (np.flatnonzero(edges) for edges in (np.append(True, apart), np.append(apart, True)))
        return Ragged(self.segments, self.numbers[first], self.begins[first], self.ends[last])

    def read_ahead(self) -> None:
        """Begin to read the vectors from the disk, where they are not in memory, unless they are very many."""
        width = next(iter(self.segments.values())).width if len(self) else 0
        if 0 < 4 * width * int(self.counts.sum()) < _READ_AHEAD:
            for segment, some in self.joined().spans():
                segment.arrays.read_ahead("values" if segment.coding is None else "numbers", some)

    def spans(self) -> Iterator[tuple[Segment, slice]]:
        """Each row's segment, and its place there."""
        rows = zip(self.numbers.tolist(), self.begins.tolist(), self.ends.tolist(), strict=True)
        return ((self.segments[number], slice(begin, end)) for number, begin, end in rows)

    def __len__(self) -> int:
        return len(self.numbers)


def write_segment(path: Path, slots: Longs, written: Longs, encoded: Encoded, coding: Coding | None) -> Stamp:
    """Write and sync a segment of the one mode that `encoded` has; row i is of slots[i], made in written[i]."""
    (mode,) = encoded.modes
    arrays = _LAY_OUT[mode](encoded) if coding is None else _lay_out_coded(encoded, coding)
    return write_arrays(path, {"slots": slots, "written": written, **arrays})


def map_segment(path: Path, mode: Mode, width: int, length: int, coding: Coding | None) -> Segment:
    """Raises FileNotFoundError, and DamagedFolder where the file is no such segment."""
    arrays = map_arrays(path, length)
    found = {name: (array.dtype.str, array.ndim) for name, array in arrays.items()}
    if found not in (_SHAPES[mode] if coding is None else _shapes_coded(coding)):
        raise damaged(
            path, f"is no {mode} segment of {coding.precision if coding else 'float32'}: it holds {sorted(found)}"
        )
    segment = Segment(mode, width, path, arrays, coding)
    wrong = _FAULT[mode](segment) if len(segment.written) == len(segment) else "holds rows that are not dated"
    if wrong:
        raise damaged(path, wrong)
    return segment


def add_token_scores(segment: Segment, query: scipy.sparse.csr_array, scores: Array) -> None:
    """Add to (rows,) scores how much each row shares with one query's tokens, token by token over the inverted lists.

    Raises DamagedFolder where a list names a row that is not there.
    """
    try:
        _add_token_scores(segment, query, scores)
    except IndexError as error:
        raise damaged(segment.path, f"holds lists of rows that it has not ({error})") from error


def _add_token_scores(segment: Segment, query: scipy.sparse.csr_array, scores: Array) -> None:
    arrays = segment.arrays
    listed, with_list = _places(arrays["terms"], query.indices)
    common, with_all = _places(arrays.get("common", _NO_TERMS), query.indices)
    begins, ends = (arrays["term_offsets"][listed + after] for after in (0, 1))
    importances, done = query.data[with_list], 0
    for place, weight, before in zip(common, query.data[with_all], np.searchsorted(with_list, with_all), strict=True):
        _add_lists(arrays, begins[done:before], ends[done:before], importances[done:before], scores)
        scores += arrays["common_weights"][place] * weight
        done = before
    _add_lists(arrays, begins[done:], ends[done:], importances[done:], scores)


def _add_lists(arrays: Arrays, begins: Longs, ends: Longs, importances: Array, scores: Array) -> None:
    """One list of rows after the other, times its importance."""
    for some in in_parts(ends - begins, _POSTINGS_AT_ONCE) if len(begins) else []:
        spans = [slice(*span) for span in zip(begins[some].tolist(), ends[some].tolist(), strict=True)]
        weights = np.concatenate([arrays["posted_weights"][span] for span in spans])
        weights *= np.repeat(importances[some], ends[some] - begins[some])
        np.add.at(scores, np.concatenate([arrays["posted"][span] for span in spans]), weights)  # += would read first


def _places(terms: Ints, tokens: Ints) -> tuple[Ints, Ints]:
    """Where the tokens stand among the terms, both ascending, and which of them do."""
    if not len(terms):
        return _NO_TERMS, _NO_TERMS
    places = np.minimum(np.searchsorted(terms, tokens.astype(terms.dtype)), len(terms) - 1)  # as another type all terms
    shared = np.flatnonzero(terms[places] == tokens)
    return places[shared], shared


def late_scores(rows: Ragged, query: Array) -> Array:
    """(rows,) the late-interaction scores of one query with these rows.

    query: (query tokens, width). The vectors are read where they lie, and decoded where they are coded.
    """
    coding = next(iter(rows.segments.values())).coding if len(rows) else None
    return late_interactions(coding.facing(query) if coding else query, _passages(rows), rows.counts)


def _passages(rows: Ragged) -> Iterator[Array]:
    for segment, some in rows.spans():
        if segment.coding is None:
            yield segment.arrays["values"][some]
        else:
            yield segment.coding.near(Codes(segment.arrays["numbers"][some], segment.arrays["scales"][some]))


def sparse_rows(lying: Sequence[tuple[Segment, Longs]]) -> tuple[Longs, npt.NDArray[np.int32], Array]:
    """The offsets, columns and weights of these rows of these segments, as a csr_array has them."""
    counts, columns, weights = [0], [_NONE.astype(np.int32)], [_NONE.astype(np.float32)]
    for segment, rows in lying:
        spans = _spans(segment, rows)  # slices: to pick by places takes half as long again
        counts += [end - begin for begin, end in spans]
        columns += [segment.arrays["columns"][begin:end] for begin, end in spans]
        weights += [segment.arrays["weights"][begin:end] for begin, end in spans]
    return np.cumsum(counts), np.concatenate(columns), np.concatenate(weights)


def _spans(segment: Segment, rows: Longs) -> list[tuple[int, int]]:
    """Where the elements of each row begin and end."""
    offsets = segment.arrays["offsets"]
    return list(zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True))


def _lay_out_dense(encoded: Encoded) -> Arrays:
    with np.errstate(over="ignore"):  # infinite is a bound too
        longest = np.nextafter(np.float32(longest_of(encoded.dense)), np.float32(np.inf))
    copy = coarse_copy(encoded.dense) if encoded.dense.shape[1] <= WIDEST else {}
    return {"values": encoded.dense, "longest": np.array([longest]), **copy}


def _lay_out_sparse(encoded: Encoded) -> Arrays:
    """Rows, and of each token the list of its rows; of a common one the weights of all rows, which takes no longer."""
    rows = encoded.sparse
    columns = rows.tocsc()
    counts = np.diff(columns.indptr)
    common = np.flatnonzero(counts * _COMMON > rows.shape[0])
    listed = np.flatnonzero((counts > 0) & (counts * _COMMON <= rows.shape[0]))
    lists = columns[:, listed]
    return {
        "offsets": rows.indptr.astype(np.int64),
        "columns": rows.indices.astype(np.int32),
        "weights": rows.data,
        "terms": listed.astype(np.int32),
        "term_offsets": lists.indptr.astype(np.int64),
        "posted": lists.indices.astype(np.int32),
        "posted_weights": lists.data,
        "common": common.astype(np.int32),
        "common_weights": columns[:, common].toarray().T,
    }


def _lay_out_multi_vector(encoded: Encoded) -> Arrays:
    vectors = encoded.multi_vector
    return {"offsets": vectors.offsets, "values": vectors.values, **byte_vectors(vectors.values)}


def _lay_out_coded(encoded: Encoded, coding: Coding) -> Arrays:
    codes = coding.encode(encoded.multi_vector.values)
    reach = reach_of(codes) if isinstance(coding, Bytes) else {}
    return {"offsets": encoded.multi_vector.offsets, **codes._asdict(), **reach}


def _take_dense(segment: Segment, rows: Longs) -> Encoded:
    return Encoded(dense=segment.arrays["values"][rows])


def _take_sparse(segment: Segment, rows: Longs) -> Encoded:
    picked, offsets = _ragged(segment.arrays["offsets"], rows)
    columns = segment.arrays["columns"][picked]
    # scipy's own loops trust the columns that they are given.
    if len(columns) and not 0 <= columns.min() <= columns.max() < segment.width:
        raise ValueError("a column outside the vocabulary")
    weights = segment.arrays["weights"][picked]
    return Encoded(sparse=scipy.sparse.csr_array((weights, columns, offsets), shape=(len(rows), segment.width)))


def _take_multi_vector(segment: Segment, rows: Longs) -> Encoded:
    picked, offsets = _ragged(segment.arrays["offsets"], rows)
    if segment.coding is None:
        return Encoded(multi_vector=MultiVectors(segment.arrays["values"][picked], offsets))
    codes = Codes(segment.arrays["numbers"][picked], segment.arrays["scales"][picked])
    return Encoded(multi_vector=MultiVectors(segment.coding.decode(codes), offsets))


def _ragged(offsets: Longs, rows: Longs) -> tuple[Longs, Longs]:
    """The places of these rows' elements, one row after the other, and where each row now begins."""
    counts = offsets[rows + 1] - offsets[rows]
    begins = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(offsets[rows] - begins[:-1], counts) + np.arange(begins[-1]), begins


def _fault_dense(segment: Segment) -> str:
    wanted = (len(segment), segment.width)
    shape = segment.arrays["values"].shape
    if shape != wanted:
        return f"holds dense vectors of shape {shape} instead of {wanted}"
    if segment.arrays["longest"].shape != (1,) or not segment.arrays["longest"][0] >= 0:
        return "holds dense vectors of no length"
    copied = not segment.is_copied or is_coarse_copy(segment.arrays, *wanted)
    return "" if copied else "holds a coarse copy that cannot be of its dense vectors"


def _fault_sparse(segment: Segment) -> str:
    it = segment.arrays
    rows = _are_offsets(it["offsets"], len(segment), len(it["columns"])) and len(it["columns"]) == len(it["weights"])
    terms = _are_offsets(it["term_offsets"], len(it["terms"]), len(it["posted"]))
    inverted = terms and len(it["posted"]) == len(it["posted_weights"])
    inverted = inverted and ("common" not in it or it["common_weights"].shape == (len(it["common"]), len(segment)))
    return "" if rows and inverted else "holds sparse rows that do not add up"


def _fault_multi_vector(segment: Segment) -> str:
    it, coding = segment.arrays, segment.coding
    width = segment.width if coding is None else coding.bytes_of(segment.width)
    total = len(it["values" if coding is None else "numbers"])
    shapes = {"values": (total, segment.width), "numbers": (total, width), "scales": (total,)}
    whole = all(it[name].shape == shape for name, shape in shapes.items() if name in it)
    whole = whole and _are_offsets(it["offsets"], len(segment), total) and are_limits(it)
    return "" if whole else "holds multi-vectors that do not add up"


def _are_offsets(offsets: Longs, rows: int, total: int) -> bool:
    return len(offsets) == rows + 1 and offsets[0] == 0 and offsets[-1] == total and bool((np.diff(offsets) >= 0).all())


_NONE = np.empty(0, np.int64)
_LENGTHS = (2e-19, 3.5e38)
_POSTINGS_AT_ONCE = 1 << 14
_COMMON = 4  # a token that one row in so many has
_READ_AHEAD = 1 << 26
_NO_TERMS = np.empty(0, np.int32)
_FLOATS, _INTS, _LONGS = "<f4", "<i4", "<i8"
_EACH = {"slots": (_LONGS, 1), "written": (_LONGS, 1)}
_RAGGED = {**_EACH, "offsets": (_LONGS, 1)}
_DENSE = {**_EACH, "values": (_FLOATS, 2), "longest": (_FLOATS, 1)}
_POSTED = {
    **_RAGGED,
    "columns": (_INTS, 1),
    "weights": (_FLOATS, 1),
    "terms": (_INTS, 1),
    "term_offsets": (_LONGS, 1),
    "posted": (_INTS, 1),
    "posted_weights": (_FLOATS, 1),
}
_SHAPES: Mapping[Mode, Sequence[Mapping[str, tuple[str, int]]]] = {
    "dense": [{**_DENSE, **COARSE}, _DENSE],
    "sparse": [{**_POSTED, "common": (_INTS, 1), "common_weights": (_FLOATS, 2)}, _POSTED],
    "multi_vector": [
        {**_RAGGED, "values": (_FLOATS, 2), **BYTES, **REACH, **LEFT_OUT},
        {**_RAGGED, "values": (_FLOATS, 2)},
    ],
}


def _shapes_coded(coding: Coding) -> Sequence[Mapping[str, tuple[str, int]]]:
    codes = {**_RAGGED, **BYTES, "numbers": (coding.dtype, 2)}
    return [{**codes, **REACH}, codes] if isinstance(coding, Bytes) else [codes]


_LAY_OUT: Mapping[Mode, Callable[[Encoded], dict[str, npt.NDArray[Any]]]] = {
    "dense": _lay_out_dense,
    "sparse": _lay_out_sparse,
    "multi_vector": _lay_out_multi_vector,
}
_TAKE: Mapping[Mode, Callable[[Segment, Longs], Encoded]] = {
    "dense": _take_dense,
    "sparse": _take_sparse,
    "multi_vector": _take_multi_vector,
}
_FAULT: Mapping[Mode, Callable[[Segment], str]] = {
    "dense": _fault_dense,
    "sparse": _fault_sparse,
    "multi_vector": _fault_multi_vector,
}

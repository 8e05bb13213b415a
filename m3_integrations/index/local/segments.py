"""Immutable, memory-mapped segment files; inverted lists.

A segment has the embeddings of some passages in one mode. Each row has the slot of its passage: a number that the
catalog assigns once and never reuses. If two segments of a mode have the same slot, the later one has its embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse
import xxhash

from m3_integrations.core.encoded import Array, Arrays, Encoded, Ints, Mode, MultiVectors
from m3_integrations.core.files import FileChecksum
from m3_integrations.core.scoring import in_parts, maxsim
from m3_integrations.index.local.array_file import MappedArrays, damaged_file_error, map_arrays, write_arrays
from m3_integrations.index.quantization import dense_int8, multi_vector_int8
from m3_integrations.index.quantization.codecs import Codec, Codes, Int8Codec
from m3_integrations.index.quantization.multi_vector_int8 import CODE_ARRAYS, ERROR_ARRAYS, NORM_ARRAYS
from m3_integrations.index.validation import widths

UNPUBLISHED = ".part"  # suffix of a segment's file until its commit is acknowledged
Longs: TypeAlias = npt.NDArray[np.int64]


class Segment(NamedTuple):
    """One mapped segment.

    Attributes:
        mode: The mode of its embeddings.
        width: Number of dimensions, or of sparse columns.
        path: Its file.
        arrays: Its arrays, as in `_LAYOUTS` or `_coded_layouts`.
        codec: Codec of its multi-vectors; None if they are float32.
    """

    mode: Mode
    width: int
    path: Path
    arrays: MappedArrays
    codec: Codec | None = None

    @property
    def slots(self) -> Longs:
        """Slot of each row, shape (rows,)."""
        return self.arrays["slots"]

    @property
    def written(self) -> Longs:
        """Generation of each row's embedding, shape (rows,); merging does not change it."""
        return self.arrays["written"]

    @property
    def max_norm(self) -> float:
        """Upper bound on the norm of its dense vectors.

        It is clipped, because before format 4 it was computed in float32, where squares underflow and overflow.
        """
        low, high = (limit * math.sqrt(self.width) for limit in _NORM_LIMITS)
        return min(max(float(self.arrays["longest"][0]), low), high)

    @property
    def has_int8_copy(self) -> bool:
        """Whether its dense vectors have an int8 copy.

        They do from format 4 on, unless they have too many dimensions.
        """
        return "copy" in self.arrays

    def __len__(self) -> int:
        return len(self.arrays.unverified("slots"))

    def take(self, rows: Longs) -> Encoded:
        """Return a copy of some rows.

        Raises:
            DamagedFolder: If the file does not contain valid embeddings.
        """
        try:
            return _READERS[self.mode](self, rows)
        except (IndexError, ValueError) as error:
            raise damaged_file_error(self.path, f"contains invalid vectors ({error})") from error


class RaggedRows(NamedTuple):
    """Locations of the multi-vectors of some passages.

    Attributes:
        segments: Segments by number.
        numbers: Segment number of each row, shape (rows,).
        begins: First vector of each row in its segment, shape (rows,).
        ends: End of each row's vectors in its segment, shape (rows,).
    """

    segments: Mapping[int, Segment]
    numbers: Longs
    begins: Longs
    ends: Longs

    @property
    def counts(self) -> Longs:
        """Number of vectors in each row, shape (rows,)."""
        return self.ends - self.begins

    def take(self, which: npt.NDArray[Any]) -> RaggedRows:
        """Return the rows selected by an index array or a mask."""
        return RaggedRows(self.segments, self.numbers[which], self.begins[which], self.ends[which])

    def merge_adjacent(self) -> RaggedRows:
        """Return the same vectors, with adjacent rows of a segment as one row."""
        is_gap = (self.numbers[1:] != self.numbers[:-1]) | (self.begins[1:] != self.ends[:-1])
        first, last = (np.flatnonzero(edges) for edges in (np.append(True, is_gap), np.append(is_gap, True)))
        return RaggedRows(self.segments, self.numbers[first], self.begins[first], self.ends[last])

    def verify(self, *names: str) -> None:
        """Verify the vectors in these arrays before their use.

        Raises:
            DamagedFolder: If they differ from what was written.
        """
        for number, segment in self.segments.items():
            for name in names:
                if not segment.arrays.is_verified(name):
                    own = self.numbers == number
                    segment.arrays.verify(name, self.begins[own], self.ends[own])

    def read_ahead(self) -> None:
        """Start reading the vectors from disk, unless they exceed 64 MB."""
        width = next(iter(self.segments.values())).width if len(self) else 0
        if 0 < 4 * width * int(self.counts.sum()) < _MAX_READ_AHEAD:
            for segment, span in self.merge_adjacent().spans():
                segment.arrays.read_ahead("values" if segment.codec is None else "numbers", span)

    def spans(self) -> Iterator[tuple[Segment, slice]]:
        """Iterate over the segment of each row and the slice of its vectors there."""
        rows = zip(self.numbers.tolist(), self.begins.tolist(), self.ends.tolist(), strict=True)
        return ((self.segments[number], slice(begin, end)) for number, begin, end in rows)

    def __len__(self) -> int:
        return len(self.numbers)


def write_segment(path: Path, slots: Longs, written: Longs, encoded: Encoded, codec: Codec | None) -> FileChecksum:
    """Write and sync a segment.

    Args:
        path: The file, which must not exist.
        slots: Slot of each row.
        written: Generation in which each row's embedding was written.
        encoded: Embeddings, in one mode.
        codec: Codec of multi-vectors; None stores float32.

    Returns:
        Length and checksum of the file.
    """
    (mode,) = encoded.modes
    arrays = _ENCODERS[mode](encoded) if codec is None else _encode_coded(encoded, codec)
    arrays = {"slots": slots, "written": written, **arrays}
    extra: Arrays = {"row_checks": row_checksums(arrays, range(len(slots)))}
    if codec is not None:
        extra["center"] = codec.center
    (width,) = widths(encoded).values()
    about = {"mode": mode, "width": width, "precision": codec.precision if codec else "float32"}
    # What is there twice is at both ends of the file.
    return write_arrays(path, {**extra, **arrays, "slots_copy": slots}, about)


def row_checksums(arrays: Mapping[str, npt.NDArray[Any]], rows: Iterable[int]) -> npt.NDArray[np.uint64]:
    """Hash the slot, the generation and the embedding of rows, by which the intact rows of a damaged block are told.

    Args:
        arrays: Arrays of a segment.
        rows: Rows to hash.
    """
    names = ("values",) if "values" in arrays else _ROW_PARTS  # codes beside values are a copy of them
    parts = []
    for name in names:
        if name in arrays:
            array = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
            parts.append((array.reshape(-1).view(np.uint8).data, array.nbytes // max(1, len(array))))
    bounds = arrays["offsets"].tolist() if "offsets" in arrays else range(len(arrays["slots"]) + 1)
    seeds = (arrays["slots"].astype(np.uint64) ^ (arrays["written"].astype(np.uint64) * _ODD)).tolist()
    checks = []
    for row in rows:
        check = seeds[row]
        for data, size in parts:
            check = xxhash.xxh3_64_intdigest(data[bounds[row] * size : bounds[row + 1] * size], check)
        checks.append(check)
    return np.array(checks, np.uint64)


def find_segment(folder: Path, file: str) -> Path:
    """Return the path of a segment, under the name that it has now."""
    path, unpublished = folder / file, folder / f"{file}{UNPUBLISHED}"
    return unpublished if not path.exists() and unpublished.exists() else path


def map_segment(path: Path, mode: Mode, width: int, length: int, codec: Codec | None) -> Segment:
    """Map a segment file into memory and validate its layout.

    Args:
        path: The file.
        mode: Its mode.
        width: Number of dimensions, or of sparse columns.
        length: Its length in bytes.
        codec: Codec of its multi-vectors; None for float32.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFolder: If the file is not such a segment.
    """
    arrays = map_arrays(path, length)
    layout = {name: each for name, each in arrays.layout().items() if name not in _FOR_REPAIR}
    if layout not in (_LAYOUTS[mode] if codec is None else _coded_layouts(codec)):
        precision = codec.precision if codec else "float32"
        raise damaged_file_error(path, f"is not a {mode} segment of {precision}: its arrays are {sorted(layout)}")
    segment = Segment(mode, width, path, arrays, codec)
    lengths = {len(arrays.unverified(name)) for name in ("written", "row_checks") if name in arrays}
    fault = _VALIDATORS[mode](segment) if lengths == {len(segment)} else "contains rows without generation or checksum"
    if fault:
        raise damaged_file_error(path, fault)
    return segment


def add_token_scores(segment: Segment, query: scipy.sparse.csr_array, scores: Array) -> None:
    """Add the sparse scores of all rows, token by token over the inverted lists.

    Args:
        segment: A sparse segment.
        query: One sparse query.
        scores: Shape (rows,), changed in place.

    Raises:
        DamagedFolder: If a list contains an unknown row.
    """
    try:
        _add_token_scores(segment, query, scores)
    except IndexError as error:
        raise damaged_file_error(segment.path, f"contains inverted lists of unknown rows ({error})") from error


def count_rows_of_tokens(segment: Segment, tokens: Ints, live: Longs) -> Longs:
    """Count the live rows that contain each token.

    Args:
        segment: A sparse segment.
        tokens: Ascending tokens.
        live: Live rows of the segment.

    Returns:
        Shape (tokens,).

    Raises:
        DamagedFolder: If a list contains an unknown row.
    """
    try:
        return _count_rows_of_tokens(segment, tokens, live)
    except IndexError as error:
        raise damaged_file_error(segment.path, f"contains inverted lists of unknown rows ({error})") from error


def _count_rows_of_tokens(segment: Segment, tokens: Ints, live: Longs) -> Longs:
    arrays, counts = segment.arrays, np.zeros(len(tokens), np.int64)
    listed, with_list = _lookup(arrays["terms"], tokens)
    begins, ends = (arrays["term_offsets"][listed + after] for after in (0, 1))
    is_live = np.zeros(len(segment), bool)
    is_live[live] = True
    if len(live) == len(segment):
        counts[with_list] = ends - begins
    else:
        spans = zip(begins.tolist(), ends.tolist(), strict=True)
        counts[with_list] = [np.count_nonzero(is_live[arrays["posted"][begin:end]]) for begin, end in spans]
    common, with_all = _lookup(arrays.get("common", _NO_TERMS), tokens)
    counts[with_all] = [np.count_nonzero(arrays["common_weights"][position][is_live]) for position in common]
    return counts


def _add_token_scores(segment: Segment, query: scipy.sparse.csr_array, scores: Array) -> None:
    arrays = segment.arrays
    listed, with_list = _lookup(arrays["terms"], query.indices)
    common, with_all = _lookup(arrays.get("common", _NO_TERMS), query.indices)
    begins, ends = (arrays["term_offsets"][listed + after] for after in (0, 1))
    for name in ("posted", "posted_weights"):
        arrays.verify(name, begins, ends)
    weights, done = query.data[with_list], 0
    for position, weight, before in zip(
        common, query.data[with_all], np.searchsorted(with_list, with_all), strict=True
    ):
        _add_lists(arrays, begins[done:before], ends[done:before], weights[done:before], scores)
        scores += arrays.rows("common_weights", np.array([position]))[0] * weight
        done = before
    _add_lists(arrays, begins[done:], ends[done:], weights[done:], scores)


def _add_lists(arrays: MappedArrays, begins: Longs, ends: Longs, weights: Array, scores: Array) -> None:
    """Add the entries of some lists in order, each list times its weight."""
    posted, posted_weights = arrays.unverified("posted"), arrays.unverified("posted_weights")
    for part in in_parts(ends - begins, _BLOCK_POSTINGS) if len(begins) else []:
        spans = [slice(*span) for span in zip(begins[part].tolist(), ends[part].tolist(), strict=True)]
        products = np.concatenate([posted_weights[span] for span in spans])
        products *= np.repeat(weights[part], ends[part] - begins[part])
        np.add.at(scores, np.concatenate([posted[span] for span in spans]), products)  # += drops repeats


def _lookup(terms: Ints, tokens: Ints) -> tuple[Ints, Ints]:
    """Return positions of tokens among terms (both ascending), and of these tokens."""
    if not len(terms):
        return _NO_TERMS, _NO_TERMS
    # With tokens of another type, numpy would convert all terms.
    positions = np.minimum(np.searchsorted(terms, tokens.astype(terms.dtype)), len(terms) - 1)
    shared = np.flatnonzero(terms[positions] == tokens)
    return positions[shared], shared


def maxsim_scores(rows: RaggedRows, query: Array) -> Array:
    """Score rows by exact MaxSim, without copying the stored vectors.

    Args:
        rows: Locations of multi-vectors.
        query: Vectors of one query, shape (vectors, dim).

    Returns:
        Shape (rows,).
    """
    codec = next(iter(rows.segments.values())).codec if len(rows) else None
    return maxsim(codec.rotate_query(query) if codec else query, _read_vectors(rows), rows.counts)


def _read_vectors(rows: RaggedRows) -> Iterator[Array]:
    is_coded = any(segment.codec for segment in rows.segments.values())
    rows.verify(*(CODE_ARRAYS if is_coded else ("values",)))
    for segment, span in rows.spans():
        if segment.codec is None:
            yield segment.arrays.unverified("values")[span]
        else:
            codes = Codes(*(segment.arrays.unverified(name)[span] for name in CODE_ARRAYS))
            yield segment.codec.decode_rotated(codes)


def read_sparse_rows(located: Sequence[tuple[Segment, Longs]]) -> tuple[Longs, npt.NDArray[np.int32], Array]:
    """Return rows of some segments as the offsets, columns and weights of a csr_array."""
    counts, columns, weights = [0], [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for segment, rows in located:
        offsets, arrays = segment.arrays["offsets"], segment.arrays
        for name in ("columns", "weights"):
            arrays.verify(name, offsets[rows], offsets[rows + 1])
        # Slices: fancy indexing takes half as long again.
        spans = list(zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True))
        counts += [end - begin for begin, end in spans]
        columns += [arrays.unverified("columns")[begin:end] for begin, end in spans]
        weights += [arrays.unverified("weights")[begin:end] for begin, end in spans]
    return np.cumsum(counts), np.concatenate(columns), np.concatenate(weights)


def _encode_dense(encoded: Encoded) -> Arrays:
    with np.errstate(over="ignore"):  # inf is a bound too
        longest = np.nextafter(np.float32(dense_int8.max_norm(encoded.dense)), np.float32(np.inf))
    copy = dense_int8.quantize_dense(encoded.dense) if encoded.dense.shape[1] <= dense_int8.MAX_DIM else {}
    return {"values": encoded.dense, "longest": np.array([longest]), **copy}


def _encode_sparse(encoded: Encoded) -> Arrays:
    """Encode rows and inverted lists; for a common token, the weights of all rows."""
    rows = encoded.sparse
    columns = rows.tocsc()
    counts = np.diff(columns.indptr)
    common = np.flatnonzero(counts * _COMMON_RATIO > rows.shape[0])
    listed = np.flatnonzero((counts > 0) & (counts * _COMMON_RATIO <= rows.shape[0]))
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


def _encode_multi_vector(encoded: Encoded) -> Arrays:
    vectors = encoded.multi_vector
    copy = multi_vector_int8.quantize_multi_vector(vectors.values)
    return {"offsets": vectors.offsets, "values": vectors.values, **copy}


def _encode_coded(encoded: Encoded, codec: Codec) -> Arrays:
    codes = codec.encode(encoded.multi_vector.values)
    bound = multi_vector_int8.norm_bound(codes) if isinstance(codec, Int8Codec) else {}
    return {"offsets": encoded.multi_vector.offsets, **codes._asdict(), **bound}


def _read_dense(segment: Segment, rows: Longs) -> Encoded:
    return Encoded(dense=segment.arrays.rows("values", rows))


def _read_sparse(segment: Segment, rows: Longs) -> Encoded:
    positions, offsets = _ragged_positions(segment.arrays["offsets"], rows)
    columns = segment.arrays.rows("columns", positions)
    # scipy does not check columns.
    if len(columns) and not 0 <= columns.min() <= columns.max() < segment.width:
        raise ValueError("a column outside the vocabulary")
    weights = segment.arrays.rows("weights", positions)
    return Encoded(sparse=scipy.sparse.csr_array((weights, columns, offsets), shape=(len(rows), segment.width)))


def _read_multi_vector(segment: Segment, rows: Longs) -> Encoded:
    positions, offsets = _ragged_positions(segment.arrays["offsets"], rows)
    if segment.codec is None:
        return Encoded(multi_vector=MultiVectors(segment.arrays.rows("values", positions), offsets))
    codes = Codes(*(segment.arrays.rows(name, positions) for name in CODE_ARRAYS))
    return Encoded(multi_vector=MultiVectors(segment.codec.decode(codes), offsets))


def _ragged_positions(offsets: Longs, rows: Longs) -> tuple[Longs, Longs]:
    """Return the positions of the elements of some rows, and the offsets of the rows."""
    counts = offsets[rows + 1] - offsets[rows]
    begins = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(offsets[rows] - begins[:-1], counts) + np.arange(begins[-1]), begins


def _validate_dense(segment: Segment) -> str:
    """Return the first fault, or an empty string."""
    expected = (len(segment), segment.width)
    shape = segment.arrays.unverified("values").shape
    if shape != expected:
        return f"contains dense vectors of shape {shape} instead of {expected}"
    if segment.arrays["longest"].shape != (1,) or not segment.arrays["longest"][0] >= 0:
        return "contains dense vectors without a bound on their norm"
    is_valid = not segment.has_int8_copy or dense_int8.is_valid_dense_copy(_for_bounds(segment), *expected)
    return "" if is_valid else "contains an int8 copy that does not fit its dense vectors"


def _for_bounds(segment: Segment) -> Arrays:
    """Return the int8 copy and its bounds, without reading the copy."""
    names = dense_int8.DENSE_INT8_ARRAYS
    return {name: segment.arrays.unverified(name) if name == "copy" else segment.arrays[name] for name in names}


def _validate_sparse(segment: Segment) -> str:
    arrays = segment.arrays
    columns, weights, posted, posted_weights = (
        len(arrays.unverified(name)) for name in ("columns", "weights", "posted", "posted_weights")
    )
    is_valid = (
        _are_offsets(arrays["offsets"], len(segment), columns)
        and weights == columns
        and _are_offsets(arrays["term_offsets"], len(arrays["terms"]), posted)
        and posted_weights == posted
        and ("common" not in arrays or _common_shape(arrays) == (len(arrays["common"]), len(segment)))
    )
    return "" if is_valid else "contains inconsistent sparse rows"


def _common_shape(arrays: MappedArrays) -> tuple[int, ...]:
    return arrays.unverified("common_weights").shape


def _validate_multi_vector(segment: Segment) -> str:
    arrays, codec = segment.arrays, segment.codec
    code_bytes = segment.width if codec is None else codec.bytes_per_vector(segment.width)
    total = len(arrays.unverified("values" if codec is None else "numbers"))
    shapes = {"values": (total, segment.width), "numbers": (total, code_bytes), "scales": (total,)}
    is_valid = all(arrays.unverified(name).shape == shape for name, shape in shapes.items() if name in arrays)
    is_valid = is_valid and _are_offsets(arrays["offsets"], len(segment), total)
    return "" if is_valid and multi_vector_int8.are_valid_bounds(arrays) else "contains inconsistent multi-vectors"


def _are_offsets(offsets: Longs, rows: int, total: int) -> bool:
    return len(offsets) == rows + 1 and offsets[0] == 0 and offsets[-1] == total and bool((np.diff(offsets) >= 0).all())


_NORM_LIMITS = (2e-19, 3.5e38)  # per dimension: squares of smaller numbers underflow in float32; none is larger
_BLOCK_POSTINGS = 1 << 14
_ROW_PARTS = ("columns", "weights", "numbers", "scales")
_FOR_REPAIR = {"row_checks", "center", "slots_copy"}
_ODD = np.uint64(0x9E3779B97F4A7C15)  # so that no bit of a generation is lost
_COMMON_RATIO = 4  # a token is common if more than one row in so many has it
_MAX_READ_AHEAD = 1 << 26
_NO_TERMS = np.empty(0, np.int32)
_FLOATS, _INTS, _LONGS = "<f4", "<i4", "<i8"
_ROWS = {"slots": (_LONGS, 1), "written": (_LONGS, 1)}
_RAGGED = {**_ROWS, "offsets": (_LONGS, 1)}
_DENSE = {**_ROWS, "values": (_FLOATS, 2), "longest": (_FLOATS, 1)}
_SPARSE = {
    **_RAGGED,
    "columns": (_INTS, 1),
    "weights": (_FLOATS, 1),
    "terms": (_INTS, 1),
    "term_offsets": (_LONGS, 1),
    "posted": (_INTS, 1),
    "posted_weights": (_FLOATS, 1),
}
_LAYOUTS: Mapping[Mode, Sequence[Mapping[str, tuple[str, int]]]] = {
    "dense": [{**_DENSE, **dense_int8.DENSE_INT8_ARRAYS}, _DENSE],
    "sparse": [{**_SPARSE, "common": (_INTS, 1), "common_weights": (_FLOATS, 2)}, _SPARSE],
    "multi_vector": [
        {**_RAGGED, "values": (_FLOATS, 2), **CODE_ARRAYS, **NORM_ARRAYS, **ERROR_ARRAYS},
        {**_RAGGED, "values": (_FLOATS, 2)},
    ],
}


def _coded_layouts(codec: Codec) -> Sequence[Mapping[str, tuple[str, int]]]:
    codes = {**_RAGGED, **CODE_ARRAYS, "numbers": (codec.dtype, 2)}
    return [{**codes, **NORM_ARRAYS}, codes] if isinstance(codec, Int8Codec) else [codes]


_ENCODERS: Mapping[Mode, Callable[[Encoded], dict[str, npt.NDArray[Any]]]] = {
    "dense": _encode_dense,
    "sparse": _encode_sparse,
    "multi_vector": _encode_multi_vector,
}
_READERS: Mapping[Mode, Callable[[Segment, Longs], Encoded]] = {
    "dense": _read_dense,
    "sparse": _read_sparse,
    "multi_vector": _read_multi_vector,
}
_VALIDATORS: Mapping[Mode, Callable[[Segment], str]] = {
    "dense": _validate_dense,
    "sparse": _validate_sparse,
    "multi_vector": _validate_multi_vector,
}

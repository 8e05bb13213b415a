"""int8 and int4 codecs for multi-vectors: one scale per vector, around a common center.

A value is center + scale · level. A level is a function of a number of 4 or 8 bits; in int8 it is the number itself.
Encoding a decoded vector gives the same bytes, so that coded vectors can be copied, moved and restored without further
loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import MODES, Array, Mode
from m3_integrations.core.errors import MissingMode

Precision = Literal["float32", "int8", "int4"]
"""Precision of stored multi-vectors."""
DEFAULT_PRECISION: Precision = "float32"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Every precision, from the largest to the smallest."""
Scales = npt.NDArray[np.uint16]
_BLOCK_ROWS = 512
# A scale is stored as the upper half of a float32, truncated after multiplication by this margin. Rounding reduces the
# magnitude of a decoded value by less than the margin, and the margin is less than the spacing of scales (2 ** -7),
# so that encoding a decoded vector gives the same scale.
_MARGIN = np.float32(1 + 2.0**-9)
MAX_VALUE = 1e35  # so that sums over all dimensions are finite
# In int4, number n has the level n + _CUBIC · n ** 3, which float32 represents exactly, and _SCALE_PER_DEVIATION is the
# scale in standard deviations: the levels on a cubic with the least squared error for a normal distribution, a few
# percent above that of unrestricted levels (Max 1960, "Quantizing for Minimum Distortion").
_CUBIC = 9 / 1024
_SCALE_PER_DEVIATION = 0.24
_MAX_NUMBER = 7.5
_MAX_LEVEL = _MAX_NUMBER + _CUBIC * _MAX_NUMBER**3


class Codes(NamedTuple):
    """Encoded vectors.

    Attributes:
        numbers: Shape (vectors, `Codec.bytes_per_vector`), of `Codec.dtype`.
        scales: Upper halves of float32, shape (vectors,).
    """

    numbers: npt.NDArray[Any]
    scales: Scales

    def take(self, rows: slice) -> Codes:
        """Return the codes of a slice of the vectors."""
        return Codes(self.numbers[rows], self.scales[rows])


class Codec(Protocol):
    """Encodes vectors of one dimension, and decodes them."""

    @property
    def precision(self) -> Precision: ...

    @property
    def dtype(self) -> str: ...

    @property
    def center(self) -> Array:
        """The center of encoded vectors, shape (dim,)."""

    def bytes_per_vector(self, dim: int) -> int:
        """Return the number of bytes of one vector's numbers."""

    def encode(self, values: Array) -> Codes:
        """Encode vectors of shape (vectors, dim).

        Raises:
            ValueError: If a value exceeds 1e35.
        """

    def decode(self, codes: Codes) -> Array:
        """Decode to shape (vectors, dim)."""

    def decode_rotated(self, codes: Codes) -> Array:
        """Decode to shape (vectors, dim), without undoing the rotation of `rotate_query`."""

    def rotate_query(self, queries: Array) -> Array:
        """Rotate queries, shape (queries, dim), for inner products with `decode_rotated`."""


@dataclass(frozen=True)
class Int8Codec:
    """int8 codec: numbers from -127 to 127."""

    center: Array
    precision: Precision = "int8"
    dtype: str = "|i1"

    def bytes_per_vector(self, dim: int) -> int:
        return dim

    def encode(self, values: Array) -> Codes:
        return _encode_in_blocks(values, self._encode)

    def decode(self, codes: Codes) -> Array:
        return _to_values(codes.numbers.astype(np.float32), codes.scales, self.center)

    decode_rotated = decode

    def rotate_query(self, queries: Array) -> Array:
        return queries

    def _encode(self, values: Array) -> Codes:
        offsets = values - self.center
        # Below this scale, the rounding of center + offset in float32 would change the numbers.
        scales = _encode_scales(_max_abs(offsets) / np.float32(127), _magnitude(self.center) * 2.0**-12 / 127)
        return Codes(np.clip(np.rint(_divide(offsets, scales)), -127, 127).astype(np.int8), scales)


@dataclass(frozen=True)
class Int4Codec:
    """int4 codec: numbers -7.5, -6.5 .. 7.5 of rotated vectors.

    A fixed rotation makes the dimensions similar. The scale is chosen so that the inner product of a vector with its
    decoded form is the square of its norm, as far as a change of the scale by up to 10% achieves that: similar vectors
    then keep their scores (as in RaBitQ, arXiv 2405.12497).

    Byte j holds number j in its lower half and number j + (dim + 1) // 2 in its upper half.
    """

    center: Array
    precision: Precision = "int4"
    dtype: str = "|u1"

    def bytes_per_vector(self, dim: int) -> int:
        return (dim + 1) // 2

    def encode(self, values: Array) -> Codes:
        return _encode_in_blocks(values, self._encode)

    def decode(self, codes: Codes) -> Array:
        return rotate_back(self.decode_rotated(codes))

    def decode_rotated(self, codes: Codes) -> Array:
        half = codes.numbers.shape[1]
        padded = np.empty((len(codes.numbers), 2 * half), np.float32)
        padded[:, :half] = codes.numbers & 15
        padded[:, half:] = codes.numbers >> 4
        padded -= np.float32(_MAX_NUMBER)
        return _to_values(_to_levels(padded)[:, : len(self.center)], codes.scales, self._rotated_center)

    def rotate_query(self, queries: Array) -> Array:
        return rotate(queries)

    @cached_property
    def _rotated_center(self) -> Array:
        center: Array = rotate(self.center[None])[0]
        return center

    def _encode(self, values: Array) -> Codes:
        offsets = rotate(values) - self._rotated_center
        max_scales = _max_abs(offsets) / np.float32(_MAX_LEVEL)
        min_scale = _magnitude(self._rotated_center) * 2.0**-9 / _MAX_LEVEL
        scales = _encode_scales(max_scales, min_scale)
        scaled = _divide(offsets, scales)
        # One number of a decoded vector is always ±7.5, so that this is its scale; other vectors get a better one.
        is_new = np.abs(scaled - _to_levels(_nearest_numbers(scaled))).max(axis=1, initial=0) > 1 / 16
        deviations = np.linalg.norm(offsets, axis=1) / max(1, offsets.shape[1]) ** 0.5
        normal_scales = np.minimum(max_scales, _SCALE_PER_DEVIATION * deviations).astype(np.float32)
        better = _encode_scales(normal_scales, min_scale)
        scaled = _divide(offsets, np.where(is_new, better, scales))
        numbers = _nearest_numbers(scaled)
        corrections = _scale_corrections(scaled, _to_levels(numbers.copy()), offsets + self._rotated_center)
        unbiased = _encode_scales(decode_scales(better) * corrections, min_scale)
        scales = np.where(is_new, np.where(unbiased > 0, unbiased, better), scales)
        return Codes(_pack(numbers), scales)


_CODECS: Mapping[Precision, Callable[[Array], Codec]] = {"int8": Int8Codec, "int4": Int4Codec}


def make_codec(precision: Precision, center: Array) -> Codec | None:
    """Return the codec of a precision around a center of shape (dim,); None for float32."""
    return _CODECS[precision](center) if precision in _CODECS else None


def mean_vector(values: Array) -> Array:
    """Return the mean of the rows as a center, shape (dim,); zeros without rows."""
    return values.mean(axis=0, dtype=np.float64).astype(np.float32) if len(values) else np.zeros(values.shape[1:], "f4")


def check_precision(precision: Mapping[Mode, Precision] | None) -> Precision | None:
    """Check the `precision` argument of `LocalIndex.open`.

    Returns:
        The precision; None if it is not given.

    Raises:
        MissingMode: If a key is not a mode.
        ValueError: If the mode does not support the precision.
    """
    if isinstance(precision, str):
        raise ValueError(
            f"precision takes a mapping by mode, got {precision!r}; write precision={{'multi_vector': {precision!r}}}"
        )
    for mode, value in (precision or {}).items():
        if mode not in MODES:
            raise MissingMode(f"{mode!r} is not a mode; the modes are {list(MODES)}")
        if value not in (PRECISIONS if mode == "multi_vector" else PRECISIONS[:1]):
            reason = "" if mode == "multi_vector" else f": {mode} vectors are always float32"
            raise ValueError(
                f"{mode!r} vectors cannot be stored as {value!r}{reason}; "
                f"write precision={{'multi_vector': ...}} with one of {list(PRECISIONS)}"
            )
    return (precision or {}).get("multi_vector")


def rotate(values: Array) -> Array:
    """Rotate vectors by a pseudorandom rotation, fixed for each number of dimensions.

    It must never change, since stored codes depend on it. It applies random signs and Hadamard transforms over
    overlapping spans, the longest with a length that is a power of 4. It consists only of sums, differences and powers
    of 2, so that the rounding of a vector does not depend on the other vectors.

    Args:
        values: Shape (vectors, dim).

    Returns:
        Shape (vectors, dim).
    """
    by_dimension = np.array(values.T, np.float32, order="C")
    for span, signs in _spans(values.shape[1]):
        by_dimension[span] = _hadamard(by_dimension[span] * signs)
    return np.ascontiguousarray(by_dimension.T)


def rotate_back(values: Array) -> Array:
    """Invert `rotate`, up to float32 rounding."""
    blocks = [values[start : start + _BLOCK_ROWS] for start in range(0, len(values), _BLOCK_ROWS)]
    return np.concatenate([*map(_rotate_back, blocks), values[:0]])


def decode_scales(scales: Scales) -> Array:
    """Return stored scales as float32."""
    numbers: Array = (scales.astype(np.uint32) << 16).view(np.float32)
    return numbers


def _rotate_back(values: Array) -> Array:
    by_dimension = np.array(values.T, np.float32, order="C")
    for span, signs in reversed(_spans(values.shape[1])):
        by_dimension[span] = _hadamard(by_dimension[span]) * signs
    return np.ascontiguousarray(by_dimension.T)


@cache
def _spans(dim: int) -> list[tuple[slice, Array]]:
    """Return spans of one length over all dimensions, and the signs of each."""
    length = 1
    while 4 * length <= dim:
        length *= 4
    count = -(-dim // length)
    starts = [round(i * (dim - length) / max(1, count - 1)) for i in range(count)]
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"m3 rotation").digest(count * length), np.uint8))
    signs = 1 - 2 * bits[: count * length].astype(np.float32).reshape(count, length, 1)
    return [(slice(start, start + length), sign) for start, sign in zip(starts, signs, strict=True)]


def _hadamard(values: Array) -> Array:
    """Apply the orthonormal Hadamard transform to the first axis (a power of 4), in place."""
    length, step = len(values), 1
    while step < length:
        pairs = values.reshape(length // (2 * step), 2, step, -1)
        differences = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = differences
        step *= 2
    values *= np.float32(length**-0.5)
    return values


def _encode_in_blocks(values: Array, encode: Callable[[Array], Codes]) -> Codes:
    if _magnitude(values) > MAX_VALUE:
        raise ValueError(f"a multi-vector has the value {_magnitude(values):.2g}, too large for a codec; use float32")
    blocks = [values[start : start + _BLOCK_ROWS] for start in range(0, max(1, len(values)), _BLOCK_ROWS)]
    numbers, scales = zip(*map(encode, blocks), strict=True)
    return Codes(np.concatenate(numbers), np.concatenate(scales))


def _max_abs(values: Array) -> Array:
    """Return the largest magnitude in each row."""
    largest: Array = np.abs(values).max(axis=1, initial=0)
    return largest


def _magnitude(values: Array) -> float:
    return float(np.abs(values).max(initial=0))


def _encode_scales(scales: Array, min_scale: float) -> Scales:
    """Return scales as stored; 0 for those below the minimum or too small for float32."""
    stored: Scales = ((scales * _MARGIN).view(np.uint32) >> 16).astype(np.uint16)
    stored[decode_scales(stored) < max(min_scale, 1e-37)] = 0
    return stored


def _to_values(levels: Array, scales: Scales, center: Array) -> Array:
    """Compute center + scales · levels, in place."""
    levels *= decode_scales(scales)[:, None]
    levels += center
    return levels


def _divide(values: Array, scales: Scales) -> Array:
    """Divide each row by its scale; rows with scale 0 become 0."""
    divisors = np.where(scales > 0, decode_scales(scales), np.float32(np.inf))
    return np.asarray(values / divisors[:, None], np.float32)


def _to_levels(numbers: Array) -> Array:
    """Replace int4 numbers by their levels, in place."""
    factors = numbers * numbers
    factors *= np.float32(_CUBIC)
    factors += 1
    numbers *= factors
    return numbers


_EDGES = [_to_levels(np.array([n, n + 1], np.float32)).mean() for n in np.arange(0.5, _MAX_NUMBER, dtype=np.float32)]


def _nearest_numbers(scaled: Array) -> Array:
    """Return the int4 numbers with the nearest levels."""
    magnitudes = np.abs(scaled)
    numbers = np.full(scaled.shape, 0.5, np.float32)
    for edge in _EDGES:
        numbers += magnitudes > edge
    return np.where(scaled < 0, -numbers, numbers)


def _pack(numbers: Array) -> npt.NDArray[np.uint8]:
    """Pack int4 numbers into bytes: the first half of the dimensions in the lower bits."""
    unsigned = (numbers + np.float32(_MAX_NUMBER)).astype(np.uint8)
    half = (unsigned.shape[1] + 1) // 2
    packed = unsigned[:, :half].copy()
    packed[:, : unsigned.shape[1] - half] |= unsigned[:, half:] << 4
    return packed


def _scale_corrections(scaled: Array, levels: Array, vectors: Array) -> Array:
    """Return factors, 0.9 to 1.1, for unbiased products of decoded vectors with the vectors."""
    largest = _max_abs(vectors)
    directions = vectors / np.where(largest > 0, largest, 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = (scaled * directions).sum(axis=1) / (levels * directions).sum(axis=1)
    return np.asarray(np.where(np.isfinite(factors), np.clip(factors, 0.9, 1.1), 1), np.float32)

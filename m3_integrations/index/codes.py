"""Multi-vectors in fewer bits: of each vector one scale and a small number a dimension, around the centre of them all.

A value is centre + scale · level, int8's levels being its numbers. What was decoded is encoded again to the same bytes,
so that the coded values are the vectors: they can be copied, moved and put back without wearing off.
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
DEFAULT: Precision = "float32"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Scales = npt.NDArray[np.uint16]
_AT_ONCE = 512
# A scale is the upper half of a float32, cut off after this was added: what rounding takes off a decoded value's size
# is less, and the part of 2 ** -7 that is cut off at most is more, so that the scale comes out as it was.
_MARGIN = np.float32(1 + 2.0**-9)
LARGEST = 1e35  # sums of all dimensions are finite
# Of int4, number n stands for n + _BEND · n ** 3, which float32 holds exactly, and _STEP is the scale in standard
# deviations: of levels on a cubic those of the least squared error on a normal distribution, a few percent above that
# of free levels (Max 1960, "Quantizing for Minimum Distortion").
_BEND = 9 / 1024
_STEP = 0.24
_HIGHEST = 7.5
_TOP = _HIGHEST + _BEND * _HIGHEST**3


class Codes(NamedTuple):
    """numbers: (vectors, bytes) as `Coding.dtype`; scales: (vectors,), the upper halves of float32."""

    numbers: npt.NDArray[Any]
    scales: Scales

    def some(self, which: slice) -> Codes:
        return Codes(self.numbers[which], self.scales[which])


class Coding(Protocol):
    """How vectors of one width become codes, and come back."""

    @property
    def precision(self) -> Precision: ...

    @property
    def dtype(self) -> str: ...

    @property
    def centre(self) -> Array:
        """(width,), as float32."""

    def bytes_of(self, width: int) -> int:
        """How many bytes the numbers of one vector take."""

    def encode(self, values: Array) -> Codes:
        """(vectors, width) to codes. Raises ValueError for values beyond 1e35."""

    def decode(self, codes: Codes) -> Array:
        """(vectors, width)."""

    def near(self, codes: Codes) -> Array:
        """(vectors, width): what `decode` answers, up to a rotation that is spared: that of `facing`."""

    def facing(self, queries: Array) -> Array:
        """(queries, width): the queries turned so that their inner products with `near` are those with `decode`."""


@dataclass(frozen=True)
class Bytes:
    """int8: numbers from -127 to 127."""

    centre: Array
    precision: Precision = "int8"
    dtype: str = "|i1"

    def bytes_of(self, width: int) -> int:
        return width

    def encode(self, values: Array) -> Codes:
        return _in_blocks(values, self._encode)

    def decode(self, codes: Codes) -> Array:
        return _values(codes.numbers.astype(np.float32), codes.scales, self.centre)

    near = decode

    def facing(self, queries: Array) -> Array:
        return queries

    def _encode(self, values: Array) -> Codes:
        apart = values - self.centre
        # Nearer to the centre than this, what float32 rounds off their sum would show in the numbers.
        scales = _scales(_largest(apart) / np.float32(127), _size(self.centre) * 2.0**-12 / 127)
        return Codes(np.clip(np.rint(_scaled(apart, scales)), -127, 127).astype(np.int8), scales)


@dataclass(frozen=True)
class Nibbles:
    """int4: levels of the numbers -7.5, -6.5 .. 7.5, of the vectors after a fixed rotation: no dimension stands out.

    The scale is such that the inner product of a vector with what it is decoded to is its own square, as far as a
    tenth more or less of it does that: what is like it then scores as it did (as RaBitQ estimates, arXiv 2405.12497).
    Byte j holds number j in its lower half and number j + (width + 1) // 2 in its upper.
    """

    centre: Array
    precision: Precision = "int4"
    dtype: str = "|u1"

    def bytes_of(self, width: int) -> int:
        return (width + 1) // 2

    def encode(self, values: Array) -> Codes:
        return _in_blocks(values, self._encode)

    def decode(self, codes: Codes) -> Array:
        return turned_back(self.near(codes))

    def near(self, codes: Codes) -> Array:
        half = codes.numbers.shape[1]
        padded = np.empty((len(codes.numbers), 2 * half), np.float32)
        padded[:, :half] = codes.numbers & 15
        padded[:, half:] = codes.numbers >> 4
        padded -= np.float32(_HIGHEST)
        return _values(_levels(padded)[:, : len(self.centre)], codes.scales, self._turned_centre)

    def facing(self, queries: Array) -> Array:
        return turned(queries)

    @cached_property
    def _turned_centre(self) -> Array:
        centre: Array = turned(self.centre[None])[0]
        return centre

    def _encode(self, values: Array) -> Codes:
        apart = turned(values) - self._turned_centre
        widest, least = _largest(apart) / np.float32(_TOP), _size(self._turned_centre) * 2.0**-9 / _TOP
        scales = _scales(widest, least)
        scaled = _scaled(apart, scales)
        # One number is ±7.5 always, so that this is the scale of what was decoded; the rest takes a better one.
        fresh = np.abs(scaled - _levels(_nearest(scaled))).max(axis=1, initial=0) > 1 / 16
        deviations = np.linalg.norm(apart, axis=1) / max(1, apart.shape[1]) ** 0.5
        better = _scales(np.minimum(widest, _STEP * deviations).astype(np.float32), least)
        scaled = _scaled(apart, np.where(fresh, better, scales))
        numbers = _nearest(scaled)
        fair = _scales(floats(better) * _share(scaled, _levels(numbers.copy()), apart + self._turned_centre), least)
        scales = np.where(fresh, np.where(fair > 0, fair, better), scales)
        whole = (numbers + np.float32(_HIGHEST)).astype(np.uint8)
        half = self.bytes_of(values.shape[1])
        packed = whole[:, :half].copy()
        packed[:, : whole.shape[1] - half] |= whole[:, half:] << 4
        return Codes(packed, scales)


_CODINGS: Mapping[Precision, Callable[[Array], Coding]] = {"int8": Bytes, "int4": Nibbles}


def coding_of(precision: Precision, centre: Array) -> Coding | None:
    """How to keep vectors around this centre; None: as they are. centre: (width,)."""
    return _CODINGS[precision](centre) if precision in _CODINGS else None


def centre_of(values: Array) -> Array:
    """(width,) the mean, around which numbers are smallest; zeros of no vectors."""
    return values.mean(axis=0, dtype=np.float64).astype(np.float32) if len(values) else np.zeros(values.shape[1:], "f4")


def checked(precision: Mapping[Mode, Precision] | None) -> Precision | None:
    """How multi-vectors are to be kept; None where nothing is said.

    Raises MissingMode for a word that is no mode, ValueError for one that is no precision of that mode.
    """
    if isinstance(precision, str):
        raise ValueError(
            f"precision is said by mode, got {precision!r}; write precision={{'multi_vector': {precision!r}}}"
        )
    for mode, said in (precision or {}).items():
        if mode not in MODES:
            raise MissingMode(f"{mode!r} is no mode; the modes are {list(MODES)}")
        if said not in (PRECISIONS if mode == "multi_vector" else PRECISIONS[:1]):
            usual = "" if mode == "multi_vector" else f"; {mode} vectors are kept as float32"
            raise ValueError(
                f"{mode!r} vectors cannot be kept as {said!r}{usual}; "
                f"write precision={{'multi_vector': ...}} with one of {list(PRECISIONS)}"
            )
    return (precision or {}).get("multi_vector")


def turned(values: Array) -> Array:
    """(vectors, width): the vectors turned by a rotation that is the same for ever for all vectors of a width.

    Signs by chance and Hadamard transforms over overlapping spans, the longest that are powers of 4. Nothing but sums,
    differences and powers of 2, so that a vector is rounded alike whatever is turned beside it.
    """
    by_dimension = np.array(values.T, np.float32, order="C")
    for span, signs in _spans(values.shape[1]):
        by_dimension[span] = _transformed(by_dimension[span] * signs)
    return np.ascontiguousarray(by_dimension.T)


def turned_back(values: Array) -> Array:
    """What `turned` was given, up to float32's rounding."""
    blocks = [values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE)]
    return np.concatenate([*map(_turned_back, blocks), values[:0]])


def _turned_back(values: Array) -> Array:
    by_dimension = np.array(values.T, np.float32, order="C")
    for span, signs in reversed(_spans(values.shape[1])):
        by_dimension[span] = _transformed(by_dimension[span]) * signs
    return np.ascontiguousarray(by_dimension.T)


@cache
def _spans(width: int) -> list[tuple[slice, Array]]:
    """Spans of one length that cover all dimensions, and a sign for each dimension of each."""
    length = 1
    while 4 * length <= width:
        length *= 4
    count = -(-width // length)
    starts = [round(i * (width - length) / max(1, count - 1)) for i in range(count)]
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"m3 rotation").digest(count * length), np.uint8))
    signs = 1 - 2 * bits[: count * length].astype(np.float32).reshape(count, length, 1)
    return [(slice(start, start + length), sign) for start, sign in zip(starts, signs, strict=True)]


def _transformed(values: Array) -> Array:
    """The Hadamard transform along the first axis, whose length is a power of 4, brought to keep lengths; in place."""
    length, step = len(values), 1
    while step < length:
        pairs = values.reshape(length // (2 * step), 2, step, -1)
        differences = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = differences
        step *= 2
    values *= np.float32(length**-0.5)
    return values


def _in_blocks(values: Array, encode: Callable[[Array], Codes]) -> Codes:
    if _size(values) > LARGEST:
        raise ValueError(f"a multi-vector holds {_size(values):.2g}, too much to be coded; keep them as float32")
    blocks = [values[start : start + _AT_ONCE] for start in range(0, max(1, len(values)), _AT_ONCE)]
    numbers, scales = zip(*map(encode, blocks), strict=True)
    return Codes(np.concatenate(numbers), np.concatenate(scales))


def _largest(values: Array) -> Array:
    largest: Array = np.abs(values).max(axis=1, initial=0)
    return largest


def _size(values: Array) -> float:
    return float(np.abs(values).max(initial=0))


def _scales(scales: Array, least: float) -> Scales:
    """As they are kept; 0 for those below the least, or too small for float32."""
    kept: Scales = ((scales * _MARGIN).view(np.uint32) >> 16).astype(np.uint16)
    kept[floats(kept) < max(least, 1e-37)] = 0
    return kept


def _values(numbers: Array, scales: Scales, centre: Array) -> Array:
    """centre + scales · numbers, in the place of the numbers."""
    numbers *= floats(scales)[:, None]
    numbers += centre
    return numbers


def floats(scales: Scales) -> Array:
    """Scales as numbers."""
    numbers: Array = (scales.astype(np.uint32) << 16).view(np.float32)
    return numbers


def _scaled(values: Array, scales: Scales) -> Array:
    """The values in units of their scale, all 0 where that is 0."""
    divisors = np.where(scales > 0, floats(scales), np.float32(np.inf))
    return np.asarray(values / divisors[:, None], np.float32)


def _levels(numbers: Array) -> Array:
    """What the numbers stand for in units of their scale, in their place."""
    bends = numbers * numbers
    bends *= np.float32(_BEND)
    bends += 1
    numbers *= bends
    return numbers


_EDGES = [_levels(np.array([n, n + 1], np.float32)).mean() for n in np.arange(0.5, _HIGHEST, dtype=np.float32)]


def _nearest(scaled: Array) -> Array:
    """The numbers -7.5, -6.5 .. 7.5 whose levels are nearest."""
    sizes = np.abs(scaled)
    numbers = np.full(scaled.shape, 0.5, np.float32)
    for edge in _EDGES:
        numbers += sizes > edge
    return np.where(scaled < 0, -numbers, numbers)


def _share(scaled: Array, levels: Array, vectors: Array) -> Array:
    """(vectors,): by how much the levels are to be longer, for the vectors' inner products with them to be right."""
    largest = _largest(vectors)
    ways = vectors / np.where(largest > 0, largest, 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (scaled * ways).sum(axis=1) / (levels * ways).sum(axis=1)
    return np.asarray(np.where(np.isfinite(shares), np.clip(shares, 0.9, 1.1), 1), np.float32)

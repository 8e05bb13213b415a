"""Damaged copies of files: edits, drawn by hypothesis or by a generator."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

import hypothesis.strategies as st

KINDS = ("replace", "insert", "delete", "repeat", "flip", "cut")
PLACES = 1 << 16  # positions are shares of a file, in so many parts
TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\xfe\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\r",
        b"\n",
        b"\n\n",
        b"\t",
        b";",
        b",",
    ),
    *(b'"', b"'", b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b":", b" ", b"-", b"--", b"/", b"../", b"%s", b"\x1b[31m"),
    *(
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0",
        b"1" * 400,
        b"9" * 5000,
        b"null",
        b"true",
        b"[]",
        b"{}",
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00", "é\u2028😀".encode()),
    *(struct.pack("<I", value) for value in (0, 1, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)),
    *(struct.pack("<Q", value) for value in (1 << 33, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)),
    struct.pack("<f", float("nan")),
    struct.pack("<f", float("inf")),
)


class Edit(NamedTuple):
    """One change of a file: its kind, a place, a number of bytes, and new bytes."""

    kind: str
    place: int
    size: int
    token: bytes


edits = st.lists(
    st.builds(
        Edit,
        st.sampled_from(KINDS),
        st.integers(0, PLACES),
        st.integers(0, 12),
        st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=8),
    ),
    max_size=4,
)


def draw_edits(choice: random.Random) -> list[Edit]:
    """Draw edits as the strategy does, faster."""
    return [
        Edit(
            choice.choice(KINDS),
            choice.randrange(PLACES + 1),
            choice.randrange(13),
            choice.choice(TOKENS) if choice.random() < 0.7 else choice.randbytes(choice.randrange(1, 9)),
        )
        for _ in range(choice.randrange(5))
    ]


def damage(content: bytes, changes: Sequence[Edit]) -> bytes:
    """Apply edits to a file."""
    for kind, place, size, token in changes:
        at = place * len(content) // PLACES
        match kind:
            case "replace":
                content = content[:at] + token + content[at + len(token) :]
            case "insert":
                content = content[:at] + token + content[at:]
            case "delete":
                content = content[:at] + content[at + size :]
            case "repeat":
                content = content[:at] + content[at : at + size] * 3 + content[at + size :]
            case "flip" if at < len(content):
                content = content[:at] + bytes([content[at] ^ (1 << size % 8)]) + content[at + 1 :]
            case "cut":
                content = content[:at]
    return content

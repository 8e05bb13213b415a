"""M3Encoder: dense, sparse and multi-vector embeddings from a checkpoint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from m3_integrations.core.encoded import MODES, Array, Encoded, Ints, Mode, Modes, SparseScore, check_modes
from m3_integrations.core.errors import MissingMode, NotPicklable, PartNotExported, TextsTruncated
from m3_integrations.encoders.base import Dtype, EncoderConfig, WindowOverlap, check_texts, weights_of_modes
from m3_integrations.encoders.composed import ComposedEncoder
from m3_integrations.encoders.explain import Explanation, explain
from m3_integrations.models import checkpoint as checkpoints
from m3_integrations.models.backends.base import BatchRunner, ModelBackend
from m3_integrations.models.backends.exported import BACKENDS, Backend, ExportedModel
from m3_integrations.models.backends.torch import TorchBackend, best_device
from m3_integrations.models.conventions import Pooling, hash_reading
from m3_integrations.models.encoded_builder import EncodedBuilder
from m3_integrations.models.heads.late_interaction import LateInteraction
from m3_integrations.models.heads.projection import principal_directions
from m3_integrations.models.layouts.bge_m3 import MULTI_VECTOR_HEAD, SPARSE_HEAD, TOKEN_PRIOR
from m3_integrations.models.layouts.sparse_encoder import TERM_EXPANSION
from m3_integrations.models.layouts.transformers_folder import count_positions
from m3_integrations.models.mini.settings import FORMER_WEIGHTS, NAME
from m3_integrations.models.tokenization import SequenceTokenizer, Span
from m3_integrations.models.transformer import Heads

_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Keys of a transformer's configuration that its forward pass does not read.
_UNREAD = {"architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id", "num_labels"}
_LATE: tuple[Mode, ...] = ("multi_vector",)
_DEFAULTS = EncoderConfig()
_TEXTS_AT_ONCE = 256
_TERM_WEIGHTS = 1 << 25  # of texts x vocabulary per batch: 128 MiB
_BATCH_TOKENS: Mapping[str, int] = {"cpu": 2048, "mps": 16384, "cuda": 65536}
_HEAD_FILES: Mapping[Mode, str] = {"sparse": SPARSE_HEAD, "multi_vector": MULTI_VECTOR_HEAD}


class M3Encoder:
    """An Encoder over a checkpoint: three modes from one forward pass per text.

    Use `from_pretrained` to make one. It is safe to use from several threads. The constructor takes a Checkpoint, which
    it moves to the encoder's device and precision.

    Args:
        checkpoint: Weights, tokenizer and conventions.
        config: Options of the encoder; `model`, `revision` and `pooling`, which locate a checkpoint, have no effect.

    Raises:
        ValueError: If an option is invalid for the checkpoint or the backend.
        CheckpointError: If `export_dir` holds another model.
        MissingExtra: If the library of the backend is not installed.
    """

    def __init__(self, checkpoint: checkpoints.Checkpoint, config: EncoderConfig = _DEFAULTS) -> None:
        _check_options(checkpoint, config)
        stated, backend = checkpoint.conventions, config.backend
        self.checkpoint = checkpoint
        self.config: EncoderConfig | None = None  # set if it was read by name, so that copies can read it again
        self.token_pooling = config.token_pooling
        self.conventions = replace(
            stated,
            max_length=stated.max_length if config.max_length is None else config.max_length,
            query_prefix=stated.query_prefix if config.query_prefix is None else config.query_prefix,
            passage_prefix=stated.passage_prefix if config.passage_prefix is None else config.passage_prefix,
            truncate_dim=stated.truncate_dim if config.truncate_dim is None else config.truncate_dim,
        )
        self.backend = backend
        self.device = torch.device(config.device or (best_device() if backend == "torch" else "cpu"))
        self.dtype: Dtype = config.dtype or "float32"
        default_tokens = _BATCH_TOKENS.get(self.device.type, 4096)
        self.batch_tokens = default_tokens if config.batch_tokens is None else config.batch_tokens
        if backend == "torch":
            model: ModelBackend = self._torch_backend(checkpoint.backbone, checkpoint.heads, _DTYPES[self.dtype])
        else:
            model = ExportedModel(checkpoint, backend, config.dtype, config.export_dir)
        float32 = None if self.dtype == "float32" else self._float32_backend
        expansion = checkpoint.heads.expansion
        batch_texts = None if expansion is None else max(1, _TERM_WEIGHTS // expansion.terms)
        self._runner = BatchRunner(model, float32, self.batch_tokens, self.name, batch_texts)
        overlap = self._window_overlap(config.window_overlap)
        self.sequencer = SequenceTokenizer(
            checkpoint.tokenizer, checkpoint.special, self.max_length, overlap, config.mcls_interval
        )
        self.query_sequencer = self.sequencer
        if self.conventions.late is not None:
            self.sequencer, self.query_sequencer = self._late_sequencers(self.conventions.late)

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
        window_overlap: WindowOverlap = None,
        mcls_interval: int | None = None,
        backend: Backend = "torch",
        export_dir: str | Path | None = None,
        token_pooling: int = 1,
        truncate_dim: int | None = None,
    ) -> M3Encoder:
        """Load "m3-mini" (bundled), a local folder, or a hub id such as "BAAI/bge-m3".

        The options are those of `EncoderConfig`, which describes them.

        Returns:
            The encoder.

        Raises:
            CheckpointError: If there is no such checkpoint, it needs more options, or `export_dir` holds another model.
            MissingExtra: If the library of the backend is not installed.
            ValueError: If an option is invalid for the checkpoint or the backend.
        """
        return cls.from_config(
            EncoderConfig(
                model=model,
                device=device,
                dtype=dtype,
                max_length=max_length,
                batch_tokens=batch_tokens,
                query_prefix=query_prefix,
                passage_prefix=passage_prefix,
                revision=revision,
                pooling=pooling,
                window_overlap=window_overlap,
                mcls_interval=mcls_interval,
                backend=backend,
                export_dir=export_dir,
                token_pooling=token_pooling,
                truncate_dim=truncate_dim,
            )
        )

    @classmethod
    def from_config(cls, config: EncoderConfig) -> M3Encoder:
        """Load an encoder as `from_pretrained` does, and keep its options as `config`.

        Args:
            config: The options.

        Returns:
            The encoder.

        Raises:
            ValueError: If the config names a server, whose encoder is a RemoteEncoder.
        """
        if config.server_url is not None:
            raise ValueError(f"server_url={config.server_url!r} loads no model here; use RemoteEncoder(url)")
        encoder = cls(checkpoints.read(config.model, revision=config.revision, pooling=config.pooling), config)
        encoder.config = config
        return encoder

    @classmethod
    def compose(
        cls,
        *,
        dense: str | M3Encoder | None = None,
        sparse: str | M3Encoder | None = None,
        multi_vector: str | M3Encoder | None = None,
        weights: Mapping[Mode, float] | None = None,
        device: str | torch.device | None = None,
        dtype: Dtype | None = None,
    ) -> ComposedEncoder:
        """Compose one encoder whose modes come from different checkpoints.

        Checkpoints with the same backbone, tokenizer, prefixes and lengths share a forward pass. The scores of
        different checkpoints have different scales: search by ranks (`SearchPlan(fusion="rrf")`), or pass weights.

        Args:
            dense: Encoder of the dense mode, or the checkpoint to load; None for no such mode.
            sparse: Encoder of the sparse mode.
            multi_vector: Encoder of the multi-vector mode.
            weights: Recommended weights of the modes; None weighs each by 1.
            device: Device of checkpoints that are loaded.
            dtype: Precision of checkpoints that are loaded.

        Returns:
            The composed encoder, with a fingerprint of its own.

        Raises:
            ValueError: If there is no mode, or weights are invalid.
            TypeError: If a mode is neither a name nor an encoder.
            MissingMode: If a checkpoint lacks its mode.
            CheckpointError: As in `from_pretrained`.
        """
        named: dict[Mode, str | M3Encoder | None] = {"dense": dense, "sparse": sparse, "multi_vector": multi_vector}
        loaded: dict[str, M3Encoder] = {}
        parts: dict[Mode, M3Encoder] = {}
        for mode, each in named.items():
            if isinstance(each, str):
                if each not in loaded:
                    loaded[each] = cls.from_pretrained(each, device=device, dtype=dtype)
                each = loaded[each]
            if each is None:
                continue
            if not isinstance(each, M3Encoder):
                raise TypeError(f"{mode} is the name of a checkpoint or an M3Encoder, got {each!r}")
            parts[mode] = each
        shared = [(_combined(own), tuple(own)) for own in _groups(parts)]
        return ComposedEncoder(parts, shared if parts else None, weights)

    def __deepcopy__(self, memo: dict[int, Any]) -> M3Encoder:
        """Return this encoder: deep copies of components share its weights."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickles hold the options, and load the model again."""
        if self.config is None:
            raise NotPicklable(
                f"{self!r} was not read by name and cannot be pickled; call save_pretrained(folder) and "
                "M3Encoder.from_pretrained(folder)"
            )
        return M3Encoder.from_config, (self.config,)

    @property
    def name(self) -> str:
        """Name of the checkpoint, as passed to `from_pretrained`."""
        return self.checkpoint.name

    @property
    def modes(self) -> frozenset[Mode]:
        return self.checkpoint.heads.modes

    @property
    def weights(self) -> Mapping[Mode, float]:
        return self.weights_for(self.modes)

    def weights_for(self, modes: Modes) -> Mapping[Mode, float]:
        stated = self.conventions
        return weights_of_modes(self.modes & frozenset(modes), stated.weights, stated.pair_weights)

    @property
    def sparse_score(self) -> SparseScore:
        """Convention of the checkpoint for sparse scores, see `SearchPlan`."""
        return self.conventions.sparse_score

    @property
    def max_length(self) -> int:
        """Longest text in tokens, including prefix and special tokens."""
        return self.conventions.max_length

    @property
    def dense_dim(self) -> int:
        if "dense" not in self.modes:
            return 0
        return min(self._hidden_size, self.conventions.truncate_dim or self._hidden_size)

    @property
    def multi_vector_dim(self) -> int:
        head = self.checkpoint.heads.multi_vector
        return 0 if head is None else int(getattr(head, "out_features", self._hidden_size))

    @property
    def vocab_size(self) -> int:
        if "sparse" not in self.modes:
            return 0
        expansion = self.checkpoint.heads.expansion
        return self.checkpoint.tokenizer.get_vocab_size() if expansion is None else expansion.terms

    @cached_property
    def fingerprint(self) -> str:
        return self._fingerprint(self.checkpoint.hash_weights(), self.sequencer.window_overlap)

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints that this model had in earlier versions of the package, with the options of this encoder."""
        if self.checkpoint.folder is not None or self.checkpoint.narrow_head is not None or self.name != NAME:
            return ()
        overlaps = {self.sequencer.window_overlap, None}  # the first versions truncated texts
        return tuple(self._fingerprint(weights, overlap) for weights in FORMER_WEIGHTS for overlap in overlaps)

    def _fingerprint(self, weights: str, window_overlap: int | None) -> str:
        """Return the fingerprint of weights of this hash with the conventions of this encoder."""
        return hash_reading(weights, self.conventions, window_overlap, self.sequencer.cls_every, self.token_pooling)

    def encode_queries(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode queries.

        An empty text has a dense vector and an empty sparse row.

        Args:
            texts: Queries.
            modes: Modes to compute; None computes all.
            show_progress: Show a progress bar.

        Returns:
            One row per query, in the order of `texts`.

        Raises:
            MissingMode: If the checkpoint lacks a head.
            NonFiniteVector: If the model returns NaN or infinity.
            TypeError: If a text is not a string.

        Warns:
            TextsTruncated: Once per call, if texts are longer than `max_length`.
        """
        weights = self.checkpoint.heads.query_weights
        encoded = self._encode(
            texts,
            self._check_modes(modes),
            self.conventions.query_prefix,
            show_progress,
            query_weights=None if weights is None else weights.float().cpu().numpy(),
            sequencer=self.query_sequencer,
        )
        return encoded.with_sparse_score(self.sparse_score)

    def encode_passages(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode passages; arguments, result and errors as in `encode_queries`."""
        return self._encode(
            texts, self._check_modes(modes), self.conventions.passage_prefix, show_progress, self.token_pooling
        )

    def encode_tokens(self, texts: Sequence[str], modes: Modes | None = None) -> Encoded:
        """Encode passages without token pooling: one vector per token of `passage_spans`.

        Args:
            texts: Passages.
            modes: Modes to compute; None computes all available ones.

        Returns:
            One row per passage, in the order of `texts`.
        """
        return self._encode(texts, self._check_modes(modes), self.conventions.passage_prefix, show_progress=False)

    def iter_encode(self, texts: Iterable[str], modes: Modes | None = None, *, chunk: int = 1024) -> Iterator[Encoded]:
        """Encode a stream of passages in order, holding one chunk in memory.

        Args:
            texts: Passages.
            modes: Modes to compute; None computes all.
            chunk: Texts per chunk.

        Returns:
            The chunks, in the order of the stream.

        Raises:
            ValueError: If `chunk` is below 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        stream = iter(texts)
        while texts_of_chunk := list(islice(stream, chunk)):
            yield self.encode_passages(texts_of_chunk, modes)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of these ids (or sparse columns), as the tokenizer writes them.

        Args:
            ids: Token ids.
        """
        return [self.checkpoint.tokenizer.id_to_token(int(id)) or "" for id in ids]

    def token_count(self, texts: Sequence[str]) -> list[int]:
        """Return each passage's number of tokens before truncation, special tokens included.

        Args:
            texts: Passages.
        """
        return self.sequencer.count(check_texts(texts), self.conventions.passage_prefix)

    @cached_property
    def overhead_tokens(self) -> int:
        """Number of tokens of an empty passage: its prefix and special tokens."""
        return self.token_count([""])[0]

    def has_content(self, texts: Sequence[str]) -> list[bool]:
        """Return whether each text has a token other than special ones and spaces.

        Args:
            texts: Texts.
        """
        return self.sequencer.has_content(check_texts(texts))

    def query_spans(self, text: str) -> list[Span]:
        """Return the tokens of a query in the order of its multi-vectors.

        Args:
            text: The query.
        """
        return self.query_sequencer.spans(text, self.conventions.query_prefix)

    def passage_spans(self, text: str) -> list[Span]:
        """Return the tokens of a passage in the order of the vectors of `encode_tokens`.

        With token pooling, a vector of `encode_passages` represents several of them; `explain` shows which.

        Args:
            text: The passage.
        """
        return self.sequencer.spans(text, self.conventions.passage_prefix)

    def explain(
        self,
        query: str,
        passage: str,
        weights: Mapping[Mode, float] | None = None,
        sparse_score: SparseScore | None = None,
        idf: Callable[[Ints], Array] | None = None,
    ) -> Explanation:
        """Explain a score: the matching tokens and each mode's part.

        Args:
            query: Query.
            passage: Passage.
            weights: Mode to weight; None takes the recommended weights.
            sparse_score: As in `SearchPlan`; None is the checkpoint's convention.
            idf: Inverse document frequency of tokens for `sparse_score="idf"`: `index.idf`.

        Returns:
            The matches of tokens and words, and the score of each mode.
        """
        weights = self.weights if weights is None else weights
        return explain(self, query, passage, weights, sparse_score or self.sparse_score, idf)

    def with_projection(self, texts: Sequence[str], width: int) -> M3Encoder:
        """Return an encoder whose multi-vectors are projected to fewer dimensions.

        Vectors are projected on the principal directions of the texts' token vectors (eigenvectors of the uncentered
        second moment) and normalized. The projection becomes part of the head, so `save_pretrained` writes it. The
        backbone is shared and options are kept; an exported model is exported again to a temporary folder.

        Args:
            texts: A few hundred passages of the corpus.
            width: New number of dimensions.

        Raises:
            MissingMode: If there is no multi-vector head.
            ValueError: If `width` is not between 1 and the present one, or the texts have fewer than `width` tokens.
        """
        modes = self._check_modes(_LATE)
        if not 1 <= width <= self.multi_vector_dim:
            raise ValueError(f"width must be from 1 to {self.multi_vector_dim}, the present dimension, got {width}")
        if not len(texts):
            raise ValueError("texts is empty; pass a few hundred passages of the corpus")
        chunks = (texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(check_texts(texts)), _TEXTS_AT_ONCE))
        vectors = (self.encode_tokens(each, modes).multi_vector.values for each in chunks)
        config = EncoderConfig(
            device=str(self.device),
            dtype=self.dtype,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            query_prefix=self.conventions.query_prefix,
            passage_prefix=self.conventions.passage_prefix,
            window_overlap="truncate" if self.sequencer.window_overlap is None else self.sequencer.window_overlap,
            mcls_interval=self.sequencer.cls_every,
            backend=self.backend,
            token_pooling=self.token_pooling,
            truncate_dim=self.conventions.truncate_dim,
        )
        return M3Encoder(self.checkpoint.narrowed(principal_directions(vectors, width)), config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder in BGE-M3's layout, which FlagEmbedding and `from_pretrained` load.

        Warns:
            PartNotExported: If lexical weights use a token prior or length normalization, which FlagEmbedding does not
                read.

        Args:
            folder: Folder to write; it is created if missing.
        """
        conventions = replace(self.conventions, window_overlap=self.sequencer.window_overlap)
        checkpoints.save(self.checkpoint, Path(folder), conventions)
        if missing := " and ".join(self._unsaved_parts()):
            warnings.warn(
                f"{self.name!r} has {missing}, which BGE-M3's layout cannot hold: this package reads it from the "
                "saved folder, FlagEmbedding ignores it",
                PartNotExported,
                stacklevel=2,
            )

    def _unsaved_parts(self) -> Iterator[str]:
        if self.checkpoint.heads.token_prior is not None:
            yield f"a lexical weight for each token ({TOKEN_PRIOR}.safetensors)"
        if self.checkpoint.heads.expansion is not None:
            yield f"term expansion ({TERM_EXPANSION}.safetensors)"
        if self.conventions.late is not None:
            yield f"the conventions of late interaction ({checkpoints.OWN_FILE})"
        if self.conventions.lexical_length is not None:
            yield f"lexical weights with length normalization ({checkpoints.OWN_FILE})"

    def __repr__(self) -> str:
        return (
            f"M3Encoder({self.name!r}, max_length={self.max_length}, dtype={self.dtype!r}, device={str(self.device)!r})"
        )

    @property
    def _hidden_size(self) -> int:
        return int(self.checkpoint.backbone.config.hidden_size)

    def _window_overlap(self, option: WindowOverlap) -> int | None:
        """Return the overlap of windows by an option and the checkpoint's convention, which adapts to `max_length`."""
        if option == "truncate":
            return None
        return self.conventions.default_overlap if option is None else option

    def _late_sequencers(self, late: LateInteraction) -> tuple[SequenceTokenizer, SequenceTokenizer]:
        """Return the tokenizers of passages and of queries, by the conventions of a ColBERT-like checkpoint."""
        vocabulary = self.checkpoint.tokenizer.get_vocab()
        passages = replace(self.sequencer, vector_tokens=late.tokens_of("document", vocabulary))
        longest = late.query_length or self.max_length
        if late.expansion is not None:
            longest = late.expansion.length if late.expansion.truncate else max(longest, late.expansion.length)
        longest = min(longest, count_positions(self.checkpoint.backbone))
        tokens = late.tokens_of("query", vocabulary)
        tokens = tokens._replace(length=min(tokens.length, longest))
        return passages, replace(passages, max_length=longest, window_overlap=None, vector_tokens=tokens)

    def _widths(self, modes: Modes) -> dict[Mode, int]:
        widths: Mapping[Mode, int] = {
            "dense": self._hidden_size,
            "sparse": self.vocab_size,
            "multi_vector": self.multi_vector_dim,
        }
        return {mode: widths[mode] for mode in MODES if mode in modes}

    def _check_modes(self, modes: Modes | None) -> frozenset[Mode]:
        if modes is None:
            return self.modes
        for mode in check_modes(modes, MODES) - self.modes:
            file = _HEAD_FILES.get(mode)
            lack = f"its folder holds no {file}.pt or {file}.safetensors" if file else "it does not pool its states"
            raise MissingMode(
                f"{self.name!r} has no head for {mode!r}: {lack}; ask for "
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
        query_weights: Array | None = None,
        sequencer: SequenceTokenizer | None = None,
    ) -> Encoded:
        sequencer = sequencer or self.sequencer
        sequences, truncated = sequencer.sequences(check_texts(texts), prefix)
        if truncated:
            advice = (
                f"are longer than {sequencer.max_length} tokens and were truncated; split them, or read windows with "
                f"the option window_overlap={self.sequencer.max_content_tokens // 8}"
            )
            warnings.warn(TextsTruncated(truncated, len(texts), advice), stacklevel=3)
        builder = EncodedBuilder(
            sequences,
            len(texts),
            widths=self._widths(modes),
            special_ids=self.checkpoint.special.unweighted,
            normalize=self.conventions.normalise,
            lexical_length=self.conventions.lexical_length,
            token_pooling=token_pooling,
            truncate_dim=self.conventions.truncate_dim,
            max_terms=self.conventions.max_terms,
        )
        if query_weights is not None and "sparse" in modes:
            builder.add_static_weights(query_weights)
            modes = modes - {"sparse"}
        if not modes:
            return builder.build()
        with tqdm(total=len(sequences), desc="encode", unit="text", disable=not show_progress) as bar:
            for batch, states in self._runner.run(sequences, modes):
                builder.add_batch(batch, states)
                bar.update(len(batch))
        return builder.build()

    def _torch_backend(self, backbone: PreTrainedModel, heads: Heads, dtype: torch.dtype) -> TorchBackend:
        pooling, pad = self.conventions.pooling, self.checkpoint.special.pad
        return TorchBackend(backbone, heads, device=self.device, dtype=dtype, pooling=pooling, pad=pad)

    def _float32_backend(self) -> TorchBackend:
        """Build a float32 backend, for values that overflow in half precision."""
        return self._torch_backend(*self.checkpoint.stored(), torch.float32)


def _groups(parts: Mapping[Mode, M3Encoder]) -> list[dict[Mode, M3Encoder]]:
    """Group modes whose encoders read texts alike, with equal backbones."""
    groups: list[dict[Mode, M3Encoder]] = []
    for mode, part in parts.items():
        if mode not in part.modes:
            raise MissingMode(f"{mode}={part!r} has no mode {mode!r}; it has {sorted(part.modes)}")
        group = next((each for each in groups if _reads_alike(next(iter(each.values())), part)), None)
        if group is None:
            groups.append({mode: part})
        else:
            group[mode] = part
    return groups


def _reads_alike(one: M3Encoder, other: M3Encoder) -> bool:
    if one is other:
        return True
    if one.backend != "torch" or other.backend != "torch" or _reading_of(one) != _reading_of(other):
        return False
    return one.checkpoint.hash_backbone() == other.checkpoint.hash_backbone()


def _reading_of(encoder: M3Encoder) -> tuple[object, ...]:
    """Return everything but weights that turns a text into hidden states."""
    stated, sequencer = encoder.conventions, encoder.sequencer
    lengths = (stated.max_length, sequencer.window_overlap, sequencer.cls_every, stated.late)
    shape = encoder.checkpoint.backbone.config.to_dict()
    shape = {key: value for key, value in shape.items() if not key.startswith("_") and key not in _UNREAD}
    text = json.dumps(shape, sort_keys=True, default=str)
    return (stated.query_prefix, stated.passage_prefix, lengths, str(encoder.device), encoder.dtype, text)


def _combined(parts: Mapping[Mode, M3Encoder]) -> M3Encoder:
    """Return one encoder for modes whose encoders read texts alike."""
    encoders = list(dict.fromkeys(parts.values()))
    if len(encoders) == 1:
        return encoders[0]
    first = encoders[0]
    late = parts.get("multi_vector", first)
    config = EncoderConfig(
        device=str(first.device),
        dtype=first.dtype,
        max_length=first.max_length,
        batch_tokens=first.batch_tokens,
        query_prefix=first.conventions.query_prefix,
        passage_prefix=first.conventions.passage_prefix,
        window_overlap="truncate" if first.sequencer.window_overlap is None else first.sequencer.window_overlap,
        mcls_interval=first.sequencer.cls_every,
        token_pooling=late.token_pooling,
        truncate_dim=parts["dense"].conventions.truncate_dim if "dense" in parts else None,
    )
    return M3Encoder(checkpoints.combine({mode: part.checkpoint for mode, part in parts.items()}), config)


def _check_options(checkpoint: checkpoints.Checkpoint, config: EncoderConfig) -> None:
    stated, backend = checkpoint.conventions, config.backend
    if config.max_length is not None and config.max_length > stated.max_length:
        raise ValueError(
            f"{checkpoint.name!r} reads at most {stated.max_length} tokens, got max_length={config.max_length}"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {list(BACKENDS)}, got {backend!r}")
    if backend == "torch" and config.dtype is not None and config.dtype not in _DTYPES:
        raise ValueError(f"dtype is one of {list(_DTYPES)}, got {config.dtype!r}")
    if backend == "torch" and config.export_dir is not None:
        raise ValueError("export_dir is the folder of an exported model; add backend='onnx' or 'openvino'")
    if backend != "torch" and config.device not in (None, "cpu"):
        raise ValueError(f"the backend {backend!r} runs on the CPU, got device={str(config.device)!r}")
    if backend != "torch" and checkpoint.heads.expansion is not None:
        raise ValueError(f"{checkpoint.name!r} expands terms, which runs with backend='torch' only, got {backend!r}")
    if config.mcls_interval is not None and stated.pooling != "cls":
        raise ValueError(
            f"mcls_interval needs a checkpoint that pools by its cls token, and {checkpoint.name!r} does not"
        )
    hidden = int(checkpoint.backbone.config.hidden_size)
    if config.truncate_dim is not None and not 1 <= config.truncate_dim <= hidden:
        raise ValueError(f"truncate_dim must be from 1 to {hidden}, the model's dimension, got {config.truncate_dim}")
    if not isinstance(config.token_pooling, int) or config.token_pooling < 1:
        raise ValueError(
            f"token_pooling must be a whole number from 1, got {config.token_pooling!r}; token_pooling=1 keeps every "
            "token's vector, token_pooling=2 about half as many"
        )

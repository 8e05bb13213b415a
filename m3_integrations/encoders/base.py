"""The Encoder protocol, the options of an M3Encoder, and input validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

from m3_integrations.core.encoded import MODES, Encoded, Mode, Modes, SparseScore
from m3_integrations.core.types import is_blank

if TYPE_CHECKING:
    import torch

    from m3_integrations.models.backends.exported import Backend
    from m3_integrations.models.conventions import Pooling

Dtype = Literal["float32", "bfloat16", "float16", "int8"]
WindowOverlap: TypeAlias = int | Literal["truncate"] | None


@runtime_checkable
class Encoder(Protocol):
    """Texts to embeddings in one or more modes, one forward pass per text."""

    @property
    def modes(self) -> frozenset[Mode]:
        """Available modes."""

    @property
    def weights(self) -> Mapping[Mode, float]:
        """Recommended weight of each mode in a weighted sum of scores."""

    def weights_for(self, modes: Modes) -> Mapping[Mode, float]:
        """Return the recommended weights of a sum of these modes alone; of all modes, these are `weights`.

        Args:
            modes: Modes that are summed; those that are not available get no weight.
        """

    @property
    def dense_dim(self) -> int:
        """Number of dimensions of a dense vector."""

    @property
    def multi_vector_dim(self) -> int:
        """Number of dimensions of each vector of a multi-vector; 0 without that mode."""

    @property
    def vocab_size(self) -> int:
        """Number of sparse columns; 0 without that mode."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits over everything that changes vectors.

        That is weights, tokenizer, prefixes, pooling and normalization; not mode weights or the convention for sparse
        scores, which change no vector of a passage.
        """

    def encode_queries(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode queries.

        Args:
            texts: Queries.
            modes: Modes to compute; None computes all available ones.
            show_progress: Show a progress bar.

        Returns:
            One row per query, in the order of `texts`.

        Raises:
            MissingMode: If a mode is not available.
        """

    def encode_passages(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode passages; arguments, result and errors as in `encode_queries`."""


@dataclass(frozen=True)
class EncoderConfig:
    """Options of `M3Encoder.from_pretrained` and of components that load an encoder.

    Args:
        model: "m3-mini" (bundled), a local folder, or a model id on the Hugging Face hub such as "BAAI/bge-m3".
        device: Device such as "cuda:0" or "cpu"; None takes cuda, then mps, then cpu, whichever is available first.
        dtype: Precision of the forward pass; None is float32.
        max_length: Maximum length of a text in tokens, including prefix and special tokens; None is the checkpoint's.
        batch_tokens: Tokens per forward pass, which bounds memory; None chooses by device.
        query_prefix: Text before each query; None is the checkpoint's.
        passage_prefix: Text before each passage; None is the checkpoint's.
        revision: Revision of a model on the hub.
        pooling: Pooling of the dense vector, for a plain transformers folder that does not state it.
        window_overlap: Encode texts longer than `max_length` in windows that overlap by this many tokens (dense: mean
            of the windows' states; sparse: maximum; multi-vectors: all). "truncate" reads only their beginning. None
            is the checkpoint's convention: windows for m3-mini, truncation for checkpoints that state nothing.
        mcls_interval: Insert a CLS token before every this many tokens and average their states into the dense vector
            (MCLS; 256 in arXiv 2402.03216); None inserts one CLS token.
        backend: "torch"; "onnx" for ONNX Runtime (float32 or int8) or "openvino" for OpenVINO (float32 or bfloat16),
            both on the CPU.
        export_dir: Folder of the exported model of the onnx and openvino backends, written if it is empty or missing;
            None exports to a temporary folder.
        token_pooling: Keep at most one vector per this many tokens of a passage, the means of similar tokens
            (arXiv 2409.14683); 1 keeps one per token. Queries are not pooled.
        truncate_dim: Leading dimensions of the dense vector to use, for models trained for it (Matryoshka, arXiv
            2205.13147; GTE from 128); None is the checkpoint's.
        server_url: URL of a server started with `m3 serve`, whose encoder is used instead of loading one; the server
            has the other options. The environment variable M3_API_KEY holds its key.
    """

    model: str = "m3-mini"
    device: str | torch.device | None = None
    dtype: Dtype | None = None
    max_length: int | None = None
    batch_tokens: int | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    revision: str | None = None
    pooling: Pooling | None = None
    window_overlap: WindowOverlap = None
    mcls_interval: int | None = None
    backend: Backend = "torch"
    export_dir: str | Path | None = None
    token_pooling: int = 1
    truncate_dim: int | None = None
    server_url: str | None = None


def has_content(encoder: Encoder, texts: Sequence[str]) -> list[bool]:
    """Return whether each query has something to search for.

    An encoder with a method `has_content` decides by its tokens, any other by visible characters.

    Args:
        encoder: Encoder of the queries.
        texts: Queries.
    """
    by_tokens = getattr(encoder, "has_content", None)
    return by_tokens(texts) if by_tokens is not None else [not is_blank(text) for text in texts]


def sparse_score_of(encoder: Encoder) -> SparseScore:
    """Return an encoder's convention for sparse scores, its `sparse_score`; "sum" if it has none."""
    convention: SparseScore = getattr(encoder, "sparse_score", "sum")
    return convention


def weights_of_modes(
    modes: Modes, weights: Mapping[Mode, float], pairs: Iterable[Mapping[Mode, float]] = ()
) -> dict[Mode, float]:
    """Return the recommended weights of a sum of some modes.

    Args:
        modes: Modes that are summed.
        weights: Weights of the sum of all modes; those of a pair that `pairs` does not have keep their proportion.
        pairs: Weights of two modes each.

    Returns:
        Weights in the order of `MODES`; 1 for a single mode.
    """
    summed = tuple(mode for mode in MODES if mode in modes)
    if len(summed) == 1:
        return {summed[0]: 1.0}
    stated = next((pair for pair in pairs if pair.keys() == set(summed)), weights)
    return {mode: stated.get(mode, 0.0) for mode in summed}


def check_texts(texts: Sequence[str]) -> Sequence[str]:
    """Check that every text is a string that UTF-8 can encode.

    Returns:
        The same texts.

    Raises:
        TypeError: If `texts` is a single string, or holds anything but strings.
        ValueError: If a text holds half of a surrogate pair.
    """
    if isinstance(texts, str):
        raise TypeError(f"expected a sequence of texts, got one text; write [{texts[:40]!r}]")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"the text at position {position} is {text!r}, not a string; an empty text is ''")
        if not text.isascii():
            _check_encodable(position, text)
    return texts


def _check_encodable(position: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text at position {position} holds half a surrogate pair; repair it with "
            "text.encode('utf-8', 'replace').decode()"
        ) from error
